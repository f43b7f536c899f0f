"""DeepSeek-V2 and DeepSeek-V2-Lite: RMS norm, multi-head latent attention with interleaved RoPE and YaRN, softmax over
all experts, top-k among all or among the best groups, not renormalised, a shared expert, first layers without experts.

Checked against transformers' DeepseekV2ForCausalLM (scripts/make_golden.py, tests/parity). DeepSeek's own code, which
comes with the checkpoints, differs from it in places; a config for which the two disagree is refused:
- `norm_topk_prob`: DeepSeek's code then renormalises and does not scale, transformers scales and does not renormalise;
- `mscale` without `mscale_all_dim` or the other way round: DeepSeek's code reads the missing one as 1 or 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from sawyer.errors import UnsupportedModel
from sawyer.model.checkpoint import TensorRef
from sawyer.model.families.config import ends, flag, integer, real_text, require, section
from sawyer.model.families.family import Sections, TensorMap
from sawyer.model.families.grouped import OPTIONS, ExpertNames, expert_refs, mlp_refs
from sawyer.model.graphs import Norm
from sawyer.model.layout import FileShape, Section, all_experts, mlp_sections
from sawyer.model.trunk_graph import LayerGraphs, TrunkLayerGraph, latent_attention
from sawyer.schemas.models import GateGroups, LatentAttention, ModelLayout, Yarn
from sawyer.schemas.tensors import MAX_HIDDEN, MAX_LAYERS

DEFAULT_THETA: Final = 10_000.0
"""For files that name no theta."""
MAX_HEADS: Final = 1024
MAX_HEAD_DIM: Final = 1024
"""Of a part of a head."""
MAX_ROTATED: Final = 256
"""Of a head's dimensions: there is a table of them for every position of the context."""
_OPTIONS: Final = frozenset({"dense_ffn", "shared_ffn", "gate_scale", "gate_groups", "latent", "yarn"})
"""The fields that its layouts may have, and may do without."""
_YARN_FIELDS: Final = frozenset({"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale",
                                 "mscale_all_dim"})  # fmt: skip
_THETA_RANGE: Final = (1.0001, 1e12)
_SCALE_RANGE: Final = (1e-6, 1e6)
"""Of everything else that is multiplied or divided by: no product of them leaves float32."""


