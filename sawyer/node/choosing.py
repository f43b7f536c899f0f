"""Which experts a node should host, from what others host and what fits here. Pure.

Fewest distinct hosts first: what nobody serves, then what one host serves. Two nodes that start together see the same
network; the seed, a node's name, makes them begin at different experts.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from sawyer.engine.footprint import Footprint
from sawyer.errors import UsageError
from sawyer.schemas.messages import HostedLayer
from sawyer.schemas.models import ModelLayout

Pair = tuple[int, int]
"""(layer, expert)."""

FREE_PERCENT: Final = 80
"""Of the free memory that a node takes by default: the rest is for its rows in flight, and for the others here."""
_AMOUNT: Final = re.compile(r"(\d{1,12})(?:\.(\d{1,3}))?\s*(%|(?:[KMGT]i?)?B?)", re.ASCII | re.IGNORECASE)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class Served:
    """Who serves one expert: the hosts, how many nodes of theirs, and how many of those as first choice."""

    hosts: frozenset[str] = field(default_factory=frozenset)
    nodes: int = 0
    first: int = 0


NOBODY: Final = Served()


@dataclass(frozen=True)
class Choice:
    """What to host: so many experts, and the memory that they take when all are loaded. `most`: how many fit."""

    layers: tuple[HostedLayer, ...]
    experts: int
    memory_bytes: int
    most: int = 0


def choose(
    layout: ModelLayout, served: Mapping[Pair, Served], one: Footprint, budget_bytes: int, *, host: str, seed: str
) -> Choice:
    """As many experts as the budget holds, `one` of which takes that: those with the fewest hosts first (one that
    `host` serves already counts behind its equals: another node of the same host is a poorer replica), in each layer
    about as many. First choice where nobody is. Raises UsageError if not even one fits."""
    check_room(one, budget_bytes)
    room = one.fit(budget_bytes)
    every = [(layer, expert) for layer in layout.moe_layers for expert in range(layout.experts)]
    groups: dict[tuple[int, bool, int], list[Pair]] = {}
    for pair in every:
        there = served.get(pair, NOBODY)
        groups.setdefault((len(there.hosts), host in there.hosts, there.nodes), []).append(pair)
    chosen: set[Pair] = set()
    for rank in sorted(groups):
        chosen |= _spread(groups[rank], chosen, room - len(chosen), seed)
    return Choice(_layers(chosen, served), len(chosen), one.room_for(len(chosen)), room)


def check_room(one: Footprint, budget_bytes: int) -> None:
    """Raises UsageError if not even one expert fits."""
    if budget_bytes < one.room_for(1):
        raise UsageError(
            f"one expert takes {size_text(one.room_for(1))} of memory while it is loaded, and "
            f"{size_text(max(0, budget_bytes))} may be used",
            hint="Free some memory, raise --max-memory, or host a smaller format or model.",
        )


def _spread(candidates: Iterable[Pair], already: set[Pair], count: int, seed: str) -> set[Pair]:
    """At most `count` candidates, each time one of the layer that has the fewest so far."""
    waiting: dict[int, list[int]] = {}
    for layer, expert in candidates:
        waiting.setdefault(layer, []).append(expert)
    for layer, experts in waiting.items():
        experts.sort(key=lambda expert: _draw(seed, layer, expert), reverse=True)
    here = dict.fromkeys(waiting, 0)
    for layer, _ in already:
        if layer in here:
            here[layer] += 1
    turns = [(here[layer], _draw(seed, layer), layer) for layer in waiting]
    heapq.heapify(turns)
    taken: set[Pair] = set()
    while turns and len(taken) < count:
        so_far, drawn, layer = heapq.heappop(turns)
        taken.add((layer, waiting[layer].pop()))
        if waiting[layer]:
            heapq.heappush(turns, (so_far + 1, drawn, layer))
    return taken


def _draw(seed: str, *numbers: int) -> bytes:
    """An order that looks random, and is the same each time."""
    return hashlib.sha256(" ".join([seed, *map(str, numbers)]).encode()).digest()


def _layers(chosen: Iterable[Pair], served: Mapping[Pair, Served]) -> tuple[HostedLayer, ...]:
    first: dict[int, list[int]] = {}
    replica: dict[int, list[int]] = {}
    for layer, expert in sorted(chosen):
        role = replica if served.get((layer, expert), NOBODY).first else first
        role.setdefault(layer, []).append(expert)
    return tuple(
        HostedLayer(layer=layer, first=tuple(first.get(layer, ())), replica=tuple(replica.get(layer, ())))
        for layer in sorted(first.keys() | replica.keys())
    )


def parse_memory(text: str, total_bytes: int, option: str = "--max-memory") -> int:
    """`6GB`, `512MiB`, `1.5G` or `75%` (of the machine's memory) in bytes. Raises UsageError, naming the option."""
    found = _AMOUNT.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{option} {text!r} is no amount of memory", hint="Write 6GB, 512MB or 75%.")
    whole, part, unit = found[1], (found[2] or "").ljust(3, "0"), found[3].lower()
    thousandths = int(whole) * 1000 + int(part)
    if unit == "%":
        if not 0 < thousandths <= 100_000:
            raise UsageError(f"{option} {text!r} is no part of the memory", hint="Write 1% to 100%.")
        return total_bytes * thousandths // 100_000
    base = 1024 if "i" in unit else 1000
    amount: int = thousandths * base ** _POWERS[unit.rstrip("b").rstrip("i")] // 1000
    if not unit:
        raise UsageError(f"{option} {text!r} has no unit", hint=f"Write {whole}GB, {whole}MB or {whole}%.")
    if amount < 1:
        raise UsageError(f"{option} {text!r} is nothing", hint="Write 6GB, 512MB or 75%.")
    return amount


def size_text(size_bytes: int) -> str:
    """`3.2 GB`, `74 MB`, `512 kB`: three digits at least."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
