"""Qwen3-MoE: as Qwen2-MoE without biases and shared expert, and with each head of queries and keys normed by itself.

Checked against transformers' Qwen3MoeForCausalLM (scripts/make_golden.py, tests/parity).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

from sawyer.model.families.config import (
    context,
    expert_count,
    flag,
    integer,
    real_text,
    require,
    rope_theta,
    sparse_layers,
    usual_fields,
)
from sawyer.model.families.grouped import GroupedFamily
from sawyer.schemas.models import ModelLayout

DEFAULT_THETA: Final = 10_000.0
"""Qwen3MoeConfig's own default, for files that name no theta."""


class Qwen3Moe(GroupedFamily):
    """`Qwen3MoeForCausalLM`, in hub names or with the fused experts that newer tools save."""

    name: str = "qwen3_moe"
    title: ClassVar[str] = "Qwen3-MoE"
    options: ClassVar[frozenset[str]] = frozenset({"dense_ffn", "renormalise"})
    head_norms: ClassVar[Literal["head", "width"] | None] = "head"

    def layout(self, config: Mapping[str, Any]) -> ModelLayout:
        """See Family."""
        fields = usual_fields(config)
        require(config, "attention_bias", None, False)
        require(config, "dual_chunk_attention_config", None)
        sparse = sparse_layers(config, fields["layers"])
        layout = ModelLayout(
            **fields,
            family=self.name,
            ffn=integer(config, "moe_intermediate_size"),
            experts=expert_count(config),
            context=context(config, windowed=flag(config, "use_sliding_window", default=False)),
            moe_layers=sparse,
            rms_eps=real_text(config, "rms_norm_eps", 1e-6),
            rope_theta=rope_theta(config, DEFAULT_THETA),
            dense_ffn=integer(config, "intermediate_size") if len(sparse) < fields["layers"] else None,
            renormalise=flag(config, "norm_topk_prob", default=False) or None,
        )
        self.check(layout)
        return layout
