"""The block formats of GGUF tensors, in plain numpy. Pure: no IO.

A quantised tensor is a row of blocks. Each format is described once, as what its bytes mean: small integers (levels) in
groups that share a scale, and in some formats a minimum; a weight is scale x level - minimum. Decoding to float32 and
repacking without a loss (sawyer.model.gguf_repack) both start from there. The layouts are those of ggml.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_HALF: Final = "<f2"
_LOW_HIGH: Final = np.array([[0], [4]], np.uint8)
"""How far to shift a byte to see its low and its high half."""
_CRUMBS: Final = np.array([[0], [2], [4], [6]], np.uint8)
_BITS: Final = np.arange(8, dtype=np.uint8)[:, None]


@dataclass(frozen=True, slots=True)
class BlockType:
    """`weights` of a tensor's row are `size_bytes` in the file."""

    name: str
    weights: int
    size_bytes: int


BLOCK_TYPES: Final[Mapping[int, BlockType]] = MappingProxyType(
    {
        number: BlockType(name, weights, size_bytes)
        for number, name, weights, size_bytes in (
            (0, "F32", 1, 4), (1, "F16", 1, 2), (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (6, "Q5_0", 32, 22),
            (7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34), (9, "Q8_1", 32, 40), (10, "Q2_K", 256, 84),
            (11, "Q3_K", 256, 110), (12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176), (14, "Q6_K", 256, 210),
            (15, "Q8_K", 256, 292),
            (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74), (18, "IQ3_XXS", 256, 98), (19, "IQ1_S", 256, 50),
            (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110), (22, "IQ2_S", 256, 82), (23, "IQ4_XS", 256, 136),
            (24, "I8", 1, 1), (25, "I16", 1, 2), (26, "I32", 1, 4), (27, "I64", 1, 8), (28, "F64", 1, 8),
            (29, "IQ1_M", 256, 56), (30, "BF16", 1, 2), (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66),
            (39, "MXFP4", 32, 17), (40, "NVFP4", 64, 36), (41, "Q1_0", 128, 18),
        )
    }
)  # fmt: skip
"""Every type of the format by its number, so that a header can be checked; READABLE are those we decode."""


class Levels(NamedTuple):
    """What blocks mean: weight = scale x level - minimum. `levels` [blocks, groups, width] are int8 where there are no
    minimums, else uint8; `scales` and `minimums` [blocks, groups] float32."""

    levels: NDArray[Any]
    scales: Floats
    minimums: Floats | None = None


def decode(kind: BlockType, raw: Bytes) -> Floats:
    """The weights of whole blocks, flat float32. `kind` is one of READABLE."""
    if kind.name == "F32":
        return raw.view("<f4").astype(np.float32, copy=False)
    if kind.name == "F16":
        return raw.view(_HALF).astype(np.float32)
    if kind.name == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)  # the upper half of a float32
    levels, scales, minimums = levels_of(kind, raw)
    weights = levels.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # a broken scale: the reader says so, with the tensor's name
        weights *= scales[..., None]
        if minimums is not None:
            weights -= minimums[..., None]
    return weights.reshape(-1)


def levels_of(kind: BlockType, raw: Bytes) -> Levels:
    """The levels, scales and minimums of whole blocks. `kind` is one of QUANTISED."""
    layout, read = _FORMATS[kind.name]
    with np.errstate(invalid="ignore", over="ignore"):
        return read(raw.view(layout))


def _halves(pairs: Bytes, width: int) -> Bytes:
    """[blocks, bytes] -> [blocks, groups, width]: of each run of `width` bytes the low halves, then the high ones."""
    runs = pairs.reshape(len(pairs), -1, 1, width)
    return ((runs >> _LOW_HIGH) & np.uint8(15)).reshape(len(pairs), -1, width)


def _scale(blocks: NDArray[Any], field: str = "d") -> Floats:
    """A block's factor, [blocks, 1] float32."""
    scale: Floats = blocks[field].astype(np.float32)[:, None]
    return scale


def _signed(levels: NDArray[Any], zero: int) -> NDArray[np.int8]:
    return levels.view(np.int8) - np.int8(zero)


def _fifth_bits(blocks: NDArray[Any]) -> Bytes:
    """[blocks, 1, 32]: bit 4 of each level, from 32 bits that stand together."""
    bits = np.unpackbits(blocks["high"], axis=-1, bitorder="little")
    return (bits << np.uint8(4))[:, None, :]


def _q4_0(blocks: NDArray[Any]) -> Levels:
    return Levels(_signed(_halves(blocks["low"], 16).reshape(-1, 1, 32), 8), _scale(blocks))


def _q4_1(blocks: NDArray[Any]) -> Levels:
    return Levels(_halves(blocks["low"], 16).reshape(-1, 1, 32), _scale(blocks), -_scale(blocks, "m"))


def _q5_0(blocks: NDArray[Any]) -> Levels:
    levels = _halves(blocks["low"], 16).reshape(-1, 1, 32) | _fifth_bits(blocks)
    return Levels(_signed(levels, 16), _scale(blocks))


