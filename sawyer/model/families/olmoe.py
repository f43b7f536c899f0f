"""OLMoE: as Mixtral, with queries and keys normed over their whole width and then cut to a limit, and gate weights that
are renormalised only if the config says so.

Checked against transformers' OlmoeForCausalLM (scripts/make_golden.py, tests/parity).
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
    usual_fields,
)
from sawyer.model.families.grouped import GroupedFamily
from sawyer.schemas.models import ModelLayout

DEFAULT_THETA: Final = 10_000.0
"""OlmoeConfig's own default, for files that name no theta."""


class Olmoe(GroupedFamily):
    """`OlmoeForCausalLM`, in hub names or with the fused experts that newer tools save."""

    name: str = "olmoe"
    title: ClassVar[str] = "OLMoE"
    options: ClassVar[frozenset[str]] = frozenset({"renormalise", "clip_qkv"})
    head_norms: ClassVar[Literal["head", "width"] | None] = "width"

    def layout(self, config: Mapping[str, Any]) -> ModelLayout:
        """See Family."""
        fields = usual_fields(config)
        require(config, "attention_bias", None, False)
        require(config, "head_dim", None, fields["hidden"] // fields["heads"])
        layout = ModelLayout(
            **fields,
            family=self.name,
            ffn=integer(config, "intermediate_size"),
            experts=expert_count(config),
            context=context(config),
            moe_layers=tuple(range(fields["layers"])),
            rms_eps=real_text(config, "rms_norm_eps", 1e-5),
            rope_theta=rope_theta(config, DEFAULT_THETA),
            renormalise=flag(config, "norm_topk_prob", default=False) or None,
            clip_qkv=None if config.get("clip_qkv") is None else real_text(config, "clip_qkv"),
        )
        self.check(layout)
        return layout
