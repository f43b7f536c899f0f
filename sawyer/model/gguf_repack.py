"""Quantised GGUF blocks as ONNX Runtime's MatMulNBits reads them, without quantising again. Pure: no IO.

MatMulNBits computes scale x (q - middle) with q of 4 or 8 bits and the middle of their range, 8 or 128. A GGUF weight
is scale x level - minimum. Levels of up to four bits take four, all others eight. Formats with minimums need one thing
more: what is left over, `offsets`, one for each block of a row, is multiplied with the sum of the block's inputs:

    y = MatMulNBits(x) + sums(x) @ offsets.T        with x [T, K], sums(x) [T, K / block]

Measured with ONNX Runtime 1.32 on two cores, [1, 2048] times [4096, 2048], four bits: this takes 1.5 ms at
accuracy_level 0 and 0.2 ms at 4, where float zero points take 29 and 23 ms; and with eight bits float zero points are
refused on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sawyer.model.gguf_blocks import BlockType, levels_of

_BITS_CENTRE: Final[Mapping[str, tuple[int, int]]] = {
    "Q4_0": (4, 0), "Q4_1": (4, 8), "Q5_0": (8, 0), "Q5_1": (8, 16), "Q8_0": (8, 0), "Q2_K": (4, 2), "Q3_K": (4, 0),
    "Q4_K": (4, 8), "Q5_K": (8, 16), "Q6_K": (8, 0),
}  # fmt: skip
"""Bits that a weight takes (as in layout.BLOCKS), and which level becomes the middle: one in the centre, so that scales
and offsets hardly work against each other."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix [N, K] for MatMulNBits: `packed` [N, K / block, block * bits / 8], `scales` [N, K / block], `offsets` of
    the same shape, or None where the blocks have no minimums."""

    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    offsets: NDArray[np.float32] | None
    bits: int
    block: int


def repack(kind: BlockType, rows: NDArray[np.uint8]) -> Packed:
    """`rows` [N, bytes of a row] of whole blocks of a quantised `kind`. The weights are those of gguf_blocks.decode,
    but for the rounding of `offsets` to float32."""
    levels, scales, minimums = levels_of(kind, rows.reshape(-1))
    block = levels.shape[-1]
    bits, centre = _BITS_CENTRE[kind.name]
    q = levels.view(np.uint8) + np.uint8((1 << (bits - 1)) - centre)  # for signed levels too: they wrap into place
    offsets = None if minimums is None else scales * np.float32(centre) - minimums
    packed = q[..., 0::2] | (q[..., 1::2] << np.uint8(4)) if bits == 4 else q
    return Packed(
        packed=packed.reshape(len(rows), -1, block * bits // 8),
        scales=scales.reshape(len(rows), -1),
        offsets=None if offsets is None else offsets.reshape(len(rows), -1),
        bits=bits,
        block=block,
    )
