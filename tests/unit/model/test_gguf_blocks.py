"""Decoding GGUF blocks, against ggml's own package."""

from __future__ import annotations

import gguf_files
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from sawyer.model.gguf_blocks import BLOCK_TYPES, QUANTISED, READABLE, decode

KINDS = {kind.name: kind for kind in BLOCK_TYPES.values()}


def test_types_have_the_numbers_names_and_sizes_of_ggml() -> None:
    ours = {number: (kind.name, kind.weights, kind.size_bytes) for number, kind in BLOCK_TYPES.items()}
    theirs = {kind.value: (kind.name, *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType}
    assert ours.items() <= theirs.items()


@pytest.mark.parametrize("name", sorted(QUANTISED))
def test_random_blocks_decode_to_the_weights_of_ggml_bit_for_bit(name: str) -> None:
    raw, _ = gguf_files.random_blocks((7, 1024), name)
    assert np.array_equal(decode(KINDS[name], raw.reshape(-1)), gguf_files.decoded((raw, name)).reshape(-1))


@pytest.mark.parametrize("name", sorted(READABLE))
def test_any_bits_decode_as_ggml_decodes_them(name: str) -> None:
    kind = KINDS[name]
    raw = np.random.default_rng(3).integers(0, 256, (64, 1024 // kind.weights * kind.size_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        theirs = dequantize(raw, GGMLQuantizationType[name]).reshape(-1)
    assert np.array_equal(decode(kind, raw.reshape(-1)), theirs, equal_nan=True)