class DeepseekV2:
    """`DeepseekV2ForCausalLM`, in hub names or with the fused experts that newer tools may save."""

    name: str = "deepseek_v2"
    norm: Norm = "rms"
    gated_shared: bool = False

    def layout(self, config: Mapping[str, Any]) -> ModelLayout:
        _require_known(config)
        heads, layers = integer(config, "num_attention_heads"), integer(config, "num_hidden_layers", most=MAX_LAYERS)
        theta, yarn = _rope(config)
        latent = _latent(config)
        dense = 0 if config.get("first_k_dense_replace") in (None, 0) else integer(config, "first_k_dense_replace")
        ffn, scale = integer(config, "moe_intermediate_size"), real_text(config, "routed_scaling_factor", 1.0)
        shared = None if config.get("n_shared_experts") is None else integer(config, "n_shared_experts") * ffn
        layout = ModelLayout(
            family=self.name,
            vocab=integer(config, "vocab_size"),
            hidden=integer(config, "hidden_size"),
            layers=layers,
            heads=heads,
            kv_heads=integer(config, "num_key_value_heads", heads),
            head_dim=latent.nope_dim + latent.rope_dim,
            ffn=ffn,
            experts=integer(config, "n_routed_experts"),
            top_k=integer(config, "num_experts_per_tok"),
            context=integer(config, "max_position_embeddings"),
            moe_layers=tuple(range(min(dense, layers - 1), layers)),
            rms_eps=real_text(config, "rms_norm_eps", 1e-6),
            rope_theta=theta,
            dense_ffn=integer(config, "intermediate_size") if dense else None,
            shared_ffn=shared,
            gate_scale=None if float(scale) == 1 else scale,
            gate_groups=_groups(config),
            latent=latent,
            yarn=yarn,
            **ends(config),
        )
        if dense >= layers:
            raise UnsupportedModel(f"config.json: first_k_dense_replace {dense} of {layers} layers leaves no experts")
        self.check(layout)
        return layout

    def check(self, layout: ModelLayout) -> None:
        for holds, problem in _facts(layout, self.name):
            if not holds:
                raise UnsupportedModel(f"not a DeepSeek-V2 that can be computed: {problem}")

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        return flag(config, "tie_word_embeddings", default=False)

    def tensors(self, layout: ModelLayout, names: Collection[str], *, tied: bool) -> TensorMap:
        ignored = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(layout.layers)}
        if tied:
            ignored.add("lm_head.weight")
        shared = {}
        if layout.shared_ffn is not None:
            shared = {
                layer: mlp_refs(f"model.layers.{layer}.mlp.shared_experts.", layout.hidden, layout.shared_ffn)
                for layer in layout.moe_layers
            }
        return TensorMap(
            embed=TensorRef.all_of("model.embed_tokens.weight", layout.vocab, layout.hidden),
            norm=TensorRef.all_of("model.norm.weight", layout.hidden),
            head=None if tied else TensorRef.all_of("lm_head.weight", layout.vocab, layout.hidden),
            layers=tuple(_layer(layout, layer) for layer in range(layout.layers)),
            experts={
                (layer, expert): expert_refs(layout, layer, expert, names, ExpertNames())
                for layer, expert in all_experts(layout)
            },
            ignored=frozenset(ignored),
            shared=shared,
        )

    def trunk_layer(self, layout: ModelLayout, layer: int) -> FileShape:
        hidden, heads, sizes = layout.hidden, layout.heads, _sizes(layout)
        end: tuple[Section, ...] = (Section("gate", (layout.experts, hidden)),)
        if layer not in layout.moe_layers:
            end = mlp_sections(hidden, _dense_ffn(layout))
        return FileShape(
            (
                Section("input_norm", (hidden,)),
                Section("compress", (sizes.kv_rank + sizes.rope_dim + (sizes.q_rank or 0), hidden)),
                *((Section("query_norm", (sizes.q_rank,)),) if sizes.q_rank is not None else ()),
                Section("queries", (heads * (sizes.nope_dim + sizes.rope_dim), sizes.q_rank or hidden)),
                Section("latent_norm", (sizes.kv_rank,)),
                Section("to_keys", (heads, sizes.nope_dim, sizes.kv_rank)),
                Section("to_values", (heads, sizes.value_dim, sizes.kv_rank)),
                Section("attention_out", (hidden, heads * sizes.value_dim)),
                Section("post_norm", (hidden,)),
                *end,
            )
        )

    def trunk_graphs(self, layout: ModelLayout, layer: int) -> LayerGraphs:
        file, sizes = self.trunk_layer(layout, layer), _sizes(layout)
        project, finish, gate = (TrunkLayerGraph(layout, file) for _ in range(3))
        queries = project.norm("x", "input_norm")
        compressed = project.linear(queries, "compress")
        if sizes.q_rank is not None:
            compressed, queries = project.split_low_queries(compressed, sizes.q_rank)
        project.latent_rows(project.linear(queries, "queries"), compressed)
        attended = finish.linear(finish.attended_latents(), "attention_out")
        alone = None
        if layer in layout.moe_layers:
            finish.end_with_gate(attended, power=None)
            alone = gate.gate_part(power=None)
        else:
            finish.end_with_mlp(attended, _dense_ffn(layout))
        return LayerGraphs(project.part(), latent_attention(layout), finish.part(), alone)


def _sizes(layout: ModelLayout) -> LatentAttention:
    assert layout.latent is not None, "`check` wants it"
    return layout.latent


def _dense_ffn(layout: ModelLayout) -> int:
    assert layout.dense_ffn is not None, "`check` wants it where there are dense layers"
    return layout.dense_ffn


def _require_known(config: Mapping[str, Any]) -> None:
    """Raises UnsupportedModel for what is not computed here, or means different things to different code."""
    require(config, "hidden_act", None, "silu")
    for field in ("attention_bias", "mlp_bias"):
        require(config, field, None, False)
    require(config, "scoring_func", None, "softmax")
    require(config, "moe_layer_freq", None, 1)
    require(config, "partial_rotary_factor", None, 1, 1.0)
    if flag(config, "norm_topk_prob", default=False):
        raise UnsupportedModel(
            "config.json: norm_topk_prob is set, and means different things to DeepSeek's own code and to transformers",
            hint="DeepSeek-V2 and V2-Lite were published with norm_topk_prob false.",
        )


