"""Which files a split model has and where each array stands in its file. Pure: no IO.

A file is a row of sections: plain little-endian arrays in C order, each starting at a multiple of 4096 bytes. There is
no header: names, shapes and types follow from the manifest's layout and formats, so a file cannot lie about itself.

A family says what a file holds in float32; a format says how its matrices are stored. Norms, biases and gates stay as
they are in every format: they are small, and a gate decides which experts answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
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
BLOCK: Final = 32
"""Weights that share one scale in the formats q4 and q8."""
BITS: Final[Mapping[str, int]] = MappingProxyType({"q4": 4, "q8": 8})
"""Bits of a weight in the formats that have scales."""

MAX_CONTEXT: Final = 1 << 20
MAX_MODEL_EXPERTS: Final = 900_000
"""Each is a file, and a manifest names at most a million."""

NORM_FILE: Final = "trunk/norm.f32.bin"
TOKENIZER_FILE: Final = "tokenizer.json"
CHAT_FILE: Final = "chat.json"
"""A schemas.models.ChatTemplate; absent where the model has none."""

Array = NDArray[Any]
_DTYPES: Final[dict[str, np.dtype[Any]]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2"), "u8": np.dtype("u1")}


@dataclass(frozen=True, slots=True)
class Section:
    """One array of a file."""

    name: str
    shape: tuple[int, ...]
    kind: Literal["f32", "f16", "u8"] = "f32"

    @property
    def dtype(self) -> np.dtype[Any]:
        return _DTYPES[self.kind]

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FileShape:
    """What one file holds: the float32 sections `plain`, in order, their matrices stored in `format`."""

    plain: tuple[Section, ...]
    format: Format = "f32"

    def in_format(self, format: Format) -> FileShape:
        """The same weights, stored otherwise."""
        return replace(self, format=format)

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """The arrays of the file, in order."""
        return tuple(stored for section in self.plain for stored in stored_sections(section, self.format))

    @property
    def parameters(self) -> int:
        """Weights in the file."""
        return sum(prod(section.shape) for section in self.plain)

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


def stored_sections(section: Section, format: Format) -> tuple[Section, ...]:
    """How a format stores one float32 section: `NAME` itself, in float16 under the same name, or as `NAME.q4` (or q8)
    with `NAME.scales`. Packed weights can only be a factor of a product with rows, and their rows are whole blocks:
    what has more axes, or another width (as only toy models have), stays float32."""
    if format == "f32" or len(section.shape) < 2 or _is_gate(section.name):
        return (section,)
    if format == "f16":
        return (replace(section, kind="f16"),)
    if len(section.shape) > 2 or section.shape[1] % BLOCK:
        return (section,)
    rows, columns = section.shape
    blocks, block_bytes = columns // BLOCK, BLOCK * BITS[format] // 8
    packed = Section(f"{section.name}.{format}", (rows, blocks, block_bytes), "u8")
    return packed, Section(f"{section.name}.scales", (rows, blocks))


def _is_gate(name: str) -> bool:
    return name == "gate" or name.endswith("_gate")


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


def embed_format(trunk: Format) -> Format:
    """How the embedding is stored in a trunk of this format: its rows are looked up, not multiplied, and a float16 is
    as good as a bfloat16 where weights are of usual sizes. So it is never coarser than f16."""
    return "f32" if trunk == "f32" else "f16"


def embed_file(trunk: Format) -> str:
    return f"trunk/embed.{embed_format(trunk)}.bin"


def head_file(trunk: Format) -> str:
    """Absent where the head is tied to the embedding."""
    return f"trunk/head.{trunk}.bin"


def trunk_layer_file(layer: int, trunk: Format) -> str:
    return f"trunk/L{layer}.{trunk}.bin"


def shared_file(layer: int, trunk: Format) -> str:
    """The expert of this layer that every token passes; beside the trunk, with which it runs."""
    return f"trunk/L{layer}.shared.{trunk}.bin"


def expert_file(layer: int, expert: int, format: Format) -> str:
    return f"experts/L{layer}/E{expert}.{format}.bin"


def expert_shape(layout: ModelLayout, format: Format) -> FileShape:
    """A SwiGLU expert: gate and up in one matrix [2F, H], then down [H, F]. UnsupportedModel if the format does not
    fit."""
    if format in BITS and (layout.hidden % BLOCK or layout.ffn % BLOCK):
        raise UnsupportedModel(
            f"format {format} needs sizes that are multiples of {BLOCK}; hidden is {layout.hidden}, ffn is "
            f"{layout.ffn}",
            hint="Split it as f32.",
        )
    return FileShape(mlp_sections(layout.hidden, layout.ffn), format)


def mlp_sections(hidden: int, width: int) -> tuple[Section, Section]:
    """A SwiGLU MLP in float32: gate and up in one matrix, then down."""
    return Section("gate_up", (2 * width, hidden)), Section("down", (hidden, width))


def shared_shape(layout: ModelLayout, *, gated: bool) -> FileShape | None:
    """The shared expert, and the row that says how much of it counts if it is `gated`; None for a model without."""
    if layout.shared_ffn is None:
        return None
    gate = (Section("shared_gate", (1, layout.hidden)),) if gated else ()
    return FileShape((*mlp_sections(layout.hidden, layout.shared_ffn), *gate))


def head_shape(layout: ModelLayout) -> FileShape:
    return FileShape((Section("head", (layout.vocab, layout.hidden)),))


def file_shapes(
    layout: ModelLayout,
    format: Format,
    trunk: Format,
    *,
    trunk_layer: Callable[[int], FileShape],
    shared: FileShape | None,
    tied: bool,
) -> Mapping[str, FileShape]:
    """Every weights file of a split model by its path, in the order in which a split writes them. Experts are stored in
    `format`, the trunk in `trunk`."""
    expert = expert_shape(layout, format)
    embed = FileShape((Section("embed", (layout.vocab, layout.hidden)),), embed_format(trunk))
    shapes = {embed_file(trunk): embed}
    shapes[NORM_FILE] = FileShape((Section("norm", (layout.hidden,)),))
    if not tied:
        shapes[head_file(trunk)] = head_shape(layout).in_format(trunk)
    for layer in range(layout.layers):
        shapes[trunk_layer_file(layer, trunk)] = trunk_layer(layer).in_format(trunk)
    if shared is not None:
        shapes.update((shared_file(layer, trunk), shared.in_format(trunk)) for layer in layout.moe_layers)
    shapes.update((expert_file(layer, expert_id, format), expert) for layer, expert_id in all_experts(layout))
    return MappingProxyType(shapes)


def all_experts(layout: ModelLayout) -> Iterable[tuple[int, int]]:
    """Every (layer, expert) of the model, ascending."""
    return ((layer, expert) for layer in layout.moe_layers for expert in range(layout.experts))
