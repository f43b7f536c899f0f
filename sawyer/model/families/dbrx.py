"""DBRX: LayerNorm without biases, queries, keys and values in one matrix and cut to a limit, gate weights divided by a
p-norm, and the experts of a layer in three tensors, the last of which is stored the other way round.

Checked against transformers' DbrxForCausalLM (scripts/make_golden.py, tests/parity).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Final

from sawyer.errors import UnsupportedModel
from sawyer.model.checkpoint import TensorRef
from sawyer.model.families.config import ends, integer, real_text, require, rope_theta, section
from sawyer.model.families.family import ExpertRefs, Sections, TensorMap
from sawyer.model.families.grouped import GroupedFamily
from sawyer.model.graphs import Norm
from sawyer.model.layout import all_experts
from sawyer.schemas.models import ModelLayout
from sawyer.schemas.tensors import MAX_LAYERS

DEFAULT_THETA: Final = 10_000.0
"""DbrxConfig's own default, for files that name no theta."""
NORM_EPS: Final = 1e-5
"""Of torch's LayerNorm: no config names it."""


class Dbrx(GroupedFamily):
    """`DbrxForCausalLM`, in hub names."""

    name: str = "dbrx"
    norm: Norm = "layer"
    title: ClassVar[str] = "DBRX"
    options: ClassVar[frozenset[str]] = frozenset({"renormalise", "gate_norm", "clip_qkv"})

    def layout(self, config: Mapping[str, Any]) -> ModelLayout:
        """See Family."""
        attention, experts = section(config, "attn_config"), section(config, "ffn_config")
        require(section(experts, "ffn_act_fn"), "name", None, "silu")
        require(experts, "uniform_expert_assignment", None, False)
        hidden, heads = integer(config, "d_model"), integer(config, "n_heads")
        layers, power = integer(config, "n_layers", most=MAX_LAYERS), _power(experts)
        layout = ModelLayout(
            family=self.name,
            vocab=integer(config, "vocab_size"),
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=integer(attention, "kv_n_heads", 1),
            head_dim=max(1, hidden // heads),
            ffn=integer(experts, "ffn_hidden_size"),
            experts=integer(experts, "moe_num_experts"),
            top_k=integer(experts, "moe_top_k"),
            context=integer(config, "max_seq_len"),
            moe_layers=tuple(range(layers)),
            rms_eps=repr(NORM_EPS),
            rope_theta=_theta(config, attention),
            renormalise=None if power is None else True,
            gate_norm=power,
            clip_qkv=None if attention.get("clip_qkv") is None else real_text(attention, "clip_qkv"),
            **ends(config),
        )
        self.check(layout)
        return layout

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        """Never: no DBRX has a tied head."""
        require(config, "tie_word_embeddings", None, False)
        return False

    def check(self, layout: ModelLayout) -> None:
        """See Family."""
        super().check(layout)
        if layout.heads * layout.head_dim != layout.hidden:
            raise UnsupportedModel(
                f"not a DBRX that can be computed: {layout.heads} heads of {layout.head_dim} in rows of {layout.hidden}"
            )

    def gate_power(self, layout: ModelLayout) -> float | None:
        """See GroupedFamily."""
        return None if layout.renormalise is None else float(layout.gate_norm or 1)

    def tensors(self, layout: ModelLayout, names: Collection[str], *, tied: bool) -> TensorMap:  # noqa: ARG002
        """See Family."""
        attention = "norm_attn_norm.attn.rotary_emb.inv_freq"
        return TensorMap(
            embed=TensorRef.all_of("transformer.wte.weight", layout.vocab, layout.hidden),
            norm=TensorRef.all_of("transformer.norm_f.weight", layout.hidden),
            head=TensorRef.all_of("lm_head.weight", layout.vocab, layout.hidden),
            layers=tuple(_layer(layout, layer) for layer in range(layout.layers)),
            experts={(layer, expert): _expert(layout, layer, expert) for layer, expert in all_experts(layout)},
            ignored=frozenset(f"transformer.blocks.{layer}.{attention}" for layer in range(layout.layers)),
        )


def _power(experts: Mapping[str, Any]) -> str | None:
    """The p of the norm: 1 where the field is absent, and null means that weights stay as they are."""
    field = "moe_normalize_expert_weights"
    return None if field in experts and experts[field] is None else real_text(experts, field, 1.0)


def _theta(config: Mapping[str, Any], attention: Mapping[str, Any]) -> str:
    """Hub files keep it in attn_config, where older tools read it; newer ones read it beside, as of other families.
    Files that hold two different ones would mean two different models."""
    outside = rope_theta(config, DEFAULT_THETA)
    if attention.get("rope_theta") is None:
        return outside
    own = real_text(attention, "rope_theta")
    named = config.get("rope_theta") is not None or section(config, "rope_parameters").get("rope_theta") is not None
    if named and own != outside:
        raise UnsupportedModel(
            f"config.json: rope_theta is {own} in attn_config and {outside} outside",
            hint="Keep the one that the model was trained with (500000 in DBRX as published), and delete the other.",
        )
    return own


def _layer(layout: ModelLayout, layer: int) -> Sections:
    prefix, hidden = f"transformer.blocks.{layer}.", layout.hidden
    rows = (layout.heads + 2 * layout.kv_heads) * layout.head_dim
    return {
        "input_norm": (TensorRef.all_of(f"{prefix}norm_attn_norm.norm_1.weight", hidden),),
        "qkv": (TensorRef.all_of(f"{prefix}norm_attn_norm.attn.Wqkv.weight", rows, hidden),),
        "attention_out": (TensorRef.all_of(f"{prefix}norm_attn_norm.attn.out_proj.weight", hidden, hidden),),
        "post_norm": (TensorRef.all_of(f"{prefix}norm_attn_norm.norm_2.weight", hidden),),
        "gate": (TensorRef.all_of(f"{prefix}ffn.router.layer.weight", layout.experts, hidden),),
    }


def _expert(layout: ModelLayout, layer: int, expert: int) -> ExpertRefs:
    """Each tensor holds all experts of the layer below one another, [experts F, H]: w2 too, so it is turned."""
    shape, whole = (layout.ffn, layout.hidden), (layout.experts * layout.ffn, layout.hidden)
    prefix, start = f"transformer.blocks.{layer}.ffn.experts.mlp.", expert * layout.ffn * layout.hidden
    return ExpertRefs(
        gate=TensorRef(f"{prefix}w1", whole, shape, start),
        up=TensorRef(f"{prefix}v1", whole, shape, start),
        down=TensorRef(f"{prefix}w2", whole, shape, start, transposed=True),
    )
