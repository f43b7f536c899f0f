"""Trunk layers as ONNX: the blocks that families make them of. Attention, then gate or dense MLP.

Contract, inputs of all: x [T, H]. Outputs of a layer with experts: residual [T, H] (the experts' sum is added to it),
hidden [T, H] (rows that enter experts), weights [T, k], experts [T, k] int32; of a layer without: residual alone.
Grouped-query attention takes past_key and past_value [1, kv_heads, P, head_dim], past_length [1] int32 (cached rows
plus T, less 1) and total_length [] int32 (cached rows plus T), and gives present_key and present_value.
Latent attention takes past_latent [P, kv_rank] and past_rope [P, rope_dim], the cached rows, and gives new_latent and
new_rope, the T rows that follow them.
Initializers: the sections of the layer, rope_cos and rope_sin [context, rotated dims / 2].
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sawyer.model.graphs import MICROSOFT, REAL, WHOLE, Graph, Norm, Value
from sawyer.model.layout import FileShape, Section
from sawyer.schemas.models import ModelLayout, Yarn

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


class TrunkLayerGraph:
    """One graph with the contract's inputs and outputs. Call an attention, then `gate` or `serialize` for a dense
    layer."""

    def __init__(self, layout: ModelLayout, file: FileShape, *, norm: Norm = "rms") -> None:
        half = (layout.context, rope_dim(layout) // 2)
        self._layout = layout
        self._norm = norm
        self._graph = Graph((*file.sections, Section("rope_cos", half), Section("rope_sin", half)))
        self._inputs: list[Value] = [("x", REAL, ["T", layout.hidden])]
        self._outputs: list[Value] = [("residual", REAL, ["T", layout.hidden])]

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

    def grouped_query_attention(self, query: str, key: str = "", value: str = "") -> str:
        """Causal attention with half-split RoPE, scale d^-0.5, over queries, keys and values, or over packed rows
        [T, (heads + 2 kv_heads) head_dim]."""
        graph, layout = self._graph, self._layout
        axis = graph.constant(0)
        batched = [graph.op("Unsqueeze", each, axis) if each else "" for each in (query, key, value)]
        attended = graph.ops(
            "GroupQueryAttention", *batched, "past_key", "past_value", "past_length", "total_length",
            "rope_cos", "rope_sin", outs=("attended", "present_key", "present_value"), domain=MICROSOFT,
            num_heads=layout.heads, kv_num_heads=layout.kv_heads, do_rotary=1, scale=layout.head_dim**-0.5,
        )[0]  # fmt: skip
        past: list[int | str] = [1, layout.kv_heads, "P", layout.head_dim]
        present: list[int | str] = [1, layout.kv_heads, "Q", layout.head_dim]
        self._inputs += [("past_key", REAL, past), ("past_value", REAL, past)]
        self._inputs += [("past_length", WHOLE, [1]), ("total_length", WHOLE, [])]
        self._outputs += [("present_key", REAL, present), ("present_value", REAL, present)]
        return graph.op("Squeeze", attended, axis)

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
        self._outputs += [
            ("hidden", REAL, ["T", layout.hidden]), ("weights", REAL, ["T", layout.top_k]),
            ("experts", WHOLE, ["T", layout.top_k]),
        ]  # fmt: skip

    def mlp(self, x: str, width: int) -> str:
        """Of a layer without experts. Initializers: gate_up [2 width, H], down [H, width]."""
        return self._graph.mlp(x, width)

    def serialize(self) -> bytes:
        """The graph as ONNX bytes."""
        return self._graph.serialize(self._inputs, self._outputs)

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

    def latent_attention(self, queries: str, compressed: str) -> str:
        """Multi-head latent attention in its absorbed form, causal: scores against the cached latents themselves, and
        no key or value of any head is ever made. `queries` [T, heads (nope + rope)]; `compressed` [T, kv_rank + rope].
        Initializers: latent_norm [kv_rank], kv_b [heads, nope + value, kv_rank]. -> [T, heads value_dim]."""
        graph, layout, sizes = self._graph, self._layout, self._layout.latent
        assert sizes is not None, "its family says that there are latents"
        latent, rotary = graph.split(compressed, (sizes.kv_rank, sizes.rope_dim))
        latent = graph.norm("rms", latent, "latent_norm", LATENT_NORM_EPS, out="new_latent")
        past = graph.op("Shape", "past_latent", start=0, end=1)
        keys = self._rotated(graph.reshape(rotary, 1, 1, -1, sizes.rope_dim), past)
        graph.op("Identity", graph.reshape(keys, -1, sizes.rope_dim), out="new_rope")
        heads = graph.reshape(queries, -1, layout.heads, sizes.nope_dim + sizes.rope_dim)
        plain, turned = graph.split(graph.op("Transpose", heads, perm=[1, 0, 2]), (sizes.nope_dim, sizes.rope_dim))
        turned = graph.op("Squeeze", self._rotated(graph.op("Unsqueeze", turned, graph.constant(0)), past),
                          graph.constant(0))  # fmt: skip
        to_keys, to_values = graph.ops(
            "Split",
            "kv_b",
            graph.constant(sizes.nope_dim, sizes.value_dim),
            outs=(graph.fresh(), graph.fresh()),
            axis=1,
        )
        latents = graph.op("Concat", "past_latent", latent, axis=0)
        ropes = graph.op("Concat", "past_rope", "new_rope", axis=0)
        scores = graph.op(
            "Add",
            graph.op("MatMul", graph.op("MatMul", plain, to_keys), graph.op("Transpose", latents, perm=[1, 0])),
            graph.op("MatMul", turned, graph.op("Transpose", ropes, perm=[1, 0])),
        )
        scores = self._causal(graph.op("Mul", scores, graph.scalar(self._latent_scale())), past)
        attended = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), latents)
        values = graph.op("MatMul", attended, graph.op("Transpose", to_values, perm=[0, 2, 1]))
        self._inputs += [("past_latent", REAL, ["P", sizes.kv_rank]), ("past_rope", REAL, ["P", sizes.rope_dim])]
        self._outputs += [("new_latent", REAL, ["T", sizes.kv_rank]), ("new_rope", REAL, ["T", sizes.rope_dim])]
        return graph.reshape(graph.op("Transpose", values, perm=[1, 0, 2]), -1, layout.heads * sizes.value_dim)

    def _latent_scale(self) -> float:
        layout, sizes = self._layout, self._layout.latent
        assert sizes is not None, "its family says that there are latents"
        scale: float = (sizes.nope_dim + sizes.rope_dim) ** -0.5
        if layout.yarn is not None and layout.yarn.mscale_all_dim is not None:
            scale *= yarn_scale(float(layout.yarn.factor), float(layout.yarn.mscale_all_dim)) ** 2
        return scale

    def _rotated(self, x: str, past: str) -> str:
        """[1, heads, T, rope_dim], from position `past` on, pairs interleaved."""
        return self._graph.op(
            "RotaryEmbedding", x, past, "rope_cos", "rope_sin", domain=MICROSOFT, interleaved=1
        )  # fmt: skip

    def _causal(self, scores: str, past: str) -> str:
        """[heads, T, P + T]: row t sees the cached rows and the new ones up to itself."""
        graph = self._graph
        total = graph.op("Shape", scores, start=2, end=3)
        scalar = graph.constant(0)
        first, end = graph.op("Squeeze", past, scalar), graph.op("Squeeze", total, scalar)
        step, zero = graph.index(1), graph.index(0)
        rows = graph.op("Unsqueeze", graph.op("Range", first, end, step), graph.constant(1))
        seen = graph.op("LessOrEqual", graph.op("Range", zero, end, step), rows)
        return graph.op("Where", seen, scores, graph.scalar(-math.inf))
