"""What a DeepSeek-V2 config and its tensor names mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sawyer.errors import CheckpointCorrupt, UnsupportedModel
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.families.deepseek_v2 import DeepseekV2
from sawyer.model.split import split
from sawyer.schemas.models import GateGroups, LatentAttention, ModelLayout, Yarn

YARN = {
    "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 4096, "type": "yarn",
}  # fmt: skip
LITE: dict[str, Any] = {
    "model_type": "deepseek_v2", "attention_bias": False, "bos_token_id": 100000, "eos_token_id": 100001,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 10944,
    "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 1408, "moe_layer_freq": 1,
    "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": False, "num_attention_heads": 16,
    "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16, "q_lora_rank": None,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_scaling": YARN, "rope_theta": 10000,
    "routed_scaling_factor": 1.0, "scoring_func": "softmax", "tie_word_embeddings": False, "topk_group": 1,
    "topk_method": "greedy", "v_head_dim": 128, "vocab_size": 102400,
}  # fmt: skip
"""Of deepseek-ai/DeepSeek-V2-Lite, as it is on the hub, less what has no effect."""
FULL = LITE | {
    "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536, "n_group": 8,
    "n_routed_experts": 160, "num_attention_heads": 128, "num_key_value_heads": 128, "num_hidden_layers": 60,
    "q_lora_rank": 1536, "routed_scaling_factor": 16.0, "topk_group": 3, "topk_method": "group_limited_greedy",
}  # fmt: skip
TINY = LITE | {
    "hidden_size": 32, "intermediate_size": 48, "kv_lora_rank": 16, "moe_intermediate_size": 32, "n_routed_experts": 4,
    "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts_per_tok": 2, "num_hidden_layers": 2,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "vocab_size": 40, "max_position_embeddings": 64,
    "q_lora_rank": 24,
}  # fmt: skip


def tiny_tensors() -> dict[str, NDArray[np.float32]]:
    """Random weights of TINY, under hub names."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (40, 32), "model.norm.weight": (32,), "lm_head.weight": (40, 32),
    }  # fmt: skip
    widths = {"model.layers.0.mlp": 48, "model.layers.1.mlp.shared_experts": 64}
    widths |= {f"model.layers.1.mlp.experts.{expert}": 32 for expert in range(4)}
    for name, width in widths.items():
        shapes |= {f"{name}.{part}_proj.weight": (width, 32) for part in ("gate", "up")}
        shapes[f"{name}.down_proj.weight"] = (32, width)
    shapes["model.layers.1.mlp.gate.weight"] = (4, 32)
    for prefix in ("model.layers.0", "model.layers.1"):
        shapes |= {f"{prefix}.{norm}_layernorm.weight": (32,) for norm in ("input", "post_attention")}
        shapes |= {
            f"{prefix}.self_attn.q_a_proj.weight": (24, 32), f"{prefix}.self_attn.q_a_layernorm.weight": (24,),
            f"{prefix}.self_attn.q_b_proj.weight": (24, 24), f"{prefix}.self_attn.o_proj.weight": (32, 12),
            f"{prefix}.self_attn.kv_a_proj_with_mqa.weight": (20, 32),
            f"{prefix}.self_attn.kv_a_layernorm.weight": (16,), f"{prefix}.self_attn.kv_b_proj.weight": (28, 16),
        }  # fmt: skip
    random = np.random.default_rng(11)
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


@pytest.fixture
def deepseek(tiny: Any) -> Any:
    """The tiny checkpoint, made a DeepSeek-V2."""
    tiny.config, tiny.tensors = dict(TINY), tiny_tensors()
    return tiny


