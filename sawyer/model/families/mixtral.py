"""Mixtral: RMS norm, grouped-query attention with half-split RoPE, softmax over all experts, top-k, renormalised.

Checked against transformers' MixtralForCausalLM (scripts/make_golden.py, tests/parity).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from sawyer.errors import UnsupportedModel
from sawyer.model.checkpoint import TensorRef
from sawyer.model.families.config import integer, real_text, require, token_ids
from sawyer.model.families.family import ExpertRefs, TensorMap
from sawyer.model.graphs import Norm
from sawyer.model.layout import FileShape, Section, all_experts
from sawyer.model.trunk_graph import TrunkLayerGraph
from sawyer.schemas.models import ModelLayout

DEFAULT_THETA: Final = 1_000_000.0
"""MixtralConfig's own default, for files that name no theta."""
HEAD_DIM_STEP: Final = 16
"""The rotary kernel of ONNX Runtime's GroupQueryAttention takes head sizes in steps of this."""


class Mixtral:
    """`MixtralForCausalLM`, in hub names or with the fused experts that newer tools save."""

    name: str = "mixtral"
    norm: Norm = "rms"
    gated_shared: bool = False

    def layout(self, config: Mapping[str, Any]) -> ModelLayout:
        require(config, "hidden_act", None, "silu")
        require(config, "attention_bias", None, False)
        hidden, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
        layers = integer(config, "num_hidden_layers")
        bos = token_ids(config, "bos_token_id")
        layout = ModelLayout(
            family=self.name,
            vocab=integer(config, "vocab_size"),
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=integer(config, "num_key_value_heads", heads),
            head_dim=integer(config, "head_dim", max(1, hidden // heads)),
            ffn=integer(config, "intermediate_size"),
            experts=integer(config, "num_local_experts"),
            top_k=integer(config, "num_experts_per_tok"),
            context=_context(config),
            moe_layers=tuple(range(layers)),
            rms_eps=real_text(config, "rms_norm_eps", 1e-5),
            rope_theta=_rope_theta(config),
            eos=token_ids(config, "eos_token_id"),
            bos=bos[0] if bos else None,
        )
        self.check(layout)
        return layout

    def check(self, layout: ModelLayout) -> None:
        facts = (
            (layout.family == self.name, f"family is {layout.family}"),
            (layout.heads % layout.kv_heads == 0, f"{layout.heads} heads over {layout.kv_heads} key-value heads"),
            (layout.head_dim % HEAD_DIM_STEP == 0, f"head size {layout.head_dim}, not a multiple of {HEAD_DIM_STEP}"),
            (layout.top_k <= layout.experts, f"top {layout.top_k} of {layout.experts} experts"),
            (_is_range(layout.moe_layers, layout.layers), "a layer without experts"),
        )
        for holds, problem in facts:
            if not holds:
                raise UnsupportedModel(f"not a Mixtral that can be computed: {problem}")

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        require(config, "tie_word_embeddings", None, False, True)
        return bool(config.get("tie_word_embeddings"))

    def tensors(self, layout: ModelLayout, names: Collection[str], *, tied: bool) -> TensorMap:
        ignored = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(layout.layers)}
        if tied:
            ignored.add("lm_head.weight")
        return TensorMap(
            embed=TensorRef.all_of("model.embed_tokens.weight", layout.vocab, layout.hidden),
            norm=TensorRef.all_of("model.norm.weight", layout.hidden),
            head=None if tied else TensorRef.all_of("lm_head.weight", layout.vocab, layout.hidden),
            layers=tuple(_layer(layout, layer, names) for layer in range(layout.layers)),
            experts={(layer, expert): _expert(layout, layer, expert, names) for layer, expert in all_experts(layout)},
            ignored=frozenset(ignored),
        )

    def trunk_layer(self, layout: ModelLayout, layer: int) -> FileShape:  # noqa: ARG002 (all layers are alike)
        hidden, width = layout.hidden, layout.heads * layout.head_dim
        return FileShape(
            (
                Section("input_norm", (hidden,)),
                Section("qkv", (width + 2 * layout.kv_heads * layout.head_dim, hidden)),
                Section("attention_out", (hidden, width)),
                Section("post_norm", (hidden,)),
                Section("gate", (layout.experts, hidden)),
            )
        )

    def trunk_graph(self, layout: ModelLayout, layer: int) -> bytes:
        graph = TrunkLayerGraph(layout, self.trunk_layer(layout, layer))
        normed = graph.norm("x", "input_norm")
        attended = graph.grouped_query_attention(graph.linear(normed, "qkv"))
        graph.add("x", graph.linear(attended, "attention_out"), out="residual")
        graph.norm("residual", "post_norm", out="hidden")
        graph.gate(graph.linear("hidden", "gate"), norm=1)
        return graph.serialize()


def _is_range(numbers: tuple[int, ...], end: int) -> bool:
    return len(numbers) == end and all(number == n for n, number in enumerate(numbers))


def _context(config: Mapping[str, Any]) -> int:
    """Beyond a sliding window the model attends locally, which the trunk does not: the window is the context then."""
    context = integer(config, "max_position_embeddings")
    return min(context, integer(config, "sliding_window", context))


def _rope_theta(config: Mapping[str, Any]) -> str:
    """From `rope_parameters` (new files) or from `rope_theta` beside `rope_scaling` (hub files)."""
    require(config, "rope_scaling", None)
    require(config, "partial_rotary_factor", None, 1, 1.0)
    parameters = config.get("rope_parameters")
    if parameters is None:
        return real_text(config, "rope_theta", DEFAULT_THETA)
    if not isinstance(parameters, dict) or not parameters.keys() <= {"rope_theta", "rope_type"}:
        raise UnsupportedModel(f"config.json: rope_parameters {parameters!r} hold more than a theta")
    require(parameters, "rope_type", None, "default")
    return real_text(parameters, "rope_theta", DEFAULT_THETA)


def _layer(layout: ModelLayout, layer: int, names: Collection[str]) -> dict[str, tuple[TensorRef, ...]]:
    prefix = f"model.layers.{layer}."
    hidden, width, kv_width = layout.hidden, layout.heads * layout.head_dim, layout.kv_heads * layout.head_dim
    gates = (f"{prefix}block_sparse_moe.gate.weight", f"{prefix}mlp.gate.weight")
    gate = gates[1] if gates[1] in names else gates[0]
    return {
        "input_norm": (TensorRef.all_of(f"{prefix}input_layernorm.weight", hidden),),
        "qkv": tuple(
            TensorRef.all_of(f"{prefix}self_attn.{part}_proj.weight", rows, hidden)
            for part, rows in (("q", width), ("k", kv_width), ("v", kv_width))
        ),
        "attention_out": (TensorRef.all_of(f"{prefix}self_attn.o_proj.weight", hidden, width),),
        "post_norm": (TensorRef.all_of(f"{prefix}post_attention_layernorm.weight", hidden),),
        "gate": (TensorRef.all_of(gate, layout.experts, hidden),),
    }


def _expert(layout: ModelLayout, layer: int, expert: int, names: Collection[str]) -> ExpertRefs:
    hidden, ffn, prefix = layout.hidden, layout.ffn, f"model.layers.{layer}."
    fused = f"{prefix}mlp.experts.gate_up_proj"
    if fused in names:
        whole, part = (layout.experts, 2 * ffn, hidden), ffn * hidden
        return ExpertRefs(
            gate=TensorRef(fused, whole, (ffn, hidden), 2 * expert * part),
            up=TensorRef(fused, whole, (ffn, hidden), (2 * expert + 1) * part),
            down=TensorRef(
                f"{prefix}mlp.experts.down_proj", (layout.experts, hidden, ffn), (hidden, ffn), expert * part
            ),
        )
    own = f"{prefix}block_sparse_moe.experts.{expert}."
    return ExpertRefs(
        gate=TensorRef.all_of(f"{own}w1.weight", ffn, hidden),
        up=TensorRef.all_of(f"{own}w3.weight", ffn, hidden),
        down=TensorRef.all_of(f"{own}w2.weight", hidden, ffn),
    )
