"""Which experts a node serves, as first choice and as replica. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from sawyer.errors import UsageError
from sawyer.schemas.messages import HostedLayer
from sawyer.schemas.models import ModelLayout

HINT: Final = "Write LAYERS:EXPERTS,... with numbers, ranges or *, such as 0:0-3,1:4,2:* or *:*."
_RANGE: Final = re.compile(r"\*|(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


def share(layout: ModelLayout, part: int, of: int) -> tuple[HostedLayer, ...]:
    """Part `part` (from 0) of `of` equal shares of every MoE layer: first choice for the experts e with e mod of ==
    part, replica for those with (e + 1) mod of == part, so that any one node may vanish. Raises UsageError."""
    if not 0 <= part < of:
        raise UsageError(f"share {part}/{of} does not exist", hint="Write PART/OF with 0 <= PART < OF, such as 0/2.")
    first = tuple(expert for expert in range(layout.experts) if expert % of == part)
    replica = tuple(expert for expert in range(layout.experts) if (expert + 1) % of == part and of > 1)
    return tuple(HostedLayer(layer=layer, first=first, replica=replica) for layer in layout.moe_layers)


def parse_share(text: str) -> tuple[int, int]:
    """`0/2` -> (0, 2). Raises UsageError."""
    part, slash, of = text.partition("/")
    if not (slash and part.isdecimal() and of.isdecimal()):
        raise UsageError(f"{text!r} is not a share", hint="Write PART/OF, such as 0/2.")
    return int(part), int(of)


def parse_experts(text: str, layout: ModelLayout) -> tuple[HostedLayer, ...]:
    """`0:0-3,1:4,2:*` -> those experts as first choice; `*:*` is all. Raises UsageError that says where the text is
    wrong (positions from 1), or what the model has instead."""
    chosen: dict[int, set[int]] = {}
    start = 1
    for item in text.split(","):
        layers, colon, experts = item.partition(":")
        if not colon:
            raise UsageError(f"{item!r} at position {start} of --experts is not LAYERS:EXPERTS", hint=HINT)
        for layer in _numbers("layer", layers, start, layout.moe_layers):
            found = _numbers("expert", experts, start + len(layers) + 1, range(layout.experts))
            chosen.setdefault(layer, set()).update(found)
        start += len(item) + 1
    return tuple(HostedLayer(layer=layer, first=tuple(sorted(chosen[layer])), replica=()) for layer in sorted(chosen))


def pairs(layers: tuple[HostedLayer, ...]) -> list[tuple[int, int]]:
    """Every (layer, expert) that is served, first choice or replica, once."""
    return [(each.layer, expert) for each in layers for expert in sorted({*each.first, *each.replica})]


def in_preference(layers: tuple[HostedLayer, ...]) -> list[tuple[int, int]]:
    """Every (layer, expert) that is served, once: those of first choice before replicas."""
    first = [(each.layer, expert) for each in layers for expert in sorted(each.first)]
    return list(dict.fromkeys([*first, *pairs(layers)]))


def without(layers: tuple[HostedLayer, ...], broken: Collection[tuple[int, int]]) -> tuple[HostedLayer, ...]:
    """What is left to serve when these (layer, expert) pairs cannot be served."""
    if not broken:
        return layers
    return tuple(
        HostedLayer(
            layer=each.layer,
            first=tuple(expert for expert in each.first if (each.layer, expert) not in broken),
            replica=tuple(expert for expert in each.replica if (each.layer, expert) not in broken),
        )
        for each in layers
    )


def with_replica(layers: tuple[HostedLayer, ...], pair: tuple[int, int]) -> tuple[HostedLayer, ...]:
    """These and one more (layer, expert), as replica: others serve it, too."""
    by_layer = {each.layer: each for each in layers}
    layer, expert = pair
    there = by_layer.get(layer, HostedLayer(layer=layer, first=(), replica=()))
    replica = tuple(sorted({*there.replica, expert} - set(there.first)))
    by_layer[layer] = HostedLayer(layer=layer, first=there.first, replica=replica)
    return tuple(by_layer[number] for number in sorted(by_layer))


def written(chosen: Iterable[tuple[int, int]], layout: ModelLayout) -> str:
    """The experts as `--experts` takes them, in few words: `0-1:*,2:0-3,2:6`."""
    by_layer: dict[int, list[int]] = {}
    for layer, expert in sorted(set(chosen)):
        by_layer.setdefault(layer, []).append(expert)
    alike: dict[tuple[int, ...], list[int]] = {}
    for layer, experts in by_layer.items():
        alike.setdefault(tuple(experts), []).append(layer)
    items = []
    for same, layers in alike.items():
        told = ["*"] if len(same) == layout.experts else runs(same)
        where = ["*"] if len(layers) == len(layout.moe_layers) else runs(layers)
        items += [f"{layer}:{each}" for layer in where for each in told]
    return ",".join(items)


def runs(numbers: Sequence[int]) -> list[str]:
    """`["0-3", "5"]` for 0, 1, 2, 3, 5."""
    told: list[list[int]] = []
    for number in numbers:
        if told and number == told[-1][-1] + 1:
            told[-1][1:] = [number]
        else:
            told.append([number])
    return ["-".join(map(str, each)) for each in told]


def _numbers(what: str, text: str, position: int, known: Sequence[int]) -> Iterable[int]:
    """`*`, `3` or `0-3` as numbers that the model has."""
    found = _RANGE.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} at position {position} of --experts is no {what}, range or *", hint=HINT)
    if text == "*":
        return known
    first, last = int(found[1]), int(found[2] or found[1])
    if first > last:
        raise UsageError(f"{text!r} at position {position} of --experts runs backwards", hint=HINT)
    wanted = range(first, min(last, known[-1] + 1) + 1)  # one too many shows, a billion need not be walked
    have = frozenset(known)
    missing = [number for number in wanted if number not in have]
    if missing or not wanted:
        lacking = missing[0] if missing else first
        raise UsageError(
            f"{text!r} at position {position} of --experts: this model has no {what} {lacking}",
            hint=f"It has {what}s {', '.join(runs(known))}.",
        )
    return wanted