def test_layout_of_the_lite_config() -> None:
    layout = DeepseekV2().layout(LITE)
    assert (layout.layers, layout.moe_layers, layout.dense_layers) == (27, tuple(range(1, 27)), (0,))
    assert (layout.ffn, layout.dense_ffn, layout.shared_ffn) == (1408, 10944, 2816)
    assert (layout.heads, layout.kv_heads, layout.head_dim, layout.context) == (16, 16, 192, 163840)
    assert layout.latent == LatentAttention(kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128)
    assert (layout.experts, layout.top_k, layout.gate_groups, layout.gate_scale) == (64, 6, None, None)
    assert (layout.rope_theta, layout.rms_eps, layout.eos, layout.bos) == ("10000.0", "1e-06", (100001,), 100000)
    assert layout.yarn == Yarn(
        factor="40.0",
        original_context=4096,
        beta_fast="32.0",
        beta_slow="1.0",
        mscale="0.707",
        mscale_all_dim="0.707",
    )


def test_layout_of_the_full_config() -> None:
    layout = DeepseekV2().layout(FULL)
    assert layout.latent is not None
    assert (layout.latent.q_rank, layout.heads, layout.gate_scale) == (1536, 128, "16.0")
    assert layout.gate_groups == GateGroups(groups=8, top=3)


def test_hub_and_newer_config_give_one_layout() -> None:
    renamed = {"rope_type" if name == "type" else name: value for name, value in YARN.items()}
    newer = {name: value for name, value in LITE.items() if name not in ("rope_scaling", "rope_theta")}
    newer["rope_parameters"] = renamed | {"rope_theta": 10000.0}
    assert DeepseekV2().layout(newer) == DeepseekV2().layout(LITE)


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"rope_scaling": None}, "yarn", None),
        ({"rope_scaling": {"rope_type": "default"}}, "yarn", None),
        ({"rope_scaling": None, "rope_parameters": {"rope_theta": 5e5}}, "rope_theta", "500000.0"),
        ({"rope_theta": None}, "rope_theta", "10000.0"),
        ({"rms_norm_eps": None}, "rms_eps", "1e-06"),
        ({"n_shared_experts": None}, "shared_ffn", None),
        ({"n_shared_experts": 3}, "shared_ffn", 4224),
        ({"first_k_dense_replace": 0}, "dense_ffn", None),
        ({"first_k_dense_replace": None}, "moe_layers", tuple(range(27))),
        ({"first_k_dense_replace": 26}, "moe_layers", (26,)),
        ({"topk_method": None, "n_group": None, "topk_group": None}, "gate_groups", None),
        ({"num_key_value_heads": None}, "kv_heads", 16),
        ({"routed_scaling_factor": 2.5}, "gate_scale", "2.5"),
        ({"norm_topk_prob": None, "scoring_func": None, "moe_layer_freq": None}, "renormalise", None),
    ],
)
def test_config_variants_are_understood(change: dict[str, Any], field: str, expected: object) -> None:
    assert getattr(DeepseekV2().layout(LITE | change), field) == expected


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'"),
        ({"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'"),
        ({"moe_layer_freq": 2}, "moe_layer_freq is 2"),
        ({"norm_topk_prob": True}, "norm_topk_prob is set, and means different things"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be an object"),
        ({"rope_scaling": YARN | {"type": "linear"}}, "rope_scaling is of type 'linear'"),
        ({"rope_scaling": YARN | {"type": ["yarn"]}}, "rope_scaling is of type"),
        ({"rope_scaling": YARN | {"attention_factor": 1.5}}, "holds attention_factor, which is not computed"),
        ({"rope_scaling": YARN | {"truncate": False}}, "holds truncate, which is not computed"),
        ({"rope_scaling": {"factor": 40}}, "of type 'default' holds factor"),
        ({"rope_scaling": YARN | {"mscale": None}}, "both mscale and mscale_all_dim or neither"),
        ({"rope_scaling": YARN | {"mscale_all_dim": 0}}, "mscale_all_dim must be a positive number"),
        ({"rope_scaling": YARN | {"factor": None}}, "factor must be a positive number"),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": None}}, "original_max_position_embeddings"),
        ({"rope_scaling": YARN | {"beta_fast": 1e-300}}, "yarn beta_fast is 1e-300"),
        ({"rope_theta": 1}, "rope_theta is 1.0"),
        ({"rope_theta": "big"}, "rope_theta must be a positive number"),
        ({"kv_lora_rank": None}, "kv_lora_rank must be an integer"),
        ({"n_shared_experts": 0}, "n_shared_experts must be an integer"),
        ({"first_k_dense_replace": 27}, "first_k_dense_replace 27 of 27 layers leaves no experts"),
        ({"first_k_dense_replace": -1}, "first_k_dense_replace must be an integer"),
        ({"num_key_value_heads": 8}, "16 heads over 8 key-value heads"),
        ({"qk_rope_head_dim": 63}, "63 rotated dimensions"),
        ({"qk_rope_head_dim": 512}, "rope_dim is 512, at most 256"),
        ({"num_experts_per_tok": 65}, "top 65 of 64 experts"),
        ({"routed_scaling_factor": 1e30}, "gate_scale is 1e[+]30"),
        ({"topk_method": "group_limited_greedy", "n_group": 5}, "64 experts in 5 groups"),
        ({"topk_method": "group_limited_greedy", "n_group": None}, "n_group must be an integer"),
        ({"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 9}, "the top 9 of 8 groups"),
        ({"topk_method": "group_limited_greedy", "n_group": 16, "topk_group": 1}, "top 6 of the 4 experts in 1 groups"),
    ],
)
def test_config_that_cannot_be_computed_is_refused_with_its_field(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnsupportedModel, match=problem):
        DeepseekV2().layout(LITE | change)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"family": "mixtral"}, "family is mixtral"),
        ({"latent": None}, "latent attention has no sizes"),
        ({"head_dim": 128}, "head size 128"),
        ({"heads": 2048, "kv_heads": 2048}, "heads is 2048, at most 1024"),
        ({"latent": LatentAttention(kv_rank=1 << 40, nope_dim=128, rope_dim=64, value_dim=128)}, "kv_rank is"),
        ({"latent": LatentAttention(kv_rank=8, nope_dim=128, rope_dim=64, value_dim=1 << 40)}, "value_dim is"),
        ({"latent": LatentAttention(kv_rank=8, nope_dim=128, rope_dim=64, value_dim=1, q_rank=1 << 40)}, "q_rank is"),
        ({"moe_layers": (1, 2)}, "a layer without experts after one that has some"),
        ({"moe_layers": (1, *range(3, 28))}, "layers out of order"),
        ({"dense_ffn": None}, "dense layers without a width"),
        ({"renormalise": True}, "it has renormalise"),
        ({"clip_qkv": "8.0"}, "it has clip_qkv"),
        ({"gate_groups": GateGroups(groups=3, top=1)}, "64 experts in 3 groups"),
    ],
)
def test_layout_that_cannot_be_computed_is_refused(change: dict[str, Any], problem: str) -> None:
    layout = ModelLayout(**dict(DeepseekV2().layout(LITE)) | change)
    with pytest.raises(UnsupportedModel, match=problem):
        DeepseekV2().check(layout)