def _q5_1(blocks: NDArray[Any]) -> Levels:
    levels = _halves(blocks["low"], 16).reshape(-1, 1, 32) | _fifth_bits(blocks)
    return Levels(levels, _scale(blocks), -_scale(blocks, "m"))


def _q8_0(blocks: NDArray[Any]) -> Levels:
    return Levels(blocks["levels"][:, None, :], _scale(blocks))


def _q2_k(blocks: NDArray[Any]) -> Levels:
    levels = (blocks["low"].reshape(-1, 2, 1, 32) >> _CRUMBS) & 3
    scales = _scale(blocks) * (blocks["scales"] & 15).astype(np.float32)
    return Levels(levels.reshape(-1, 16, 16), scales, _scale(blocks, "dmin") * (blocks["scales"] >> 4))


def _q3_k(blocks: NDArray[Any]) -> Levels:
    low = ((blocks["low"].reshape(-1, 2, 1, 32) >> _CRUMBS) & 3).reshape(-1, 8, 32)
    high = (blocks["high"].reshape(-1, 1, 32) >> _BITS) & 1  # set where 4 is not taken away
    packed = blocks["scales"]
    scale_low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    scale_high = ((packed[:, None, 8:] >> _CRUMBS) & 3).reshape(-1, 16)
    scales = _signed(scale_low | (scale_high << 4), 32).astype(np.float32)
    return Levels(_signed(low | (high << 2), 4).reshape(-1, 16, 16), _scale(blocks) * scales)


def _six_bit_scales(blocks: NDArray[Any]) -> tuple[Floats, Floats]:
    """The eight scales and eight minimums of Q4_K and Q5_K, [blocks, 8] each: the first four of each take the low six
    bits of a byte, of the other four the upper two bits stand above those, the lower four share the last bytes."""
    scale, minimum, rest = (blocks["scales"][:, part : part + 4] for part in (0, 4, 8))
    scales = np.concatenate([scale & 63, (rest & 15) | ((scale >> 2) & 48)], axis=1)
    minimums = np.concatenate([minimum & 63, (rest >> 4) | ((minimum >> 2) & 48)], axis=1)
    return _scale(blocks) * scales, _scale(blocks, "dmin") * minimums


def _q4_k(blocks: NDArray[Any]) -> Levels:
    return Levels(_halves(blocks["low"], 32), *_six_bit_scales(blocks))


def _q5_k(blocks: NDArray[Any]) -> Levels:
    high = (blocks["high"].reshape(-1, 1, 32) >> _BITS) & 1
    return Levels(_halves(blocks["low"], 32) | (high << 4), *_six_bit_scales(blocks))


def _q6_k(blocks: NDArray[Any]) -> Levels:
    low = _halves(blocks["low"], 64).reshape(-1, 8, 32)
    high = ((blocks["high"].reshape(-1, 2, 1, 32) >> _CRUMBS) & 3).reshape(-1, 8, 32)
    levels = _signed(low | (high << 4), 32).reshape(-1, 16, 16)
    return Levels(levels, _scale(blocks) * blocks["scales"].astype(np.float32))


def _layout(*fields: tuple[str, str, int]) -> np.dtype[Any]:
    """Fields of a block in the order of its bytes; a count of 0 is one number."""
    return np.dtype([(name, kind, (count,)) if count else (name, kind) for name, kind, count in fields])


_D, _DMIN, _M = ("d", _HALF, 0), ("dmin", _HALF, 0), ("m", _HALF, 0)
_FORMATS: Final[Mapping[str, tuple[np.dtype[Any], Callable[[NDArray[Any]], Levels]]]] = MappingProxyType(
    {
        "Q4_0": (_layout(_D, ("low", "u1", 16)), _q4_0),
        "Q4_1": (_layout(_D, _M, ("low", "u1", 16)), _q4_1),
        "Q5_0": (_layout(_D, ("high", "u1", 4), ("low", "u1", 16)), _q5_0),
        "Q5_1": (_layout(_D, _M, ("high", "u1", 4), ("low", "u1", 16)), _q5_1),
        "Q8_0": (_layout(_D, ("levels", "i1", 32)), _q8_0),
        "Q2_K": (_layout(("scales", "u1", 16), ("low", "u1", 64), _D, _DMIN), _q2_k),
        "Q3_K": (_layout(("high", "u1", 32), ("low", "u1", 64), ("scales", "u1", 12), _D), _q3_k),
        "Q4_K": (_layout(_D, _DMIN, ("scales", "u1", 12), ("low", "u1", 128)), _q4_k),
        "Q5_K": (_layout(_D, _DMIN, ("scales", "u1", 12), ("high", "u1", 32), ("low", "u1", 128)), _q5_k),
        "Q6_K": (_layout(("low", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), _D), _q6_k),
    }
)
QUANTISED: Final = frozenset(_FORMATS)
READABLE: Final = frozenset({"F32", "F16", "BF16"}) | QUANTISED
