"""Splitting some layers of a model now and the others later, or on another machine: which files belong to which layers,
and what is still missing. Pure; the files and their journals are in model.split and model.writing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from sawyer.errors import UsageError
from sawyer.model.layout import embed_file
from sawyer.schemas.models import Format, ModelLayout

HINT: Final = "Write FIRST-LAST, counted from 0, or one number: --layers 0-15."
_LAYERS: Final = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?", re.ASCII)
_OF_LAYER: Final = re.compile(r"(?:trunk|experts)/L(\d+)[./]", re.ASCII)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A split of which layers are missing. `done`: files that are whole. `strange`: journals in the folder that belong
    to another job (checkpoint, format or version of Sawyer), whose files count for nothing."""

    done: int
    missing: tuple[int, ...]
    strange: tuple[str, ...]


def parse_layers(text: str) -> range:
    """`0-15` or `3`. Raises UsageError for anything else; whether the model has them is for `check_layers`."""
    found = _LAYERS.fullmatch(text)
    if found is None:
        raise UsageError(f"--layers {text!r} is no range of layers", hint=HINT)
    first, last = int(found[1]), int(found[2] or found[1])
    if first > last:
        raise UsageError(f"--layers {text} runs backwards", hint=HINT)
    return range(first, last + 1)


def check_layers(layers: range | None, layout: ModelLayout) -> None:
    """Raises UsageError for layers that the model does not have; None is all of them."""
    if layers is not None and layers.stop > layout.layers:
        raise UsageError(
            f"--layers {span_text(layers)}: this model has no layer {max(layers.start, layout.layers)}",
            hint=f"It has the layers 0-{layout.layers - 1}." if layout.layers > 1 else "It has the layer 0 alone.",
        )


def layers_of(paths: Iterable[str], layout: ModelLayout, trunk: Format) -> Mapping[str, int]:
    """The layer with which each weights file is split. The embedding goes with the first one, and what comes after the
    layers with the last: so it is also in shards of a hub."""

    def layer_of(path: str) -> int:
        found = _OF_LAYER.match(path)
        if found is not None:
            return int(found[1])
        return 0 if path == embed_file(trunk) else layout.layers - 1

    return {path: layer_of(path) for path in paths}


def ranges(numbers: Iterable[int]) -> list[str]:
    """`0-3` and `5` for 0, 1, 2, 3, 5: each as --layers takes it."""
    spans: list[range] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1].stop:
            spans[-1] = range(spans[-1].start, number + 1)
        else:
            spans.append(range(number, number + 1))
    return [span_text(span) for span in spans]


def span_text(span: range) -> str:
    """`0-3`, or `5` for one."""
    return str(span.start) if len(span) == 1 else f"{span.start}-{span.stop - 1}"
