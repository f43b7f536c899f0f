"""Qwen2-MoE (also Qwen1.5-MoE): as Mixtral, with biases on queries, keys and values, one shared expert behind a gate of
its own, layers without experts, and gate weights that are renormalised only if the config says so.

Checked against transformers' Qwen2MoeForCausalLM (scripts/make_golden.py, tests/parity).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from sawyer.errors import UnsupportedModel
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
"""Qwen2MoeConfig's own default, for files that name no theta."""
ATTENTION: Final = ("full_attention", "sliding_attention")


class Qwen2Moe(GroupedFamily):
    """`Qwen2MoeForCausalLM`, in hub names or with the fused experts that newer tools save."""

    name: str = "qwen2_moe"
    gated_shared: bool = True
    title: ClassVar[str] = "Qwen2-MoE"
    options: ClassVar[frozenset[str]] = frozenset({"dense_ffn", "shared_ffn", "renormalise", "qkv_bias"})

    def layout(self, config: Mapping[str, Any]) -> ModelLayout:
        """See Family."""
        fields = usual_fields(config)
        require(config, "use_mrope", None, False)
        require(config, "dual_chunk_attention_config", None)
        sparse = sparse_layers(config, fields["layers"])
        layout = ModelLayout(
            **fields,
            family=self.name,
            ffn=integer(config, "moe_intermediate_size"),
            experts=expert_count(config),
            context=context(config, windowed=_windowed(config)),
            moe_layers=sparse,
            rms_eps=real_text(config, "rms_norm_eps", 1e-6),
            rope_theta=rope_theta(config, DEFAULT_THETA),
            dense_ffn=integer(config, "intermediate_size") if len(sparse) < fields["layers"] else None,
            shared_ffn=integer(config, "shared_expert_intermediate_size"),
            renormalise=flag(config, "norm_topk_prob", default=False) or None,
            qkv_bias=flag(config, "qkv_bias", default=True) or None,
        )
        self.check(layout)
        return layout

    def check(self, layout: ModelLayout) -> None:
        """See Family."""
        super().check(layout)
        if layout.shared_ffn is None:
            raise UnsupportedModel("not a Qwen2-MoE that can be computed: it has no shared expert")


def _windowed(config: Mapping[str, Any]) -> bool:
    """Whether some layers see a window only. Raises UnsupportedModel for attention of another kind."""
    windowed = flag(config, "use_sliding_window", default=False)
    kinds = config.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind not in ATTENTION[: 2 if windowed else 1] for kind in kinds):
        raise UnsupportedModel(f"config.json: layer_types is {kinds!r} where use_sliding_window is {windowed}")
    return windowed