def _latent(config: Mapping[str, Any]) -> LatentAttention:
    return LatentAttention(
        kv_rank=integer(config, "kv_lora_rank"),
        nope_dim=integer(config, "qk_nope_head_dim"),
        rope_dim=integer(config, "qk_rope_head_dim"),
        value_dim=integer(config, "v_head_dim"),
        q_rank=None if config.get("q_lora_rank") is None else integer(config, "q_lora_rank"),
    )


def _groups(config: Mapping[str, Any]) -> GateGroups | None:
    """n_group and topk_group count only where the method says so."""
    require(config, "topk_method", None, "greedy", "group_limited_greedy")
    if config.get("topk_method") != "group_limited_greedy":
        return None
    return GateGroups(groups=integer(config, "n_group"), top=integer(config, "topk_group"))


def _rope(config: Mapping[str, Any]) -> tuple[str, Yarn | None]:
    """From `rope_parameters` (new files) or from `rope_theta` beside `rope_scaling` (hub files)."""
    if config.get("rope_parameters") is not None and config.get("rope_scaling") is not None:
        raise UnsupportedModel("config.json: rope_parameters and rope_scaling are both there, and may say two things")
    field = "rope_scaling" if config.get("rope_parameters") is None else "rope_parameters"
    rope = section(config, field)
    theta = real_text(rope if rope.get("rope_theta") is not None else config, "rope_theta", DEFAULT_THETA)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "yarn"):
        raise UnsupportedModel(f"config.json: {field} is of type {kind!r}; only 'default', 'yarn' is known")
    known = {"rope_theta", "rope_type", "type", *(_YARN_FIELDS if kind == "yarn" else ())}
    odd = sorted(name for name, value in rope.items() if name not in known and value is not None)
    if odd:
        raise UnsupportedModel(f"config.json: {field} of type {kind!r} holds {odd[0]}, which is not computed here")
    if kind == "default":
        return theta, None
    return theta, _yarn(rope, field)


def _yarn(rope: Mapping[str, Any], field: str) -> Yarn:
    scales = [rope.get(name) for name in ("mscale", "mscale_all_dim")]
    if (scales[0] is None) != (scales[1] is None):
        raise UnsupportedModel(f"config.json: {field} needs both mscale and mscale_all_dim or neither, got {scales}")
    return Yarn(
        factor=real_text(rope, "factor"),
        original_context=integer(rope, "original_max_position_embeddings"),
        beta_fast=real_text(rope, "beta_fast", 32.0),
        beta_slow=real_text(rope, "beta_slow", 1.0),
        mscale=None if scales[0] is None else real_text(rope, "mscale"),
        mscale_all_dim=None if scales[1] is None else real_text(rope, "mscale_all_dim"),
    )


