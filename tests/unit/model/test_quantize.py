"""Format q4."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from sawyer.model import quantize as module
from sawyer.model.quantize import dequantize_q4, quantize_q4

matrices = arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 3).map(lambda blocks: 32 * blocks)),
    elements=st.floats(-1e6, 1e6, width=32),
)


@given(matrices)
def test_quantised_weights_are_within_one_step(weights: NDArray[np.float32]) -> None:
    packed, scales = quantize_q4(weights)
    back = dequantize_q4(packed, scales)
    assert (packed.shape, scales.shape) == (
        (*weights.shape[:1], weights.shape[1] // 32, 16),
        (len(weights), weights.shape[1] // 32),
    )
    step = np.repeat(np.abs(scales), 32, axis=1)
    assert (np.abs(back - weights) <= step * 1.0001).all()


@given(matrices)
def test_largest_magnitude_of_a_block_is_kept(weights: NDArray[np.float32]) -> None:
    blocks = weights.reshape(len(weights), -1, 32)
    back = dequantize_q4(*quantize_q4(weights)).reshape(blocks.shape)
    np.testing.assert_allclose(np.abs(back).max(axis=-1), np.abs(blocks).max(axis=-1), rtol=1e-6, atol=1e-37)


def test_numbers_on_the_grid_come_back_exactly() -> None:
    levels = np.random.default_rng(0).integers(-8, 8, (4, 64)).astype(np.float32)
    levels[:, ::32] = -8
    scale = np.float32(0.03125)
    assert np.array_equal(dequantize_q4(*quantize_q4(levels * scale)), levels * scale)


def test_zeros_stay_zeros() -> None:
    packed, scales = quantize_q4(np.zeros((2, 32), np.float32))
    assert (packed == 0x88).all()
    assert not dequantize_q4(packed, scales).any()


def test_even_weights_are_in_the_low_half() -> None:
    row = np.zeros((1, 32), np.float32)
    row[0, :2] = -8, 7
    packed, scales = quantize_q4(row)
    assert scales.tolist() == [[1.0]]
    assert packed[0, 0, :2].tolist() == [0xF0, 0x88]


def test_result_does_not_depend_on_how_the_matrix_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(3).standard_normal((37, 64), dtype=np.float32)
    whole = quantize_q4(weights)
    monkeypatch.setattr(module, "_SLICE_WEIGHTS", 128)
    cut = quantize_q4(weights)
    assert all(np.array_equal(a, b) for a, b in zip(whole, cut, strict=True))
