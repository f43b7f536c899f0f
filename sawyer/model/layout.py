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
from sawyer.schemas.models import Coding, ExpertCodings, Format, ModelLayout
from sawyer.schemas.tensors import MAX_EXPERTS, MAX_HIDDEN, MAX_LAYERS

ALIGNMENT: Final = 4096
BLOCK: Final = 32
"""Weights that share one scale in the formats q4 and q8."""
BITS: Final[Mapping[str, int]] = MappingProxyType({"q4": 4, "q8": 8})
"""Bits of a weight in the formats that have scales."""

MAX_CONTEXT: Final = 1 << 20
MAX_ROTATED: Final = 1 << 27
"""Positions times the dimensions of a head: there is a table of them, in main memory."""
MAX_MODEL_EXPERTS: Final = 900_000
"""Each is a file, and a manifest names at most a million."""

NORM_FILE: Final = "trunk/norm.f32.bin"
TOKENIZER_FILE: Final = "tokenizer.json"
CHAT_FILE: Final = "chat.json"
"""A schemas.models.ChatTemplate; absent where the model has none."""

Array = NDArray[Any]
_DTYPES: Final[dict[str, np.dtype[Any]]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2"), "u8": np.dtype("u1")}


@dataclass(frozen=True, slots=True)
class Blocks:
    """A coding as MatMulNBits reads it: `bits` a weight, a scale for each `block` of a row, which is of whole blocks of
    `stored` weights in the GGUF file. `offsets`: see sawyer.model.gguf_repack."""

    bits: int
    block: int
    stored: int
    offsets: bool = False


BLOCKS: Final[Mapping[Coding, Blocks]] = MappingProxyType(
    {
        "Q4_0": Blocks(4, 32, 32), "Q4_1": Blocks(4, 32, 32, True), "Q5_0": Blocks(8, 32, 32),
        "Q5_1": Blocks(8, 32, 32, True), "Q8_0": Blocks(8, 32, 32), "Q2_K": Blocks(4, 16, 256, True),
        "Q3_K": Blocks(4, 16, 256), "Q4_K": Blocks(4, 32, 256, True), "Q5_K": Blocks(8, 32, 256, True),
        "Q6_K": Blocks(8, 16, 256),
    }
)  # fmt: skip
"""Of every coding but f32."""


@dataclass(frozen=True, slots=True)
class Section:
    """One array of a file. `coding`: how format gguf stores it, if it is a matrix of an expert."""

    name: str
    shape: tuple[int, ...]
    kind: Literal["f32", "f16", "u8"] = "f32"
    coding: Coding = "f32"

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
    """How a format stores one float32 section: `NAME` itself, in float16 under the same name, as `NAME.q4` (or q8) with
    `NAME.scales`, or in gguf as its coding says. Packed weights can only be a factor of a product with rows, and their
    rows are whole blocks: what has more axes, or another width (as only toy models have), stays float32."""
    if format == "gguf":
        return _coded_sections(section)
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


def _coded_sections(section: Section) -> tuple[Section, ...]:
    if section.coding == "f32":
        return (section,)
    of, (rows, columns) = BLOCKS[section.coding], section.shape
    blocks = columns // of.block
    packed = Section(f"{section.name}.levels", (rows, blocks, of.block * of.bits // 8), "u8")
    scales = (packed, Section(f"{section.name}.scales", (rows, blocks)))
    return (*scales, Section(f"{section.name}.offsets", (rows, blocks))) if of.offsets else scales


def packing(section: Section, format: Format) -> Blocks | None:
    """How MatMulNBits reads what `stored_sections` made of a float32 section; None if that are no packed weights."""
    if stored_sections(section, format)[0].kind != "u8":
        return None
    return BLOCKS[section.coding] if format == "gguf" else Blocks(BITS[format], BLOCK, BLOCK)


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
        ("context times head_dim", layout.context * layout.head_dim, MAX_ROTATED),
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


def expert_shape(layout: ModelLayout, format: Format, layer: int | None = None) -> FileShape:
    """A SwiGLU expert: gate and up in one matrix [2F, H], then down [H, F]; gate and up apart where format gguf stores
    them differently. `layer` counts in gguf alone; without it, an expert of a layer where they are largest. Raises
    UnsupportedModel if the format does not fit."""
    if format == "gguf":
        if layer is None:
            return max((_coded_shape(layout, each) for each in _codings(layout)), key=lambda shape: shape.size_bytes)
        return _coded_shape(layout, _codings(layout)[layout.moe_layers.index(layer)])
    if format in BITS and (layout.hidden % BLOCK or layout.ffn % BLOCK):
        raise UnsupportedModel(
            f"format {format} needs sizes that are multiples of {BLOCK}; hidden is {layout.hidden}, ffn is "
            f"{layout.ffn}",
            hint="Split it as f32.",
        )
    return FileShape(mlp_sections(layout.hidden, layout.ffn), format)


def _codings(layout: ModelLayout) -> tuple[ExpertCodings, ...]:
    if layout.codings is None:
        raise UnsupportedModel(
            "format gguf needs the codings of a GGUF file", hint="sawyer models split FILE.gguf --exact makes it."
        )
    return layout.codings


def _coded_shape(layout: ModelLayout, codings: ExpertCodings) -> FileShape:
    gate_up, down = mlp_sections(layout.hidden, layout.ffn)
    if codings.gate == codings.up:
        plain = (replace(gate_up, coding=codings.gate), replace(down, coding=codings.down))
        return FileShape(plain, "gguf")
    shape = (layout.ffn, layout.hidden)
    gate, up = Section("gate", shape, coding=codings.gate), Section("up", shape, coding=codings.up)
    return FileShape((gate, up, replace(down, coding=codings.down)), "gguf")


def check_codings(layout: ModelLayout, format: Format, trunk: Format) -> None:
    """Raises UnsupportedModel unless there is a coding for each layer with experts, which fits their widths, in format
    gguf, and none in any other; and for a trunk in gguf."""
    if trunk == "gguf":
        raise UnsupportedModel("trunk_format: gguf is a format of experts alone")
    if format != "gguf":
        if layout.codings is not None:
            raise UnsupportedModel(f"codings: format {format} has none")
        return
    codings = _codings(layout)
    if len(codings) != len(layout.moe_layers):
        raise UnsupportedModel(
            f"codings: expected one for each of {len(layout.moe_layers)} layers with experts, got {len(codings)}"
        )
    for each in set(codings):
        for name, coding, width in (
            ("gate", each.gate, layout.hidden), ("up", each.up, layout.hidden), ("down", each.down, layout.ffn)
        ):  # fmt: skip
            if coding != "f32" and width % BLOCKS[coding].stored:
                raise UnsupportedModel(
                    f"codings: {name} in {coding} needs rows of whole blocks of {BLOCKS[coding].stored}, not {width}"
                )


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
    experts = {
        layer: expert_shape(layout, format, layer) for layer in layout.moe_layers[: None if format == "gguf" else 1]
    }
    expert = experts[layout.moe_layers[0]]
    embed = FileShape((Section("embed", (layout.vocab, layout.hidden)),), embed_format(trunk))
    shapes = {embed_file(trunk): embed}
    shapes[NORM_FILE] = FileShape((Section("norm", (layout.hidden,)),))
    if not tied:
        shapes[head_file(trunk)] = head_shape(layout).in_format(trunk)
    for layer in range(layout.layers):
        shapes[trunk_layer_file(layer, trunk)] = trunk_layer(layer).in_format(trunk)
    if shared is not None:
        shapes.update((shared_file(layer, trunk), shared.in_format(trunk)) for layer in layout.moe_layers)
    shapes.update(
        (expert_file(layer, number, format), experts.get(layer, expert)) for layer, number in all_experts(layout)
    )
    return MappingProxyType(shapes)


def all_experts(layout: ModelLayout) -> Iterable[tuple[int, int]]:
    """Every (layer, expert) of the model, ascending."""
    return ((layer, expert) for layer in layout.moe_layers for expert in range(layout.experts))