GATE = "model.layers.1.mlp.gate.weight"
EXPAND = "model.layers.0.self_attn.kv_b_proj.weight"
SHARED = "model.layers.1.mlp.shared_experts.down_proj.weight"


@pytest.mark.parametrize(
    "missing",
    [GATE, EXPAND, SHARED, "model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_a_layernorm.weight"],
)
def test_missing_tensor_is_named(deepseek: Any, tmp_path: Path, missing: str) -> None:
    del deepseek.tensors[missing]
    with pytest.raises(CheckpointCorrupt, match=f"tensor {missing} is missing"):
        split(deepseek.write(), tmp_path / "out", model=ModelId("tiny"))


@pytest.mark.parametrize("misshaped", [GATE, EXPAND, SHARED])
def test_misshaped_tensor_is_named_with_both_shapes(deepseek: Any, tmp_path: Path, misshaped: str) -> None:
    wrong = str(list(deepseek.tensors[misshaped].shape)[::-1]).replace("[", r"\[")
    deepseek.tensors[misshaped] = deepseek.tensors[misshaped].T.copy()
    with pytest.raises(CheckpointCorrupt, match=f"tensor {misshaped}: expected shape .*, got {wrong}"):
        split(deepseek.write(), tmp_path / "out", model=ModelId("tiny"))


