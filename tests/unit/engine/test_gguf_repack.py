"""GGUF blocks as MatMulNBits takes them: ONNX Runtime's product is that of the weights which the blocks mean."""

from __future__ import annotations

from typing import Any

import gguf_files
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sawyer.engine.session import Session
from sawyer.model.gguf_blocks import BLOCK_TYPES, QUANTISED
from sawyer.model.gguf_repack import Packed, repack

KINDS = {kind.name: kind for kind in BLOCK_TYPES.values()}
ROWS, COLUMNS = 48, 1024


def product(packed: Packed, x: np.ndarray[Any, Any], accuracy_level: int) -> np.ndarray[Any, Any]:
    """MatMulNBits(x) + sums(x) @ offsets.T, as the module says."""
    columns = packed.packed.shape[1] * packed.block
    weights = {"packed": packed.packed, "scales": packed.scales}
    nodes = [
        helper.make_node(
            "MatMulNBits", ["x", "packed", "scales"], ["y" if packed.offsets is None else "product"],
            domain="com.microsoft", K=columns, N=len(packed.packed), bits=packed.bits, block_size=packed.block,
            accuracy_level=accuracy_level,
        )
    ]  # fmt: skip
    if packed.offsets is not None:
        weights |= {"offsets": packed.offsets, "blocks": np.array([0, -1, packed.block]), "last": np.array([2])}
        nodes += [
            helper.make_node("Reshape", ["x", "blocks"], ["in_blocks"]),
            helper.make_node("ReduceSum", ["in_blocks", "last"], ["sums"], keepdims=0),
            helper.make_node("Gemm", ["sums", "offsets", "product"], ["y"], transB=1),
        ]
    graph = helper.make_graph(
        nodes, "repacked", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", len(packed.packed)])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return Session(model.SerializeToString(), {}).run({"x": x})[0]


@pytest.mark.parametrize("name", sorted(QUANTISED))
@pytest.mark.parametrize(("accuracy_level", "tolerance"), [(0, 1e-5), (4, 2e-2)])
def test_repacked_blocks_multiply_as_the_weights_they_mean(name: str, accuracy_level: int, tolerance: float) -> None:
    blocks = gguf_files.random_blocks((ROWS, COLUMNS), name)
    meant = gguf_files.decoded(blocks)
    x = np.random.default_rng(1).standard_normal((3, COLUMNS)).astype(np.float32)
    expected = x.astype(np.float64) @ meant.T.astype(np.float64)
    difference = np.abs(product(repack(KINDS[name], blocks[0]), x, accuracy_level) - expected).max()
    assert float(difference / np.abs(expected).max()) < tolerance


@pytest.mark.parametrize(
    ("name", "bits", "block"), [("Q4_0", 4, 32), ("Q8_0", 8, 32), ("Q4_K", 4, 32), ("Q5_K", 8, 32), ("Q6_K", 8, 16)]
)
def test_repacked_weights_take_as_many_bits_as_their_levels_need(name: str, bits: int, block: int) -> None:
    packed = repack(KINDS[name], gguf_files.random_blocks((ROWS, COLUMNS), name)[0])
    assert (packed.bits, packed.block) == (bits, block)
    assert packed.packed.shape == (ROWS, COLUMNS // block, block * bits // 8)
    assert packed.scales.shape == (ROWS, COLUMNS // block)
    assert (packed.offsets is not None) == (name in ("Q4_K", "Q5_K"))
