"""ONNX graphs, built by hand from layout and format. The only file that imports onnx.

Graphs are not distributed: whoever holds the layout builds the same ones. Weights are external initializers without a
file behind them; the engine hands their memory to ONNX Runtime under these names.

Contract of a trunk layer: x [T, H], past_key and past_value [1, kv_heads, P, head_dim], past_length [1] int32 (cached
rows plus T, less 1), total_length [] int32 (cached rows plus T) -> residual [T, H], hidden [T, H] (rows that enter
experts), weights [T, k], experts [T, k] int32, present_key and present_value. Initializers: the sections of the layer,
rope_cos and rope_sin [context, head_dim / 2].
Contract of an expert: x [T, H] -> y [T, H], no gate weight inside. Contract of the head: x [T, H] -> logits [T, V].
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from sawyer.model.layout import Q4_BLOCK, FileShape, Section, expert_shape
from sawyer.schemas.models import Format, ModelLayout

OPSET: Final = 21
IR_VERSION: Final = 10
MICROSOFT: Final = "com.microsoft"
_TYPES: Final = {"f32": TensorProto.FLOAT, "u8": TensorProto.UINT8}

Value = tuple[str, int, list[int | str]]


def expert_graph(layout: ModelLayout, format: Format, *, accuracy_level: int) -> bytes:
    """One SwiGLU expert: down(silu(gate x) * up x). `accuracy_level` (q4 only): 4 multiplies in int8, 0 in float32."""
    graph = _Graph(expert_shape(layout, format).sections)
    rows = {"gate_up": (2 * layout.ffn, layout.hidden), "down": (layout.hidden, layout.ffn)}

    def linear(x: str, name: str, out: str = "") -> str:
        if format == "f32":
            return graph.linear(x, name, out=out)
        outputs, inputs = rows[name]
        return graph.op(
            "MatMulNBits", x, f"{name}.q4", f"{name}.scales", out=out, domain=MICROSOFT,
            K=inputs, N=outputs, bits=4, block_size=Q4_BLOCK, accuracy_level=accuracy_level,
        )  # fmt: skip

    gate, up = graph.split(linear("x", "gate_up"), (layout.ffn, layout.ffn))
    swish = graph.op("Mul", gate, graph.op("Sigmoid", gate))
    linear(graph.op("Mul", swish, up), "down", out="y")
    return graph.serialize(
        [("x", TensorProto.FLOAT, ["T", layout.hidden])], [("y", TensorProto.FLOAT, ["T", layout.hidden])]
    )


def head_graph(layout: ModelLayout) -> bytes:
    """The final norm and the head. Initializers: norm [H], head [V, H]."""
    graph = _Graph((Section("norm", (layout.hidden,)), Section("head", (layout.vocab, layout.hidden))))
    graph.linear(graph.rms_norm("x", "norm", float(layout.rms_eps)), "head", out="logits")
    return graph.serialize(
        [("x", TensorProto.FLOAT, ["T", layout.hidden])], [("logits", TensorProto.FLOAT, ["T", layout.vocab])]
    )


def rope_tables(layout: ModelLayout) -> dict[str, NDArray[np.float32]]:
    """rope_cos and rope_sin [context, head_dim / 2], in float32 throughout as transformers computes them."""
    exponents = np.arange(0, layout.head_dim, 2, dtype=np.float32) / np.float32(layout.head_dim)
    frequencies = np.float32(1) / np.float32(layout.rope_theta) ** exponents
    angles = np.arange(layout.context, dtype=np.float32)[:, None] * frequencies
    return {"rope_cos": np.cos(angles), "rope_sin": np.sin(angles)}


class _Graph:
    """Nodes in order, constants, and the names of external initializers."""

    def __init__(self, sections: Iterable[Section]) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers = [_external(section) for section in sections]
        self._count = 0

    def op(self, kind: str, *inputs: str, out: str = "", domain: str = "", **attributes: Any) -> str:
        """Appends a node with one output and returns the output's name."""
        return self.ops(kind, *inputs, outs=(out or self._fresh(),), domain=domain, **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, outs: tuple[str, ...], domain: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """Appends a node with several outputs."""
        self._nodes.append(helper.make_node(kind, inputs, outs, domain=domain, **attributes))
        return outs

    def constant(self, *numbers: int) -> str:
        name = self._fresh()
        self._initializers.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
        return name

    def linear(self, x: str, weights: str, *, out: str = "") -> str:
        """x [T, K] times weights [N, K] transposed."""
        return self.op("Gemm", x, weights, out=out, transB=1)

    def rms_norm(self, x: str, weights: str, eps: float, *, out: str = "") -> str:
        return self.op("SimplifiedLayerNormalization", x, weights, out=out, axis=-1, epsilon=eps, stash_type=1)

    def split(self, x: str, sizes: tuple[int, ...]) -> tuple[str, ...]:
        """Parts of the last axis."""
        return self.ops("Split", x, self.constant(*sizes), outs=tuple(self._fresh() for _ in sizes), axis=-1)

    def serialize(self, inputs: Iterable[Value], outputs: Iterable[Value]) -> bytes:
        graph = helper.make_graph(
            self._nodes,
            "sawyer",
            [helper.make_tensor_value_info(*value) for value in inputs],
            [helper.make_tensor_value_info(*value) for value in outputs],
            self._initializers,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        raw: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
        return raw

    def _fresh(self) -> str:
        self._count += 1
        return f"t{self._count}"


class TrunkLayerGraph:
    """The blocks that families make trunk layers of, over one graph with the contract's inputs and outputs."""

    def __init__(self, layout: ModelLayout, file: FileShape) -> None:
        half = (layout.context, layout.head_dim // 2)
        self._layout = layout
        self._graph = _Graph((*file.sections, Section("rope_cos", half), Section("rope_sin", half)))

    def rms_norm(self, x: str, weights: str, *, out: str = "") -> str:
        return self._graph.rms_norm(x, weights, float(self._layout.rms_eps), out=out)

    def linear(self, x: str, weights: str, *, out: str = "") -> str:
        return self._graph.linear(x, weights, out=out)

    def add(self, left: str, right: str, *, out: str = "") -> str:
        return self._graph.op("Add", left, right, out=out)

    def grouped_query_attention(self, qkv: str) -> str:
        """Causal attention with half-split RoPE over packed rows [T, (heads + 2 kv_heads) head_dim], scale d^-0.5."""
        graph, layout = self._graph, self._layout
        axis = graph.constant(0)
        batched = graph.op("Unsqueeze", qkv, axis)
        attended = graph.ops(
            "GroupQueryAttention", batched, "", "", "past_key", "past_value", "past_length", "total_length",
            "rope_cos", "rope_sin", outs=("attended", "present_key", "present_value"), domain=MICROSOFT,
            num_heads=layout.heads, kv_num_heads=layout.kv_heads, do_rotary=1, scale=layout.head_dim**-0.5,
        )[0]  # fmt: skip
        return graph.op("Squeeze", attended, axis)

    def top_k_gate(self, router_logits: str, *, renormalise: bool) -> None:
        """Softmax over all experts, then the k best. In the graph, so that ties break the same everywhere."""
        graph = self._graph
        best = "best" if renormalise else "weights"
        probabilities = graph.op("Softmax", router_logits, axis=-1)
        _, chosen = graph.ops("TopK", probabilities, graph.constant(self._layout.top_k), outs=(best, "chosen"), axis=-1)
        if renormalise:
            total = graph.op("ReduceSum", best, graph.constant(-1), keepdims=1)
            graph.op("Div", best, total, out="weights")
        graph.op("Cast", chosen, out="experts", to=TensorProto.INT32)

    def serialize(self) -> bytes:
        """The graph as ONNX bytes, with the inputs and outputs of the contract."""
        layout, real, whole = self._layout, TensorProto.FLOAT, TensorProto.INT32
        past: list[int | str] = [1, layout.kv_heads, "P", layout.head_dim]
        present: list[int | str] = [1, layout.kv_heads, "Q", layout.head_dim]
        return self._graph.serialize(
            [
                ("x", real, ["T", layout.hidden]), ("past_key", real, past), ("past_value", real, past),
                ("past_length", whole, [1]), ("total_length", whole, []),
            ],
            [
                ("residual", real, ["T", layout.hidden]), ("hidden", real, ["T", layout.hidden]),
                ("weights", real, ["T", layout.top_k]), ("experts", whole, ["T", layout.top_k]),
                ("present_key", real, present), ("present_value", real, present),
            ],
        )  # fmt: skip


def _external(section: Section) -> onnx.TensorProto:
    tensor = TensorProto(name=section.name, dims=section.shape, data_type=_TYPES[section.kind])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="memory")
    return tensor
