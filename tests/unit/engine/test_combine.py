"""Grouping rows by expert and adding the answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sawyer.engine.combine import combine, group_rows
from sawyer.errors import MalformedMessage


@st.composite
def choices(draw: st.DrawFn) -> NDArray[np.int32]:
    experts = draw(st.integers(1, 9))
    top_k = draw(st.integers(1, experts))
    rows = draw(st.integers(1, 12))
    one = st.permutations(range(experts)).map(lambda order: order[:top_k])
    return np.array(draw(st.lists(one, min_size=rows, max_size=rows)), np.int32)


@given(choices())
def test_groups_hold_every_choice_once_with_experts_and_rows_ascending(experts: NDArray[np.int32]) -> None:
    groups = group_rows(experts)
    assert [group.expert for group in groups] == sorted(set(experts.ravel().tolist()))
    seen = [(int(r), int(s)) for group in groups for r, s in zip(group.rows, group.slots, strict=True)]
    assert sorted(seen) == [(r, s) for r in range(len(experts)) for s in range(experts.shape[1])]
    for group in groups:
        assert group.rows.dtype == np.uint32
        assert (np.diff(group.rows.astype(int)) > 0).all()
        assert (experts[group.rows, group.slots] == group.expert).all()


@given(choices(), st.integers(0, 2**32))
def test_combine_adds_weighted_blocks_in_ascending_expert_order(experts: NDArray[np.int32], seed: int) -> None:
    random = np.random.default_rng(seed)
    residual = random.standard_normal((len(experts), 5), dtype=np.float32)
    weights = random.random(experts.shape, dtype=np.float32)
    groups = group_rows(experts)
    blocks = [random.standard_normal((len(group.rows), 5), dtype=np.float32) for group in groups]
    expected = residual.copy()
    for row in range(len(experts)):
        total = np.zeros(5, np.float32)
        for group, block in zip(groups, blocks, strict=True):
            for n, (r, slot) in enumerate(zip(group.rows, group.slots, strict=True)):
                if r == row:
                    total = total + block[n] * weights[row, slot]
        expected[row] = residual[row] + total
    assert np.array_equal(combine(residual, groups, blocks, weights), expected)


def test_row_alone_is_combined_to_the_bits_it_has_in_a_batch() -> None:
    random = np.random.default_rng(0)
    experts = np.array([[3, 1], [1, 0], [2, 3]], np.int32)
    residual, weights = random.standard_normal((3, 8), dtype=np.float32), random.random((3, 2), dtype=np.float32)
    answers = random.standard_normal((4, 3, 8), dtype=np.float32)  # of expert e for row r
    groups = group_rows(experts)
    batch = combine(residual, groups, [answers[group.expert, group.rows] for group in groups], weights)
    for row in range(3):
        own = group_rows(experts[row : row + 1])
        blocks = [answers[group.expert, row : row + 1] for group in own]
        alone = combine(residual[row : row + 1], own, blocks, weights[row : row + 1])
        assert np.array_equal(alone[0], batch[row])


def test_float16_blocks_are_added_in_float32() -> None:
    groups = group_rows(np.array([[0]], np.int32))
    answer = combine(
        np.ones((1, 2), np.float32), groups, [np.full((1, 2), 2.0**-12, np.float16)], np.ones((1, 1), np.float32)
    )
    assert answer.dtype == np.float32
    assert answer.tolist() == [[1 + 2.0**-12] * 2]


@pytest.mark.parametrize("shape", [(1, 4), (2, 3), (3, 4)])
def test_block_of_another_shape_is_refused_with_its_expert(shape: tuple[int, int]) -> None:
    groups = group_rows(np.array([[6], [6]], np.int32))
    with pytest.raises(MalformedMessage, match=r"expert 6: expected a block \[2, 4\]"):
        combine(np.zeros((2, 4), np.float32), groups, [np.zeros(shape, np.float32)], np.ones((2, 1), np.float32))