def _facts(layout: ModelLayout, name: str) -> Iterator[tuple[bool, str]]:
    """What must hold, one after the other, and what is wrong where it does not."""
    sizes, groups, first = layout.latent, layout.gate_groups, layout.moe_layers[0]
    yield layout.family == name, f"family is {layout.family}"
    yield sizes is not None, "latent attention has no sizes"
    assert sizes is not None, "said before"
    yield sizes.rope_dim % 2 == 0, f"{sizes.rope_dim} rotated dimensions, not pairs"
    yield layout.head_dim == sizes.nope_dim + sizes.rope_dim, f"head size {layout.head_dim}"
    yield layout.kv_heads == layout.heads, f"{layout.heads} heads over {layout.kv_heads} key-value heads"
    for what, size, limit in (
        ("heads", layout.heads, MAX_HEADS), ("kv_rank", sizes.kv_rank, MAX_HIDDEN),
        ("q_rank", sizes.q_rank or 1, MAX_HIDDEN), ("nope_dim", sizes.nope_dim, MAX_HEAD_DIM),
        ("rope_dim", sizes.rope_dim, MAX_ROTATED), ("value_dim", sizes.value_dim, MAX_HEAD_DIM),
    ):  # fmt: skip
        yield size <= limit, f"{what} is {size}, at most {limit} is computed"
    yield layout.top_k <= layout.experts, f"top {layout.top_k} of {layout.experts} experts"
    if groups is not None:
        yield layout.experts % groups.groups == 0, f"{layout.experts} experts in {groups.groups} groups"
        within = groups.top * (layout.experts // groups.groups)
        yield groups.top <= groups.groups, f"the top {groups.top} of {groups.groups} groups"
        yield layout.top_k <= within, f"top {layout.top_k} of the {within} experts in {groups.top} groups"
    yield len(layout.moe_layers) == layout.layers - first, "a layer without experts after one that has some"
    yield all(at == n for n, at in enumerate(layout.moe_layers, first)), "layers out of order"
    yield (layout.dense_ffn is None) == (first == 0), "dense layers without a width, or a width without dense layers"
    for option in OPTIONS:
        yield option in _OPTIONS or getattr(layout, option) is None, f"it has {option}"
    for what, text, (least, most) in _numbers(layout):
        yield text is None or least <= float(text) <= most, f"{what} is {text}, expected {least:g} to {most:g}"


def _numbers(layout: ModelLayout) -> Iterator[tuple[str, str | None, tuple[float, float]]]:
    yield "rope_theta", layout.rope_theta, _THETA_RANGE
    yield "gate_scale", layout.gate_scale, _SCALE_RANGE
    yarn = layout.yarn
    if yarn is not None:
        for name in ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
            yield f"yarn {name}", getattr(yarn, name), _SCALE_RANGE


def _layer(layout: ModelLayout, layer: int) -> Sections:
    hidden, heads, sizes, prefix = layout.hidden, layout.heads, _sizes(layout), f"model.layers.{layer}."
    own = f"{prefix}self_attn."
    compress = [TensorRef.all_of(f"{own}kv_a_proj_with_mqa.weight", sizes.kv_rank + sizes.rope_dim, hidden)]
    sections: dict[str, tuple[TensorRef, ...]] = {}
    if sizes.q_rank is not None:
        compress.append(TensorRef.all_of(f"{own}q_a_proj.weight", sizes.q_rank, hidden))
        sections["query_norm"] = (TensorRef.all_of(f"{own}q_a_layernorm.weight", sizes.q_rank),)
    queries = f"{own}q_proj.weight" if sizes.q_rank is None else f"{own}q_b_proj.weight"
    plain, turning = _halves(queries, heads, (sizes.nope_dim, sizes.rope_dim), sizes.q_rank or hidden)
    expand = f"{own}kv_b_proj.weight"
    to_keys, to_values = _halves(expand, heads, (sizes.nope_dim, sizes.value_dim), sizes.kv_rank)
    sections |= {
        "input_norm": (TensorRef.all_of(f"{prefix}input_layernorm.weight", hidden),),
        "compress": tuple(compress),
        "queries": plain + turning,
        "latent_norm": (TensorRef.all_of(f"{own}kv_a_layernorm.weight", sizes.kv_rank),),
        "to_keys": to_keys,
        "to_values": to_values,
        "attention_out": (TensorRef.all_of(f"{own}o_proj.weight", hidden, heads * sizes.value_dim),),
        "post_norm": (TensorRef.all_of(f"{prefix}post_attention_layernorm.weight", hidden),),
    }
    if layer in layout.moe_layers:
        return sections | {"gate": (TensorRef.all_of(f"{prefix}mlp.gate.weight", layout.experts, hidden),)}
    return {**sections, **mlp_refs(f"{prefix}mlp.", hidden, _dense_ffn(layout))}


def _halves(
    name: str, heads: int, rows: tuple[int, int], columns: int
) -> tuple[tuple[TensorRef, ...], tuple[TensorRef, ...]]:
    """Of a matrix that has, head by head, rows of two kinds: those of the first kind, those of the second."""
    step, first = sum(rows), rows[0]
    whole = (heads * step, columns)
    return (
        tuple(TensorRef(name, whole, (first, columns), head * step * columns) for head in range(heads)),
        tuple(TensorRef(name, whole, (rows[1], columns), (head * step + first) * columns) for head in range(heads)),
    )
