"""Format q4: four bits a weight, one float32 scale for each 32 weights of a row. Pure.

The packing is what ONNX Runtime's MatMulNBits reads (bits 4, block 32, symmetric, zero point 8): two weights are a
byte, the even one in the low half, and a weight is scale x (q - 8). The largest of a block becomes exactly -8 x scale.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sawyer.model.layout import Q4_BLOCK

ZERO_POINT: Final = 8
_SLICE_WEIGHTS: Final = 1 << 18
"""Weights worked on at once: 1 MiB of float32, so the half dozen passes over it stay in cache."""


def quantize_q4(weights: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """`weights` [N, K], K a multiple of 32 -> (packed [N, K/32, 16] uint8, scales [N, K/32] float32)."""
    rows, columns = weights.shape
    blocks = columns // Q4_BLOCK
    packed = np.empty((rows, blocks, Q4_BLOCK // 2), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    step = max(1, _SLICE_WEIGHTS // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        _quantize_slice(weights[part].reshape(-1, blocks, Q4_BLOCK), packed[part], scales[part])
    return packed, scales


def _quantize_slice(groups: NDArray[np.float32], packed: NDArray[np.uint8], scales: NDArray[np.float32]) -> None:
    high, low = groups.max(axis=-1), groups.min(axis=-1)
    np.divide(np.where(high >= -low, high, low), -ZERO_POINT, out=scales)
    scales[scales == 0] = 1  # a block of zeros: any scale gives zeros, and nothing divides by it
    levels = groups / scales[..., None]
    np.rint(levels, out=levels)
    levels += ZERO_POINT
    np.clip(levels, 0, 15, out=levels)
    nibbles = levels.astype(np.uint8)
    np.bitwise_or(nibbles[..., 0::2], nibbles[..., 1::2] << 4, out=packed)


def dequantize_q4(packed: NDArray[np.uint8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The weights that q4 stands for, [N, K] float32: what a q4 expert is compared with."""
    nibbles = np.empty((*packed.shape[:-1], Q4_BLOCK), np.float32)
    nibbles[..., 0::2] = packed & 15
    nibbles[..., 1::2] = packed >> 4
    weights: NDArray[np.float32] = (nibbles - np.float32(ZERO_POINT)) * scales[..., None]
    return weights.reshape(len(packed), -1)
