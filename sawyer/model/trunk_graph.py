"""Trunk layers as ONNX: the blocks that families make them of. Three graphs a layer, so that the matrices can be
multiplied with rows of many sequences at once while each sequence attends over its own past.

Contract of `project`: x [T, H] -> rows [T, W], all that attention takes of them. With latent attention also places [T]
int64, the position of each row.
Contract of `attention`, which has no weights and is one for all layers, over T rows of one sequence:
grouped-query: rows [1, T, W], past_key and past_value [1, kv_heads, P, head_dim], past_length [1] int32 (cached rows
plus T, less 1) and total_length [] int32 (cached rows plus T) -> attended [1, T, A], present_key and present_value;
latent: rows [T, W], of which the last kv_rank + rope_dim columns are what the cache keeps (a latent, and a key that was
rotated), and past_rows [P, kv_rank + rope_dim], the cached ones -> attended [T, A].
Contract of `finish`: x [T, H], attended [T, A] -> of a layer with experts residual [T, H] (the experts' sum is added to
it), hidden [T, H] (rows that enter experts), weights [T, k], experts [T, k] int32; of a layer without: residual alone.
Contract of `gate`, the end of `finish` for whoever has only its hidden rows: hidden [T, H] -> weights, experts,
the same bits.
Whichever rotates takes rope_cos and rope_sin [context, rotated dims / 2], the same in every run and layer: as inputs,
because ONNX Runtime would copy them into each session (42 MB a layer of DeepSeek-V2). Initializers: the sections of the
layer, each in one graph alone, for each graph has a copy of its own.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sawyer.model.graphs import LONG, MICROSOFT, REAL, WHOLE, Graph, Norm, Value
from sawyer.model.layout import FileShape
from sawyer.schemas.models import LatentAttention, ModelLayout, Yarn

LATENT_NORM_EPS: Final = 1e-6
"""Of DeepSeek's norms inside attention, whatever rms_norm_eps says."""


def rope_dim(layout: ModelLayout) -> int:
    """How many dimensions of a head are rotated."""
    return layout.latent.rope_dim if layout.latent is not None else layout.head_dim


def rope_tables(layout: ModelLayout) -> dict[str, NDArray[np.float32]]:
    """rope_cos and rope_sin [context, rotated dims / 2], in float32 throughout as transformers computes them."""
    dim = rope_dim(layout)
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies = np.float32(1) / np.float32(layout.rope_theta) ** exponents
    stretch = np.float32(1)
    if layout.yarn is not None:
        frequencies = _stretched(frequencies, float(layout.rope_theta), layout.yarn)
        stretch = np.float32(_attention_factor(layout.yarn))
    angles = np.arange(layout.context, dtype=np.float32)[:, None] * frequencies
    return {"rope_cos": np.cos(angles) * stretch, "rope_sin": np.sin(angles) * stretch}


def yarn_scale(factor: float, mscale: float) -> float:
    """How much sharper attention has to be over a context that is `factor` times as long."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _attention_factor(yarn: Yarn) -> float:
    factor = float(yarn.factor)
    if yarn.mscale is not None and yarn.mscale_all_dim is not None:
        return yarn_scale(factor, float(yarn.mscale)) / yarn_scale(factor, float(yarn.mscale_all_dim))
    return yarn_scale(factor, 1.0)


def _stretched(frequencies: NDArray[np.float32], theta: float, yarn: Yarn) -> NDArray[np.float32]:
    """Fast dimensions stay, slow ones are interpolated, and between there is a ramp."""
    half = len(frequencies)

    def turning(rotations: float) -> float:
        return 2 * half * math.log(yarn.original_context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(turning(float(yarn.beta_fast))), 0)
    high = min(math.ceil(turning(float(yarn.beta_slow))), 2 * half - 1)
    span = np.float32(high - low if high != low else 0.001)
    ramp = np.clip((np.arange(half, dtype=np.float32) - np.float32(low)) / span, 0, 1)
    stretched: NDArray[np.float32] = frequencies / np.float32(float(yarn.factor)) * ramp + frequencies * (1 - ramp)
    return stretched


class LayerPart(NamedTuple):
    """A graph in float32, and those sections of the layer's file that it takes."""

    graph: bytes
    file: FileShape


