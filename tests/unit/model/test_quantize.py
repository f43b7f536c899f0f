"""The formats q4, q8 and f16."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from sawyer.model import quantize as module
from sawyer.model.layout import Section, stored_sections
from sawyer.model.quantize import dequantize, packed, quantize, unpacked
from sawyer.schemas.models import Format

SMALLEST = 1e-30
"""Of the weights that are not 0: a step of smaller ones may have no float32."""
matrices = arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 3).map(lambda blocks: 32 * blocks)),
    elements=st.floats(-1e6, 1e6, width=32).filter(lambda weight: not 0 < abs(weight) < SMALLEST),
)


BITS = [4, 8]


@pytest.mark.parametrize("bits", BITS)
@given(weights=matrices)
def test_quantised_weights_are_within_one_step(bits: int, weights: NDArray[np.float32]) -> None:
    quantized, scales = quantize(weights, bits)
    back = dequantize(quantized, scales)
    blocks = weights.shape[1] // 32
    assert (quantized.shape, scales.shape) == ((len(weights), blocks, 4 * bits), (len(weights), blocks))
    step = np.repeat(np.abs(scales), 32, axis=1)
    assert (np.abs(back - weights) <= step * 1.0001).all()


@pytest.mark.parametrize("bits", BITS)
@given(weights=matrices)
def test_largest_magnitude_of_a_block_is_kept(bits: int, weights: NDArray[np.float32]) -> None:
    blocks = weights.reshape(len(weights), -1, 32)
    back = dequantize(*quantize(weights, bits)).reshape(blocks.shape)
    np.testing.assert_allclose(np.abs(back).max(axis=-1), np.abs(blocks).max(axis=-1), rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("bits", BITS)
def test_numbers_on_the_grid_come_back_exactly(bits: int) -> None:
    half = 1 << bits - 1
    levels = np.random.default_rng(0).integers(-half, half, (4, 64)).astype(np.float32)
    levels[:, ::32] = -half
    scale = np.float32(0.03125)
    assert np.array_equal(dequantize(*quantize(levels * scale, bits)), levels * scale)


@pytest.mark.parametrize(("bits", "zeros"), [(4, 0x88), (8, 0x80)])
def test_zeros_stay_zeros(bits: int, zeros: int) -> None:
    quantized, scales = quantize(np.zeros((2, 32), np.float32), bits)
    assert (quantized == zeros).all()
    assert not dequantize(quantized, scales).any()


def test_even_weights_are_in_the_low_half_of_a_byte_of_q4() -> None:
    row = np.zeros((1, 32), np.float32)
    row[0, :2] = -8, 7
    quantized, scales = quantize(row, 4)
    assert scales.tolist() == [[1.0]]
    assert quantized[0, 0, :2].tolist() == [0xF0, 0x88]


@pytest.mark.parametrize("bits", BITS)
def test_result_does_not_depend_on_how_the_matrix_is_cut(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(3).standard_normal((37, 64), dtype=np.float32)
    whole = quantize(weights, bits)
    monkeypatch.setattr(module, "_SLICE_WEIGHTS", 128)
    cut = quantize(weights, bits)
    assert all(np.array_equal(a, b) for a, b in zip(whole, cut, strict=True))


def test_bfloat16_weights_of_usual_size_are_the_same_in_f16() -> None:
    weights = np.random.default_rng(3).standard_normal((8, 64), dtype=np.float32)
    weights = (weights.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert np.array_equal(unpacked(packed(weights, "f16")), weights)


@pytest.mark.parametrize("format", [format for format in get_args(Format) if format != "gguf"])
def test_packed_arrays_are_the_sections_that_a_format_stores(format: Format) -> None:
    arrays = packed(np.ones((5, 64), np.float32), format)
    sections = stored_sections(Section("down", (5, 64)), format)
    assert [(array.shape, array.dtype) for array in arrays] == [(each.shape, each.dtype) for each in sections]
