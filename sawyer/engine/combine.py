"""Around the experts of a layer: which rows go to which, and how the answers become the next hidden states. Pure.

Blocks are added in ascending expert id, in float32, one multiplication and one addition each: the sum does not depend
on who answered or in which order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sawyer.errors import MalformedMessage


class Group(NamedTuple):
    """The rows of one expert: `rows` [n] ascending indices into the T rows, `slots` [n] their columns of the top k."""

    expert: int
    rows: NDArray[np.uint32]
    slots: NDArray[np.uint32]


def group_rows(experts: NDArray[np.int32]) -> list[Group]:
    """`experts` [T, k] -> the rows of each chosen expert, experts ascending; none of a layer without experts."""
    top_k = experts.shape[1]
    if not top_k:
        return []
    flat = experts.ravel()
    order = flat.argsort(kind="stable")
    in_order = flat[order]
    ends = [*(np.flatnonzero(in_order[1:] != in_order[:-1]) + 1).tolist(), len(flat)]
    rows, slots = np.divmod(order.astype(np.uint32), np.uint32(top_k))
    starts = [0, *ends[:-1]]
    return [Group(int(in_order[a]), rows[a:b], slots[a:b]) for a, b in zip(starts, ends, strict=True)]


def combine(
    residual: NDArray[np.float32],
    groups: Sequence[Group],
    blocks: Sequence[NDArray[np.float32] | NDArray[np.float16]],
    weights: NDArray[np.float32],
) -> NDArray[np.float32]:
    """residual [T, H] + `summed`."""
    return residual + summed(residual.shape, groups, blocks, weights)


def summed(
    shape: tuple[int, ...],
    groups: Sequence[Group],
    blocks: Sequence[NDArray[np.float32] | NDArray[np.float16]],
    weights: NDArray[np.float32],
) -> NDArray[np.float32]:
    """The sum over experts of gate weight x block, of this shape [T, H]. `blocks[i]` [n, H] answers `groups[i]`, groups
    in ascending expert id as group_rows makes them; `weights` [T, k]. Raises MalformedMessage for a block of
    another shape."""
    total = np.zeros(shape, np.float32)
    for group, block in zip(groups, blocks, strict=True):
        if block.shape != (len(group.rows), shape[1]):
            expected = [len(group.rows), shape[1]]
            raise MalformedMessage(f"expert {group.expert}: expected a block {expected}, got {list(block.shape)}")
        weighted = block.astype(np.float32, copy=False) * weights[group.rows, group.slots, None]
        if shape[0] == 1:
            total += weighted
        else:
            total[group.rows] += weighted
    return total