class LayerGraphs(NamedTuple):
    """A layer in its three steps, and its gate alone; None of a layer without experts."""

    project: LayerPart
    attention: bytes
    finish: LayerPart
    gate: LayerPart | None


class TrunkLayerGraph:
    """`project` or `finish` of a layer. For the first, end with `rows` or `latent_rows`; for the second, begin with
    `attended` or `attended_latents` and end with `end_with_gate` or `end_with_mlp`. Then `part`. For the gate alone:
    `gate_part`."""

    def __init__(self, layout: ModelLayout, file: FileShape, *, norm: Norm = "rms") -> None:
        self._layout = layout
        self._file = file
        self._norm = norm
        self._graph = Graph(file.plain)
        self._inputs: list[Value] = [("x", REAL, ["T", layout.hidden])]
        self._outputs: list[Value] = []

    def norm(self, x: str, weights: str, *, out: str = "") -> str:
        return self._graph.norm(self._norm, x, weights, float(self._layout.rms_eps), out=out)

    def linear(self, x: str, weights: str, bias: str = "", *, out: str = "") -> str:
        return self._graph.linear(x, weights, bias, out=out)

    def add(self, left: str, right: str, *, out: str = "") -> str:
        return self._graph.op("Add", left, right, out=out)

    def clip(self, x: str) -> str:
        """To the layout's clip_qkv, both ways; nothing without one."""
        if self._layout.clip_qkv is None:
            return x
        limit = float(self._layout.clip_qkv)
        return self._graph.op("Clip", x, self._graph.scalar(-limit), self._graph.scalar(limit))

    def split_qkv(self, qkv: str) -> tuple[str, ...]:
        """[T, (heads + 2 kv_heads) head_dim] -> queries, keys, values."""
        layout = self._layout
        kv_width = layout.kv_heads * layout.head_dim
        return self._graph.split(qkv, (layout.heads * layout.head_dim, kv_width, kv_width))

    def head_norm(self, x: str, weights: str, heads: int) -> str:
        """Each head of [T, heads head_dim] normed by itself, with one weight [head_dim] for all."""
        by_head = self._graph.reshape(x, -1, self._layout.head_dim)
        return self._graph.reshape(self.norm(by_head, weights), -1, heads * self._layout.head_dim)

    def rows(self, *parts: str) -> None:
        """What `grouped_query_attention` takes in: queries, keys and values, side by side already or not."""
        if len(parts) == 1:
            self._graph.op("Identity", *parts, out="rows")
        else:
            self._graph.op("Concat", *parts, out="rows", axis=-1)
        self._outputs.append(("rows", REAL, ["T", _packed_width(self._layout)]))

    def split_low_queries(self, compressed: str, rank: int) -> tuple[str, str]:
        """[T, kv_rank + rope + rank] -> what `latent_rows` takes, and what queries are made of. Initializer:
        query_norm [rank]."""
        sizes = _latent(self._layout)
        compressed, low = self._graph.split(compressed, (sizes.kv_rank + sizes.rope_dim, rank))
        return compressed, self._graph.norm("rms", low, "query_norm", LATENT_NORM_EPS)

    def latent_rows(self, queries: str, compressed: str) -> None:
        """What `latent_attention` takes in: queries brought to the cached rows (the absorbed form: no key or value of
        any head is ever made), and the new row itself. `queries` [T, heads nope + heads rope], all heads without a
        position first; `compressed` [T, kv_rank + rope]. Initializers: latent_norm [kv_rank], to_keys [heads, nope,
        kv_rank]."""
        graph, layout, sizes = self._graph, self._layout, _latent(self._layout)
        heads = layout.heads
        plain, turning = graph.split(queries, (heads * sizes.nope_dim, heads * sizes.rope_dim))
        latent, key = graph.split(compressed, (sizes.kv_rank, sizes.rope_dim))
        turned = self._rotated(graph.op("Concat", turning, key, axis=-1), heads + 1)
        turning, key = graph.split(turned, (heads * sizes.rope_dim, sizes.rope_dim))
        latent = graph.norm("rms", latent, "latent_norm", LATENT_NORM_EPS)
        absorbed = self._times_by_head("MatMul", self._by_head(plain, sizes.nope_dim), "to_keys")
        absorbed = graph.op("Transpose", absorbed, perm=[1, 0, 2])
        turning = graph.reshape(turning, -1, heads, sizes.rope_dim)
        width = sizes.kv_rank + sizes.rope_dim
        asking = graph.reshape(graph.op("Concat", absorbed, turning, axis=-1), -1, heads * width)
        graph.op("Concat", asking, latent, key, axis=-1, out="rows")
        self._inputs += [("places", LONG, ["T"]), *_rope_inputs(layout)]
        self._outputs.append(("rows", REAL, ["T", (heads + 1) * width]))

    def attended(self) -> str:
        """What `grouped_query_attention` gave, [T, heads head_dim]."""
        self._inputs.append(("attended", REAL, ["T", self._layout.heads * self._layout.head_dim]))
        return "attended"

    def attended_latents(self) -> str:
        """What `latent_attention` gave, as values: [T, heads value]. Initializer: to_values [heads, value, kv_rank]."""
        graph, heads, sizes = self._graph, self._layout.heads, _latent(self._layout)
        self._inputs.append(("attended", REAL, ["T", heads * sizes.kv_rank]))
        by_head = self._by_head("attended", sizes.kv_rank)
        values = self._times_by_head("FusedMatMul", by_head, "to_values", domain=MICROSOFT, transB=1)
        return graph.reshape(graph.op("Transpose", values, perm=[1, 0, 2]), -1, heads * sizes.value_dim)

    def end_with_gate(self, attended: str, *, power: float | None) -> None:
        """Of a layer with experts: what attention adds [T, H], then norm and `gate`. Initializers: post_norm [H], gate
        [E, H]."""
        self.add("x", attended, out="residual")
        self._outputs.append(("residual", REAL, ["T", self._layout.hidden]))
        self.norm("residual", "post_norm", out="hidden")
        self._outputs.append(("hidden", REAL, ["T", self._layout.hidden]))
        self.gate(self.linear("hidden", "gate"), norm=power)

    def gate_part(self, *, power: float | None) -> LayerPart:
        """The whole graph of `gate`. Initializer: gate [E, H]."""
        self._inputs = [("hidden", REAL, ["T", self._layout.hidden])]
        self.gate(self.linear("hidden", "gate"), norm=power)
        return self.part()

    def end_with_mlp(self, attended: str, width: int) -> None:
        """Of a layer without experts. Initializers: post_norm [H], gate_up [2 width, H], down [H, width]."""
        residual = self.add("x", attended)
        self.add(residual, self._graph.mlp(self.norm(residual, "post_norm"), width), out="residual")
        self._outputs.append(("residual", REAL, ["T", self._layout.hidden]))

    def gate(self, router_logits: str, *, norm: float | None) -> None:
        """Softmax over all experts, then the k best, divided by their `norm`-norm (1: their sum; None: left as they
        are), times the layout's gate_scale. In the graph, so that ties break the same everywhere."""
        graph, layout = self._graph, self._layout
        probabilities = self._from_best_groups(graph.op("Softmax", router_logits, axis=-1))
        best, chosen = graph.ops(
            "TopK", probabilities, graph.constant(layout.top_k), outs=(graph.fresh(), graph.fresh()), axis=-1
        )
        if norm is not None:
            powers = best if norm == 1 else graph.op("Pow", best, graph.scalar(norm))
            total = graph.op("ReduceSum", powers, graph.constant(-1), keepdims=1)
            best = graph.op("Div", best, total if norm == 1 else graph.op("Pow", total, graph.scalar(1 / norm)))
        if layout.gate_scale is not None:
            best = graph.op("Mul", best, graph.scalar(float(layout.gate_scale)))
        graph.op("Identity", best, out="weights")
        graph.op("Cast", chosen, out="experts", to=WHOLE)
        top_k: list[int | str] = ["T", layout.top_k]
        self._outputs += [("weights", REAL, top_k), ("experts", WHOLE, top_k)]

    def part(self) -> LayerPart:
        """The graph, with the sections that it takes."""
        sections = tuple(each for each in self._file.plain if self._graph.takes(each.name))
        return LayerPart(self._graph.serialize(self._inputs, self._outputs), FileShape(sections))

    def _from_best_groups(self, probabilities: str) -> str:
        """Probabilities [T, E] with those of all but the best groups set to 0."""
        graph, layout = self._graph, self._layout
        if layout.gate_groups is None:
            return probabilities
        groups = layout.gate_groups
        grouped = graph.reshape(probabilities, -1, groups.groups, layout.experts // groups.groups)
        best = graph.op("ReduceMax", grouped, graph.constant(-1), keepdims=0)
        _, chosen = graph.ops("TopK", best, graph.constant(groups.top), outs=(graph.fresh(), graph.fresh()), axis=-1)
        zeros = graph.op("Sub", best, best)
        ones = graph.op("Add", graph.op("GatherElements", zeros, chosen, axis=1), graph.scalar(1.0))
        mask = graph.op("Unsqueeze", graph.op("ScatterElements", zeros, chosen, ones, axis=1), graph.constant(-1))
        return graph.reshape(graph.op("Mul", grouped, mask), -1, layout.experts)

    def _times_by_head(self, kind: str, x: str, weights: str, **attributes: Any) -> str:
        """[heads, T, K] times one matrix a head. ONNX Runtime does not prepack matrices with three axes, and multiplies
        a lone row with those otherwise than many, to other last bits: so one row goes in twice."""
        graph = self._graph
        first, axis = graph.constant(0), graph.constant(1)
        again = graph.op("Slice", x, first, axis, axis)
        product = graph.op(kind, graph.op("Concat", x, again, axis=1), weights, **attributes)
        return graph.op("Slice", product, first, graph.constant(-1), axis)

    def _by_head(self, x: str, width: int) -> str:
        """[T, heads width] -> [heads, T, width]."""
        return self._graph.op("Transpose", self._graph.reshape(x, -1, self._layout.heads, width), perm=[1, 0, 2])

    def _rotated(self, x: str, heads: int) -> str:
        """[T, heads rope_dim], each row as its place says, pairs interleaved."""
        width = heads * _latent(self._layout).rope_dim
        turned = self._graph.op(
            "RotaryEmbedding", self._graph.reshape(x, 1, -1, width), self._graph.reshape("places", 1, -1),
            "rope_cos", "rope_sin", domain=MICROSOFT, interleaved=1,
        )  # fmt: skip
        return self._graph.reshape(turned, -1, width)


def grouped_query_attention(layout: ModelLayout) -> bytes:
    """Causal attention with half-split RoPE, scale d^-0.5."""
    graph = Graph(())
    graph.ops(
        "GroupQueryAttention", "rows", "", "", "past_key", "past_value", "past_length", "total_length",
        "rope_cos", "rope_sin", outs=("attended", "present_key", "present_value"), domain=MICROSOFT,
        num_heads=layout.heads, kv_num_heads=layout.kv_heads, do_rotary=1, scale=layout.head_dim**-0.5,
    )  # fmt: skip
    past: list[int | str] = [1, layout.kv_heads, "P", layout.head_dim]
    present: list[int | str] = [1, layout.kv_heads, "Q", layout.head_dim]
    inputs: list[Value] = [
        ("rows", REAL, [1, "T", _packed_width(layout)]), ("past_key", REAL, past), ("past_value", REAL, past),
        ("past_length", WHOLE, [1]), ("total_length", WHOLE, []), *_rope_inputs(layout),
    ]  # fmt: skip
    outputs: list[Value] = [
        ("attended", REAL, [1, "T", layout.heads * layout.head_dim]),
        ("present_key", REAL, present), ("present_value", REAL, present),
    ]  # fmt: skip
    return graph.serialize(inputs, outputs)


def latent_attention(layout: ModelLayout) -> bytes:
    """Multi-head latent attention in its absorbed form, causal: the shares of each head of the latents themselves. The
    past, which is long, is read where it stands: what is put together are the scores, and the products are of such a
    shape that ONNX Runtime need not rearrange it for the first of them."""
    graph, heads, sizes = Graph(()), layout.heads, _latent(layout)
    width = sizes.kv_rank + sizes.rope_dim
    asking, new_rows = graph.split("rows", (heads * width, width))
    by_head = graph.op("Transpose", graph.reshape(asking, -1, heads, width), perm=[1, 0, 2])
    scaled = graph.op("Mul", graph.reshape(by_head, -1, width), graph.scalar(_latent_scale(layout)))
    turned = graph.op("Transpose", scaled, perm=[1, 0])
    new = _causal(graph, graph.reshape(graph.op("MatMul", new_rows, turned), 0, heads, -1), new_rows)
    scores = graph.op("Concat", graph.op("MatMul", "past_rows", turned), new, axis=0)
    shares = graph.op("Softmax", graph.op("Transpose", scores, perm=[1, 0]), axis=-1)
    lengths = [graph.op("Shape", rows, start=0, end=1) for rows in ("past_rows", new_rows)]
    ends = graph.op("Concat", *lengths, axis=0)
    past, own = graph.ops("Split", shares, ends, outs=(graph.fresh(), graph.fresh()), axis=-1)
    attended = graph.op("Add", graph.op("MatMul", past, "past_rows"), graph.op("MatMul", own, new_rows))
    latent, _ = graph.split(graph.reshape(attended, heads, -1, width), (sizes.kv_rank, sizes.rope_dim))
    by_row = graph.op("Transpose", latent, perm=[1, 0, 2])
    graph.op("Reshape", by_row, graph.constant(-1, heads * sizes.kv_rank), out="attended")
    return graph.serialize(
        [("rows", REAL, ["T", (heads + 1) * width]), ("past_rows", REAL, ["P", width])],
        [("attended", REAL, ["T", heads * sizes.kv_rank])],
    )


def _causal(graph: Graph, scores: str, new_rows: str) -> str:
    """Of the new rows among themselves: [T keys, heads, T queries] -> [T, heads T]. None sees a later one."""
    count = graph.op("Squeeze", graph.op("Shape", new_rows, start=0, end=1), graph.constant(0))
    rows = graph.op("Range", graph.index(0), count, graph.index(1))
    seen = graph.op("LessOrEqual", graph.op("Unsqueeze", rows, graph.constant(1, 2)), rows)
    return graph.reshape(graph.op("Where", seen, scores, graph.scalar(-math.inf)), 0, -1)


def _rope_inputs(layout: ModelLayout) -> list[Value]:
    half: list[int | str] = [layout.context, rope_dim(layout) // 2]
    return [("rope_cos", REAL, half), ("rope_sin", REAL, half)]


def _packed_width(layout: ModelLayout) -> int:
    return (layout.heads + 2 * layout.kv_heads) * layout.head_dim


def _latent(layout: ModelLayout) -> LatentAttention:
    assert layout.latent is not None, "its family says that there are latents"
    return layout.latent


def _latent_scale(layout: ModelLayout) -> float:
    sizes, yarn = _latent(layout), layout.yarn
    scale: float = (sizes.nope_dim + sizes.rope_dim) ** -0.5
    if yarn is not None and yarn.mscale_all_dim is not None:
        scale *= yarn_scale(float(yarn.factor), float(yarn.mscale_all_dim)) ** 2
    return scale
