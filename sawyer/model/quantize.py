"""Formats q4 and q8: four or eight bits a weight, one float32 scale for each 32 weights of a row. Format f16. Pure.

The packing is what ONNX Runtime's MatMulNBits reads (block 32, symmetric, zero point 8 or 128). A weight is scale x
(q - zero point); the largest of a block becomes exactly -8 (or -128) x scale. In q4 two weights are a byte, the even
one in the low half.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sawyer.model.layout import BITS, BLOCK, Array
from sawyer.schemas.models import Format

_SLICE_WEIGHTS: Final = 1 << 18
"""Weights worked on at once: 1 MiB of float32, so the half dozen passes over it stay in cache."""


def packed(weights: NDArray[np.float32], format: Format) -> tuple[Array, ...]:
    """A matrix as a format stores it: the arrays of `layout.stored_sections`. Float16 rounds to nearest, and what is
    too large for it becomes infinite."""
    if format == "f32":
        return (weights,)
    if format == "f16":
        with np.errstate(over="ignore"):
            return (weights.astype("<f2"),)
    return quantize(weights, BITS[format])


def unpacked(arrays: tuple[Array, ...]) -> NDArray[np.float32]:
    """The weights that the arrays of `packed` stand for: what a computation in that format is compared with."""
    if len(arrays) == 1:
        return arrays[0].astype(np.float32)
    return dequantize(*arrays)


def quantize(weights: NDArray[np.float32], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """`weights` [N, K], K a multiple of 32 -> (packed [N, K/32, 4 x bits] uint8, scales [N, K/32] float32)."""
    rows, columns = weights.shape
    blocks = columns // BLOCK
    quantized = np.empty((rows, blocks, BLOCK * bits // 8), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    step = max(1, _SLICE_WEIGHTS // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        _quantize_slice(weights[part].reshape(-1, blocks, BLOCK), quantized[part], scales[part], bits)
    return quantized, scales


def _quantize_slice(
    groups: NDArray[np.float32], quantized: NDArray[np.uint8], scales: NDArray[np.float32], bits: int
) -> None:
    zero_point = 1 << bits - 1
    high, low = groups.max(axis=-1), groups.min(axis=-1)
    np.divide(np.where(high >= -low, high, low), -zero_point, out=scales)
    scales[scales == 0] = 1  # a block of zeros: any scale gives zeros, and nothing divides by it
    levels = groups / scales[..., None]
    np.rint(levels, out=levels)
    levels += zero_point
    np.clip(levels, 0, 2 * zero_point - 1, out=levels)
    if bits == 8:
        np.copyto(quantized, levels, casting="unsafe")
    else:
        nibbles = levels.astype(np.uint8)
        np.bitwise_or(nibbles[..., 0::2], nibbles[..., 1::2] << 4, out=quantized)


def dequantize(quantized: NDArray[np.uint8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The weights that q4 or q8 stands for, [N, K] float32."""
    if quantized.shape[-1] == BLOCK:
        levels = quantized.astype(np.float32) - np.float32(128)
    else:
        levels = np.empty((*quantized.shape[:-1], BLOCK), np.float32)
        levels[..., 0::2] = quantized & 15
        levels[..., 1::2] = quantized >> 4
        levels -= np.float32(8)
    weights: NDArray[np.float32] = levels * scales[..., None]
    return weights.reshape(len(quantized), -1)
