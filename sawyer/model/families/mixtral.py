"""Mixtral: RMS norm, grouped-query attention with half-split RoPE, softmax over all experts, top-k, renormalised.

Checked against transformers' MixtralForCausalLM (scripts/make_golden.py, tests/parity).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from sawyer.model.families.config import context, integer, real_text, require, rope_theta, usual_fields
from sawyer.model.families.grouped import ExpertNames, GroupedFamily
from sawyer.schemas.models import ModelLayout

DEFAULT_THETA: Final = 1_000_000.0
"""MixtralConfig's own default, for files that name no theta."""


class Mixtral(GroupedFamily):
    """`MixtralForCausalLM`, in hub names or with the fused experts that newer tools save."""

    name: str = "mixtral"
    title: ClassVar[str] = "Mixtral"
    expert_names: ClassVar[ExpertNames] = ExpertNames(
        gates=("block_sparse_moe.gate.weight", "mlp.gate.weight"),
        expert="block_sparse_moe.experts.{expert}.{matrix}.weight",
        matrices=("w1", "w3", "w2"),
    )

    def layout(self, config: Mapping[str, Any]) -> ModelLayout:
        """See Family."""
        require(config, "attention_bias", None, False)
        fields = usual_fields(config)
        layout = ModelLayout(
            **fields,
            family=self.name,
            ffn=integer(config, "intermediate_size"),
            experts=integer(config, "num_local_experts"),
            context=context(config),
            moe_layers=tuple(range(fields["layers"])),
            rms_eps=real_text(config, "rms_norm_eps", 1e-5),
            rope_theta=rope_theta(config, DEFAULT_THETA),
        )
        self.check(layout)
        return layout

    def gate_power(self, layout: ModelLayout) -> float | None:  # noqa: ARG002 (of every Mixtral)
        """Its chosen weights always add up to 1."""
        return 1.0
