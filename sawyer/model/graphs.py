"""ONNX graphs, built by hand from layout and format. The only file that imports onnx.

Graphs are not distributed: whoever holds the layout builds the same ones. Weights are external initializers without a
file behind them; the engine hands their memory to ONNX Runtime under these names.

Graphs are written in float32; `stored_graph` puts in what a file's format stores instead. So nobody who writes a graph
says anything of formats.

Contract of an expert, a shared one too: x [T, H] -> y [T, H], no gate weight inside. Contract of the head: x [T, H] ->
logits [T, V]. Trunk layers are in sawyer.model.trunk_graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from sawyer.model.layout import FileShape, Section, expert_shape, head_shape, packing, shared_shape, stored_sections
from sawyer.schemas.models import Format, ModelLayout

OPSET: Final = 21
IR_VERSION: Final = 10
MICROSOFT: Final = "com.microsoft"
_TYPES: Final = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16, "u8": TensorProto.UINT8}

REAL: Final = TensorProto.FLOAT
WHOLE: Final = TensorProto.INT32
LONG: Final = TensorProto.INT64
Norm = Literal["rms", "layer"]
"""Root mean square, or LayerNorm without a bias."""
Value = tuple[str, int, list[int | str]]


def expert_graph(layout: ModelLayout, format: Format, *, accuracy_level: int, layer: int | None = None) -> bytes:
    """One SwiGLU expert: down(silu(gate x) * up x). `accuracy_level` as in `stored_graph`, `layer` as in
    `layout.expert_shape`."""
    file = expert_shape(layout, format, layer)
    graph = Graph(file.plain)
    if len(file.plain) == 2:
        graph.mlp("x", layout.ffn, out="y")
    else:
        product = graph.op("Mul", graph.swish(graph.linear("x", "gate")), graph.linear("x", "up"))
        graph.linear(product, "down", out="y")
    plain = graph.serialize([("x", REAL, ["T", layout.hidden])], [("y", REAL, ["T", layout.hidden])])
    return stored_graph(plain, file, accuracy_level=accuracy_level)


def stored_graph(plain: bytes, file: FileShape, *, accuracy_level: int) -> bytes:
    """A graph over the float32 sections of `file`, as one over its stored sections: of the same rows, with the weights
    that are stored. `accuracy_level` (q4, q8 and gguf): 4 rounds rows to int8, 0 multiplies in float32. In f16 rows are
    rounded to float16 for a product, and for nothing else."""
    changed = {section.name: section for section in file.plain if stored_sections(section, file.format) != (section,)}
    if not changed:
        return plain
    model = onnx.load_model_from_string(plain)
    graph = model.graph
    nodes = [each for node in graph.node for each in _stored_product(node, changed, file.format, accuracy_level)]
    kept = [each for each in graph.initializer if each.name not in changed]
    added = [_external(stored) for section in changed.values() for stored in stored_sections(section, file.format)]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *added])
    raw: bytes = model.SerializeToString()
    return raw


def _stored_product(
    node: onnx.NodeProto, changed: Mapping[str, Section], format: Format, accuracy_level: int
) -> list[onnx.NodeProto]:
    """The node, or what takes its place if it multiplies with stored weights."""
    if not changed.keys() & set(node.input):
        return [node]
    assert node.op_type == "Gemm", "a matrix of a file is used by Graph.linear alone"
    x, name, *bias = node.input
    (out,), packed = node.output, packing(changed[name], format)
    if packed is not None:
        (rows, columns), (levels, scales, *offsets) = changed[name].shape, stored_sections(changed[name], format)
        product = f"{out}.product" if offsets else out
        return [helper.make_node(
            "MatMulNBits", [x, levels.name, scales.name, *(["", "", *bias] if bias else [])], [product],
            domain=MICROSOFT, bits=packed.bits, K=columns, N=rows, block_size=packed.block,
            accuracy_level=accuracy_level,
        ), *_with_offsets(x, product, out, offsets, packed.block)]  # fmt: skip
    product = f"{out}.sum" if bias else out
    nodes = [
        helper.make_node("Cast", [x], [f"{out}.x"], to=TensorProto.FLOAT16),
        helper.make_node("Gemm", [f"{out}.x", name], [f"{out}.y"], transB=1),
        helper.make_node("Cast", [f"{out}.y"], [product], to=REAL),
    ]
    return [*nodes, helper.make_node("Add", [product, *bias], [out])] if bias else nodes


def _with_offsets(x: str, product: str, out: str, offsets: Sequence[Section], block: int) -> list[onnx.NodeProto]:
    """`out` is `product`, plus the sum of x over each block times its offset."""
    if not offsets:
        return []
    return [
        helper.make_node("Constant", [], [f"{out}.shape"], value_ints=[0, -1, block]),
        helper.make_node("Constant", [], [f"{out}.last"], value_ints=[2]),
        helper.make_node("Reshape", [x, f"{out}.shape"], [f"{out}.blocks"]),
        helper.make_node("ReduceSum", [f"{out}.blocks", f"{out}.last"], [f"{out}.sums"], keepdims=0),
        helper.make_node("Gemm", [f"{out}.sums", offsets[0].name, product], [out], transB=1),
    ]


def shared_graph(layout: ModelLayout, *, gated: bool) -> bytes:
    """The expert that every token passes, in float32; `gated`: times sigmoid(x shared_gate). Initializers: the sections
    of `layout.shared_shape`."""
    file = shared_shape(layout, gated=gated)
    assert file is not None, "asked for a model that has one"
    assert layout.shared_ffn is not None, "then it has a width"
    graph = Graph(file.plain)
    if not gated:
        graph.mlp("x", layout.shared_ffn, out="y")
    else:
        gate = graph.op("Sigmoid", graph.linear("x", "shared_gate"))
        graph.op("Mul", graph.mlp("x", layout.shared_ffn), gate, out="y")
    return graph.serialize([("x", REAL, ["T", layout.hidden])], [("y", REAL, ["T", layout.hidden])])


def head_graph(layout: ModelLayout, norm: Norm) -> bytes:
    """The final norm and the head. Initializers: norm [H], head [V, H]."""
    graph = Graph((Section("norm", (layout.hidden,)), *head_shape(layout).plain))
    graph.linear(graph.norm(norm, "x", "norm", float(layout.rms_eps)), "head", out="logits")
    return graph.serialize([("x", REAL, ["T", layout.hidden])], [("logits", REAL, ["T", layout.vocab])])


class Graph:
    """Nodes in order, constants, and the names of external initializers."""

    def __init__(self, sections: Iterable[Section]) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._sections = tuple(sections)
        self._initializers: list[onnx.TensorProto] = []
        self._count = 0

    def op(self, kind: str, *inputs: str, out: str = "", domain: str = "", **attributes: Any) -> str:
        """Appends a node with one output and returns the output's name."""
        return self.ops(kind, *inputs, outs=(out or self.fresh(),), domain=domain, **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, outs: tuple[str, ...], domain: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """Appends a node with several outputs."""
        self._nodes.append(helper.make_node(kind, inputs, outs, domain=domain, **attributes))
        return outs

    def constant(self, *numbers: int) -> str:
        return self._constant(np.array(numbers, np.int64))

    def index(self, number: int) -> str:
        """One int64 without an axis."""
        return self._constant(np.array(number, np.int64))

    def scalar(self, number: float) -> str:
        return self._constant(np.array(number, np.float32))

    def linear(self, x: str, weights: str, bias: str = "", *, out: str = "") -> str:
        """x [T, K] times weights [N, K] transposed, plus a bias [N]."""
        return self.op("Gemm", x, weights, *([bias] if bias else []), out=out, transB=1)

    def norm(self, kind: Norm, x: str, weights: str, eps: float, *, out: str = "") -> str:
        """Over the last axis."""
        if kind == "rms":
            return self.op("SimplifiedLayerNormalization", x, weights, out=out, axis=-1, epsilon=eps, stash_type=1)
        return self.op("LayerNormalization", x, weights, out=out, axis=-1, epsilon=eps)

    def swish_product(self, gate_up: str, width: int) -> str:
        """silu(gate) * up, of [T, 2 width]."""
        gate, up = self.split(gate_up, (width, width))
        return self.op("Mul", self.swish(gate), up)

    def swish(self, gate: str) -> str:
        """silu(gate)."""
        return self.op("Mul", gate, self.op("Sigmoid", gate))

    def mlp(self, x: str, width: int, *, out: str = "") -> str:
        """A SwiGLU MLP in float32. Initializers: gate_up [2 width, H], down [H, width]."""
        return self.linear(self.swish_product(self.linear(x, "gate_up"), width), "down", out=out)

    def reshape(self, x: str, *shape: int) -> str:
        """0 keeps an axis, -1 follows from the others."""
        return self.op("Reshape", x, self.constant(*shape))

    def split(self, x: str, sizes: tuple[int, ...]) -> tuple[str, ...]:
        """Parts of the last axis."""
        return self.ops("Split", x, self.constant(*sizes), outs=tuple(self.fresh() for _ in sizes), axis=-1)

    def takes(self, name: str) -> bool:
        """Whether a node has this input."""
        return any(name in node.input for node in self._nodes)

    def serialize(self, inputs: Iterable[Value], outputs: Iterable[Value]) -> bytes:
        """The graph as ONNX bytes, without the sections that no node takes."""
        taken = [_external(section) for section in self._sections if self.takes(section.name)]
        graph = helper.make_graph(
            self._nodes,
            "sawyer",
            [helper.make_tensor_value_info(*value) for value in inputs],
            [helper.make_tensor_value_info(*value) for value in outputs],
            [*taken, *self._initializers],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        raw: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
        return raw

    def _constant(self, array: NDArray[Any]) -> str:
        name = self.fresh()
        self._initializers.append(numpy_helper.from_array(array, name))
        return name

    def fresh(self) -> str:
        """A name that nothing has yet."""
        self._count += 1
        return f"t{self._count}"


def _external(section: Section) -> onnx.TensorProto:
    tensor = TensorProto(name=section.name, dims=section.shape, data_type=_TYPES[section.kind])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="memory")
    return tensor