@pytest.mark.parametrize(
    ("extra", "change"),
    [
        ("model.layers.1.mlp.experts.4.up_proj.weight", {}),
        ("model.layers.1.mlp.gate.e_score_correction_bias", {}),
        ("model.layers.0.self_attn.q_proj.weight", {}),
        (SHARED, {"n_shared_experts": None}),
    ],
)
def test_tensor_left_over_is_named(deepseek: Any, tmp_path: Path, extra: str, change: dict[str, Any]) -> None:
    if change:
        deepseek.tensors = {name: one for name, one in deepseek.tensors.items() if "shared_experts" not in name}
    deepseek.config |= change
    deepseek.tensors[extra] = deepseek.tensors["model.norm.weight"]
    with pytest.raises(CheckpointCorrupt, match=f"tensor {extra} is left over"):
        split(deepseek.write(), tmp_path / "out", model=ModelId("tiny"))


def test_rows_of_all_heads_are_stored_by_what_they_are_for(deepseek: Any, tmp_path: Path) -> None:
    split(deepseek.write(), tmp_path / "out", model=ModelId("tiny"))
    stored = Artifacts.open(tmp_path / "out").read_trunk_layer(0)
    queries = deepseek.tensors["model.layers.0.self_attn.q_b_proj.weight"].reshape(2, 12, 24)
    expand = deepseek.tensors[EXPAND].reshape(2, 14, 16)
    np.testing.assert_array_equal(stored["queries"][:16], queries[:, :8].reshape(16, 24))
    np.testing.assert_array_equal(stored["queries"][16:], queries[:, 8:].reshape(8, 24))
    np.testing.assert_array_equal(stored["to_keys"], expand[:, :8])
    np.testing.assert_array_equal(stored["to_values"], expand[:, 8:])


def test_queries_projected_directly_need_no_norm(deepseek: Any, tmp_path: Path) -> None:
    deepseek.config["q_lora_rank"] = None
    for layer in range(2):
        prefix = f"model.layers.{layer}.self_attn."
        for name in ("q_a_proj", "q_a_layernorm", "q_b_proj"):
            del deepseek.tensors[f"{prefix}{name}.weight"]
        deepseek.tensors[f"{prefix}q_proj.weight"] = np.ones((24, 32), np.float32)
    split(deepseek.write(), tmp_path / "out", model=ModelId("tiny"))
    stored = Artifacts.open(tmp_path / "out").read_trunk_layer(1)
    assert (stored["queries"].shape, stored["compress"].shape, "query_norm" in stored) == ((24, 32), (20, 32), False)


@pytest.mark.parametrize("format", ["f32", "q4"])
def test_fused_names_give_the_bytes_of_hub_names(deepseek: Any, another_tiny: Any, tmp_path: Path, format: Any) -> None:
    own = "model.layers.1.mlp.experts."
    gate, up, down = (
        [deepseek.tensors[f"{own}{expert}.{part}_proj.weight"] for expert in range(4)]
        for part in ("gate", "up", "down")
    )
    another_tiny.config = deepseek.config
    another_tiny.tensors = {name: one for name, one in deepseek.tensors.items() if not name.startswith(own)} | {
        f"{own}gate_up_proj": np.stack([np.concatenate(pair) for pair in zip(gate, up, strict=True)]),
        f"{own}down_proj": np.stack(down),
    }
    manifests = [
        split(source.write(), tmp_path / str(n), model=ModelId("tiny"), format=format)
        for n, source in enumerate((deepseek, another_tiny))
    ]
    assert manifests[0] == manifests[1]


def test_positions_that_are_told_of_twice_are_refused() -> None:
    config = LITE | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    with pytest.raises(UnsupportedModel, match="rope_parameters and rope_scaling are both there"):
        DeepseekV2().layout(config)
