"""Which files a split model has and where each array stands in its file. Pure: no IO.

A file is a row of sections: plain little-endian arrays in C order, each starting at a multiple of 4096 bytes. There is
no header: names, shapes and types follow from the manifest's layout and format, so a file cannot lie about itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf, prod
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from sawyer.errors import UnsupportedModel
from sawyer.schemas.models import Format, ModelLayout
from sawyer.schemas.tensors import MAX_EXPERTS, MAX_HIDDEN, MAX_LAYERS

ALIGNMENT: Final = 4096
Q4_BLOCK: Final = 32
"""Weights that share one scale in format q4."""

MAX_CONTEXT: Final = 1 << 20
MAX_MODEL_EXPERTS: Final = 900_000
"""Each is a file, and a manifest names at most a million."""

EMBED_FILE: Final = "trunk/embed.f32.bin"
NORM_FILE: Final = "trunk/norm.f32.bin"
HEAD_FILE: Final = "trunk/head.f32.bin"
"""Absent where the head is tied to the embedding."""
TOKENIZER_FILE: Final = "tokenizer.json"

Array = NDArray[Any]
_DTYPES: Final[dict[str, np.dtype[Any]]] = {"f32": np.dtype("<f4"), "u8": np.dtype("u1")}


@dataclass(frozen=True, slots=True)
class Section:
    """One array of a file."""

    name: str
    shape: tuple[int, ...]
    kind: Literal["f32", "u8"] = "f32"

    @property
    def dtype(self) -> np.dtype[Any]:
        return _DTYPES[self.kind]

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FileShape:
    """The sections of one file, in order."""

    sections: tuple[Section, ...]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each section starts, in bytes."""
        starts, end = [], 0
        for section in self.sections:
            start = end + -end % ALIGNMENT
            starts.append(start)
            end = start + section.size_bytes
        return tuple(starts)

    @property
    def size_bytes(self) -> int:
        """The file ends with its last section."""
        return self.offsets[-1] + self.sections[-1].size_bytes

    def view(self, raw: bytes) -> dict[str, Array]:
        """The arrays of a file's bytes, as read-only views. `raw` has exactly size_bytes."""
        return {
            section.name: np.frombuffer(raw, section.dtype, prod(section.shape), offset).reshape(section.shape)
            for section, offset in zip(self.sections, self.offsets, strict=True)
        }


def check_bounds(layout: ModelLayout) -> None:
    """Raises UnsupportedModel unless every number is one that a real model has and a message can carry. A manifest
    comes from strangers: nothing may be counted up to, or allocated by, a number that was not checked."""
    sizes = (
        ("layers", layout.layers, MAX_LAYERS),
        ("experts", layout.experts, MAX_EXPERTS),
        ("experts of all layers", layout.layers * layout.experts, MAX_MODEL_EXPERTS),
        ("hidden", layout.hidden, MAX_HIDDEN),
        ("context", layout.context, MAX_CONTEXT),
    )
    for name, value, most in sizes:
        if value > most:
            raise UnsupportedModel(f"{name}: at most {most}, got {value}")
    yarn = layout.yarn
    numbers = {
        "rms_eps": layout.rms_eps, "rope_theta": layout.rope_theta, "gate_norm": layout.gate_norm,
        "gate_scale": layout.gate_scale, "clip_qkv": layout.clip_qkv,
        **({} if yarn is None else {f"yarn.{name}": text for name, text in yarn if isinstance(text, str)}),
    }  # fmt: skip
    for name, text in numbers.items():
        if text is not None and not _is_positive_real(text):
            raise UnsupportedModel(f"{name}: expected a positive number, got {text!r}")


def _is_positive_real(text: str) -> bool:
    try:
        return 0 < float(text) < inf
    except ValueError:
        return False


def trunk_layer_file(layer: int) -> str:
    return f"trunk/L{layer}.f32.bin"


def shared_file(layer: int) -> str:
    """The expert of this layer that every token passes; beside the trunk, with which it runs."""
    return f"trunk/L{layer}.shared.f32.bin"


def expert_file(layer: int, expert: int, format: Format) -> str:
    return f"experts/L{layer}/E{expert}.{format}.bin"


def expert_shape(layout: ModelLayout, format: Format) -> FileShape:
    """A SwiGLU expert: gate and up in one matrix [2F, H], then down [H, F]. UnsupportedModel if q4 does not fit."""
    gate_up, down = (2 * layout.ffn, layout.hidden), (layout.hidden, layout.ffn)
    if format == "f32":
        return FileShape((Section("gate_up", gate_up), Section("down", down)))
    if layout.hidden % Q4_BLOCK or layout.ffn % Q4_BLOCK:
        raise UnsupportedModel(
            f"format q4 needs sizes that are multiples of {Q4_BLOCK}; hidden is {layout.hidden}, ffn is {layout.ffn}",
            hint="Split it as f32.",
        )
    return FileShape((*_q4_sections("gate_up", gate_up), *_q4_sections("down", down)))


def _q4_sections(name: str, shape: tuple[int, int]) -> tuple[Section, Section]:
    rows, columns = shape
    blocks = columns // Q4_BLOCK
    return Section(f"{name}.q4", (rows, blocks, Q4_BLOCK // 2), "u8"), Section(f"{name}.scales", (rows, blocks))


def mlp_sections(hidden: int, width: int) -> tuple[Section, Section]:
    """A SwiGLU MLP in float32: gate and up in one matrix, then down."""
    return Section("gate_up", (2 * width, hidden)), Section("down", (hidden, width))


def shared_shape(layout: ModelLayout, *, gated: bool) -> FileShape | None:
    """The shared expert, and the row that says how much of it counts if it is `gated`; None for a model without."""
    if layout.shared_ffn is None:
        return None
    gate = (Section("shared_gate", (1, layout.hidden)),) if gated else ()
    return FileShape((*mlp_sections(layout.hidden, layout.shared_ffn), *gate))


def file_shapes(
    layout: ModelLayout,
    format: Format,
    *,
    trunk_layer: Callable[[int], FileShape],
    shared: FileShape | None,
    tied: bool,
) -> Mapping[str, FileShape]:
    """Every weights file of a split model by its path, in the order in which a split writes them."""
    expert = expert_shape(layout, format)
    shapes = {EMBED_FILE: FileShape((Section("embed", (layout.vocab, layout.hidden)),))}
    shapes[NORM_FILE] = FileShape((Section("norm", (layout.hidden,)),))
    if not tied:
        shapes[HEAD_FILE] = FileShape((Section("head", (layout.vocab, layout.hidden)),))
    shapes.update((trunk_layer_file(layer), trunk_layer(layer)) for layer in range(layout.layers))
    if shared is not None:
        shapes.update((shared_file(layer), shared) for layer in layout.moe_layers)
    shapes.update((expert_file(layer, expert_id, format), expert) for layer, expert_id in all_experts(layout))
    return MappingProxyType(shapes)


def all_experts(layout: ModelLayout) -> Iterable[tuple[int, int]]:
    """Every (layer, expert) of the model, ascending."""
    return ((layer, expert) for layer in layout.moe_layers for expert in range(layout.experts))
