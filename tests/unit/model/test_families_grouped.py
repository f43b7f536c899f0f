"""What the configs and tensor names of Qwen2-MoE, Qwen3-MoE, OLMoE and DBRX mean. Their numbers: test_golden.py."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sawyer.errors import CheckpointCorrupt, UnsupportedModel
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.checkpoint import Checkpoint, TensorRef
from sawyer.model.families import FAMILIES, family_of
from sawyer.model.quantize import dequantize
from sawyer.model.split import split
from sawyer.schemas.models import GateGroups, ModelLayout

GOLDEN = Path(__file__).parents[1] / "engine" / "golden"
TINY = ModelId("tiny")
FUSED = ("qwen2-moe", "qwen2-moe-renormalised", "qwen3-moe", "qwen3-moe-dense-layers", "olmoe")

QWEN2: dict[str, Any] = {  # as Qwen1.5-MoE-A2.7B was published
    "model_type": "qwen2_moe", "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5632,
    "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 151936,
    "max_position_embeddings": 8192, "max_window_layers": 21, "use_sliding_window": False, "sliding_window": 32768,
    "rope_theta": 1000000.0, "rms_norm_eps": 1e-06, "decoder_sparse_step": 1, "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632, "num_experts_per_tok": 4, "num_experts": 60, "norm_topk_prob": False,
    "tie_word_embeddings": False, "bos_token_id": 151643, "eos_token_id": 151643,
}  # fmt: skip
QWEN3: dict[str, Any] = {  # as Qwen3-30B-A3B
    "model_type": "qwen3_moe", "hidden_act": "silu", "attention_bias": False, "head_dim": 128, "hidden_size": 2048,
    "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
    "vocab_size": 151936, "max_position_embeddings": 40960, "use_sliding_window": False, "sliding_window": None,
    "max_window_layers": 48, "rope_theta": 1000000.0, "rope_scaling": None, "rms_norm_eps": 1e-06,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 768, "num_experts_per_tok": 8,
    "num_experts": 128, "norm_topk_prob": True, "tie_word_embeddings": False, "eos_token_id": 151645,
}  # fmt: skip
OLMOE: dict[str, Any] = {  # as OLMoE-1B-7B-0924
    "model_type": "olmoe", "hidden_act": "silu", "attention_bias": False, "clip_qkv": None, "hidden_size": 2048,
    "intermediate_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16,
    "vocab_size": 50304, "max_position_embeddings": 4096, "rope_theta": 10000.0, "rope_scaling": None,
    "rms_norm_eps": 1e-05, "num_experts_per_tok": 8, "num_experts": 64, "norm_topk_prob": False, "pad_token_id": 1,
    "eos_token_id": 50279, "tie_word_embeddings": False,
}  # fmt: skip
DBRX: dict[str, Any] = {  # as dbrx-base
    "model_type": "dbrx", "d_model": 6144, "n_heads": 48, "n_layers": 40, "max_seq_len": 32768, "vocab_size": 100352,
    "attn_config": {"clip_qkv": 8, "kv_n_heads": 8, "model_type": "", "rope_theta": 500000},
    "ffn_config": {
        "ffn_hidden_size": 10752, "model_type": "", "moe_jitter_eps": 0.01, "moe_loss_weight": 0.05,
        "moe_num_experts": 16, "moe_top_k": 4,
    },
    "emb_pdrop": 0.0, "resid_pdrop": 0.0, "tie_word_embeddings": False, "eos_token_id": 100257,
}  # fmt: skip
CONFIGS = {"qwen2": QWEN2, "qwen3": QWEN3, "olmoe": OLMOE, "dbrx": DBRX}


def changed(config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """With the change, in which an object is merged into the one that is there."""
    merged = {
        name: {**config[name], **value} if isinstance(config.get(name), dict) and isinstance(value, dict) else value
        for name, value in change.items()
    }
    return config | merged


def layout_of(config: dict[str, Any]) -> ModelLayout:
    return family_of(config).layout(config)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (QWEN2, {"experts": 60, "top_k": 4, "ffn": 1408, "shared_ffn": 5632, "dense_ffn": None, "renormalise": None,
                 "qkv_bias": True, "head_dim": 128, "context": 8192, "moe_layers": tuple(range(24)), "bos": 151643}),
        (QWEN3, {"experts": 128, "top_k": 8, "ffn": 768, "shared_ffn": None, "dense_ffn": None, "renormalise": True,
                 "qkv_bias": None, "head_dim": 128, "heads": 32, "kv_heads": 4, "rope_theta": "1000000.0"}),
        (OLMOE, {"experts": 64, "top_k": 8, "ffn": 1024, "renormalise": None, "clip_qkv": None, "rms_eps": "1e-05",
                 "head_dim": 128, "rope_theta": "10000.0", "eos": (50279,), "bos": None}),
        (DBRX, {"experts": 16, "top_k": 4, "ffn": 10752, "renormalise": True, "gate_norm": "1.0", "clip_qkv": "8.0",
                "heads": 48, "kv_heads": 8, "head_dim": 128, "rope_theta": "500000.0", "rms_eps": "1e-05",
                "context": 32768}),
    ], ids=list(CONFIGS),
)  # fmt: skip
def test_published_config_gives_its_layout(config: dict[str, Any], expected: dict[str, Any]) -> None:
    layout = layout_of(config)
    assert {name: getattr(layout, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("config", "change", "field", "expected"),
    [
        (QWEN2, {"norm_topk_prob": True}, "renormalise", True),
        (QWEN2, {"norm_topk_prob": None}, "renormalise", None),
        (QWEN2, {"qkv_bias": False}, "qkv_bias", None),
        (QWEN2, {"mlp_only_layers": [0, 23]}, "moe_layers", tuple(range(1, 23))),
        (QWEN2, {"mlp_only_layers": [0]}, "dense_ffn", 5632),
        (QWEN2, {"decoder_sparse_step": 2}, "moe_layers", tuple(range(1, 24, 2))),
        (QWEN2, {"decoder_sparse_step": 2, "mlp_only_layers": [1]}, "moe_layers", tuple(range(3, 24, 2))),
        (QWEN2, {"use_sliding_window": True, "sliding_window": 4096}, "context", 4096),
        (QWEN2, {"sliding_window": 0, "layer_types": ["full_attention"] * 24}, "context", 8192),
        (QWEN2, {"num_experts": None, "num_local_experts": 60}, "experts", 60),
        (QWEN2, {"rope_theta": None}, "rope_theta", "10000.0"),
        (QWEN3, {"num_experts": None, "num_local_experts": 128}, "experts", 128),
        (QWEN3, {"num_local_experts": 128}, "experts", 128),
        (QWEN3, {"norm_topk_prob": False}, "renormalise", None),
        (QWEN3, {"head_dim": None}, "head_dim", 64),
        (QWEN3, {"mlp_only_layers": [47]}, "dense_ffn", 6144),
        (QWEN3, {"use_sliding_window": True, "sliding_window": 1024}, "context", 1024),
        (QWEN3, {"rope_theta": None, "rope_parameters": {"rope_theta": 5e6, "rope_type": "default"}},
         "rope_theta", "5000000.0"),
        (OLMOE, {"norm_topk_prob": True}, "renormalise", True),
        (OLMOE, {"clip_qkv": 8}, "clip_qkv", "8.0"),
        (OLMOE, {"num_key_value_heads": None}, "kv_heads", 16),
        (DBRX, {"attn_config": {"clip_qkv": None}}, "clip_qkv", None),
        (DBRX, {"attn_config": {"kv_n_heads": None}}, "kv_heads", 1),
        (DBRX, {"ffn_config": {"moe_normalize_expert_weights": 2.0}}, "gate_norm", "2.0"),
        (DBRX, {"ffn_config": {"moe_normalize_expert_weights": None}}, "gate_norm", None),
        (DBRX, {"ffn_config": {"moe_normalize_expert_weights": None}}, "renormalise", None),
        (DBRX, {"ffn_config": {"ffn_act_fn": {"name": "silu"}}}, "ffn", 10752),
        (DBRX, {"attn_config": {"rope_theta": None}, "rope_theta": 1e6}, "rope_theta", "1000000.0"),
        (DBRX, {"attn_config": {"rope_theta": None}}, "rope_theta", "10000.0"),
        (DBRX, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "rope_theta", "500000.0"),
    ],
)  # fmt: skip
def test_config_variants_are_understood(
    config: dict[str, Any], change: dict[str, Any], field: str, expected: object
) -> None:
    assert getattr(layout_of(changed(config, change)), field) == expected


@pytest.mark.parametrize(
    ("config", "change", "problem"),
    [
        *((config, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling") for config in CONFIGS.values()),
        *((config, {"rope_parameters": {"rope_type": "yarn"}}, "'yarn'") for config in CONFIGS.values()),
        *((config, {"partial_rotary_factor": 0.5}, "partial_rotary") for config in CONFIGS.values()),
        *((config, {"vocab_size": None}, "vocab_size must be") for config in CONFIGS.values()),
        *((config, {"hidden_act": "gelu"}, "hidden_act is 'gelu'") for config in (QWEN2, QWEN3, OLMOE)),
        *((config, {"num_experts": 0}, "num_experts must be an integer") for config in (QWEN2, QWEN3, OLMOE)),
        *((config, {"num_local_experts": 8}, "num_local_experts is 8") for config in (QWEN2, QWEN3, OLMOE)),
        *((config, {"norm_topk_prob": "yes"}, "norm_topk_prob is 'yes'") for config in (QWEN2, QWEN3, OLMOE)),
        *((config, {"attention_bias": True}, "attention_bias is True") for config in (QWEN3, OLMOE)),
        *((config, {"dual_chunk_attention_config": {}}, "dual_chunk_attention") for config in (QWEN2, QWEN3)),
        *((config, {"mlp_only_layers": 3}, "mlp_only_layers must be a list") for config in (QWEN2, QWEN3)),
        *((config, {"decoder_sparse_step": 49}, "none of .. layers experts") for config in (QWEN2, QWEN3)),
        *((config, {"num_key_value_heads": 3}, "heads over 3") for config in (QWEN2, QWEN3, OLMOE)),
        (QWEN2, {"use_mrope": True}, "use_mrope is True"),
        (QWEN2, {"layer_types": ["sliding_attention"]}, "layer_types is .* where use_sliding_window is False"),
        (QWEN2, {"use_sliding_window": True, "layer_types": ["linear_attention"]}, "layer_types is"),
        (QWEN2, {"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size must be"),
        (QWEN2, {"mlp_only_layers": [1], "intermediate_size": None}, "intermediate_size must be"),
        (QWEN3, {"head_dim": 24}, "head size 24"),
        (OLMOE, {"head_dim": 64}, "head_dim is 64"),
        (OLMOE, {"clip_qkv": -1}, "clip_qkv must be a positive number"),
        (DBRX, {"attn_config": 5}, "attn_config must be an object"),
        (DBRX, {"attn_config": {"clip_qkv": "8"}}, "clip_qkv must be a positive number"),
        (DBRX, {"attn_config": {"kv_n_heads": 5}}, "48 heads over 5"),
        (DBRX, {"ffn_config": {"ffn_act_fn": {"name": "gelu"}}}, "name is 'gelu'"),
        (DBRX, {"ffn_config": {"moe_normalize_expert_weights": 0}}, "moe_normalize_expert_weights must be"),
        (DBRX, {"ffn_config": {"moe_top_k": 17}}, "top 17 of 16 experts"),
        (DBRX, {"ffn_config": {"uniform_expert_assignment": True}}, "uniform_expert_assignment is True"),
        (DBRX, {"rope_parameters": {"rope_theta": 1e4}}, "rope_theta is 500000.0 in attn_config and 10000.0 outside"),
        (DBRX, {"d_model": 6143}, "48 heads of 127|head size 127"),
        (DBRX, {"d_model": 6160}, "48 heads of 128 in rows of 6160"),
    ],
)
def test_config_that_cannot_be_computed_is_refused_with_its_field(
    config: dict[str, Any], change: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UnsupportedModel, match=problem):
        layout_of(changed(config, change))


def test_dbrx_with_a_tied_head_is_refused() -> None:
    assert not FAMILIES["dbrx"].is_tied(DBRX)
    with pytest.raises(UnsupportedModel, match="tie_word_embeddings is True"):
        FAMILIES["dbrx"].is_tied(DBRX | {"tie_word_embeddings": True})


@pytest.mark.parametrize(
    ("config", "update", "problem"),
    [
        *((config, {"gate_scale": "2.0"}, "it has gate_scale") for config in CONFIGS.values()),
        *((config, {"gate_groups": GateGroups(groups=2, top=1)}, "gate_groups") for config in CONFIGS.values()),
        *((config, {"moe_layers": (3, 2)}, "layers with experts") for config in CONFIGS.values()),
        *((config, {"moe_layers": (0, 99)}, "layers with experts") for config in CONFIGS.values()),
        *((config, {"head_dim": 528}, "head size 528, more than 512") for config in CONFIGS.values()),
        *((config, {"family": "mixtral"}, "family is mixtral") for config in CONFIGS.values()),
        *((config, {"shared_ffn": 64}, "it has shared_ffn") for config in (QWEN3, OLMOE, DBRX)),
        *((config, {"moe_layers": (1, 2)}, "a layer without experts") for config in CONFIGS.values()),
        (QWEN2, {"shared_ffn": None}, "no shared expert"),
        (QWEN2, {"clip_qkv": "1.0"}, "it has clip_qkv"),
        (OLMOE, {"qkv_bias": True}, "it has qkv_bias"),
    ],
)
def test_foreign_manifest_with_options_its_family_does_not_compute_is_refused(
    config: dict[str, Any], update: dict[str, Any], problem: str
) -> None:
    family = family_of(config)
    with pytest.raises(UnsupportedModel, match=problem):
        family.check(family.layout(config).model_copy(update=update))


@pytest.fixture
def golden(tiny: Any) -> Callable[[str], Any]:
    """The checkpoint of a golden case, to be broken."""

    def load(name: str) -> Any:
        source = Checkpoint.open(GOLDEN / name)
        tiny.config = json.loads((GOLDEN / name / "config.json").read_text())
        tiny.tensors = {
            tensor: source.read(TensorRef.all_of(tensor, *stored.shape)) for tensor, stored in source.tensors.items()
        }
        return tiny

    return load


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("qwen2-moe", "model.layers.0.self_attn.k_proj.bias"),
        ("qwen2-moe", "model.layers.2.mlp.shared_expert.down_proj.weight"),
        ("qwen2-moe", "model.layers.0.mlp.shared_expert_gate.weight"),
        ("qwen2-moe", "model.layers.1.mlp.up_proj.weight"),
        ("qwen2-moe", "model.layers.0.mlp.experts.2.gate_proj.weight"),
        ("qwen3-moe", "model.layers.1.self_attn.q_norm.weight"),
        ("qwen3-moe", "model.layers.0.mlp.gate.weight"),
        ("olmoe", "model.layers.1.self_attn.k_norm.weight"),
        ("dbrx", "transformer.blocks.0.ffn.experts.mlp.v1"),
        ("dbrx", "transformer.blocks.1.norm_attn_norm.attn.Wqkv.weight"),
        ("dbrx", "transformer.norm_f.weight"),
    ],
)
def test_missing_tensor_is_named(golden: Callable[[str], Any], tmp_path: Path, name: str, missing: str) -> None:
    checkpoint = golden(name)
    del checkpoint.tensors[missing]
    with pytest.raises(CheckpointCorrupt, match=f"tensor {missing} is missing"):
        split(checkpoint.write(), tmp_path / "out", model=TINY, format="f32")


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("qwen2-moe", "model.layers.0.mlp.experts.3.gate_proj.weight"),
        ("qwen2-moe", "model.layers.1.mlp.shared_expert_gate.weight"),
        ("qwen2-moe-renormalised", "model.layers.0.self_attn.q_proj.bias"),
        ("qwen3-moe", "model.layers.0.mlp.shared_expert.up_proj.weight"),
        ("olmoe", "model.layers.0.self_attn.o_proj.bias"),
        ("dbrx", "transformer.blocks.0.norm_attn_norm.norm_1.bias"),
        ("dbrx", "transformer.blocks.2.ffn.experts.mlp.w1"),
    ],
)
def test_tensor_left_over_is_named(golden: Callable[[str], Any], tmp_path: Path, name: str, extra: str) -> None:
    checkpoint = golden(name)
    checkpoint.tensors[extra] = np.zeros(4, np.float32)
    with pytest.raises(CheckpointCorrupt, match=f"tensor {extra} is left over"):
        split(checkpoint.write(), tmp_path / "out", model=TINY, format="f32")


def test_dbrx_with_another_number_of_experts_is_refused_with_both_shapes(
    golden: Callable[[str], Any], tmp_path: Path
) -> None:
    checkpoint = golden("dbrx")
    checkpoint.tensors["transformer.blocks.1.ffn.experts.mlp.w2"] = np.zeros((64, 32), np.float32)
    with pytest.raises(CheckpointCorrupt, match=r"mlp.w2: expected shape \[80, 32\], got \[64, 32\]"):
        split(checkpoint.write(), tmp_path / "out", model=TINY, format="f32")


def fused(tensors: dict[str, Any]) -> dict[str, Any]:
    """The same weights with the experts of a layer in two tensors, as newer tools save them."""
    made = {name: tensor for name, tensor in tensors.items() if ".mlp.experts." not in name}
    for prefix in {name[: name.index(".mlp.experts.") + 13] for name in tensors if ".mlp.experts." in name}:
        count = len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})
        gate, up, down = (
            [tensors[f"{prefix}{expert}.{part}_proj.weight"] for expert in range(count)]
            for part in ("gate", "up", "down")
        )
        made[f"{prefix}gate_up_proj"] = np.stack([np.concatenate(pair) for pair in zip(gate, up, strict=True)])
        made[f"{prefix}down_proj"] = np.stack(down)
    return made


@pytest.mark.parametrize("name", FUSED)
def test_fused_names_give_the_bytes_of_hub_names(golden: Callable[[str], Any], tmp_path: Path, name: str) -> None:
    checkpoint = golden(name)
    hub = split(checkpoint.write(), tmp_path / "hub", model=TINY, format="f32")
    before = set(checkpoint.tensors)
    checkpoint.tensors = fused(checkpoint.tensors)
    assert before != set(checkpoint.tensors)
    assert split(checkpoint.write(), tmp_path / "fused", model=TINY, format="f32") == hub


def test_shared_expert_comes_back_as_it_was(golden: Callable[[str], Any], tmp_path: Path) -> None:
    checkpoint = golden("qwen2-moe")
    split(checkpoint.write(), tmp_path / "out", model=TINY, format="f32")
    stored, prefix = Artifacts.open(tmp_path / "out").read_shared(2), "model.layers.2.mlp.shared_expert"
    gate, up = (checkpoint.tensors[f"{prefix}.{part}_proj.weight"] for part in ("gate", "up"))
    assert np.array_equal(stored["gate_up"], np.concatenate([gate, up]))
    assert np.array_equal(stored["shared_gate"], checkpoint.tensors[f"{prefix}_gate.weight"])


@pytest.mark.parametrize("format", ["f32", "q4"])
def test_dbrx_expert_is_its_slice_with_the_last_matrix_turned(
    golden: Callable[[str], Any], tmp_path: Path, format: Any
) -> None:
    checkpoint, random = golden("dbrx-2-norm"), np.random.default_rng(7)
    checkpoint.config["ffn_config"]["ffn_hidden_size"] = 64
    for name in checkpoint.tensors:
        if ".experts." in name:
            checkpoint.tensors[name] = random.standard_normal((4 * 64, 32), dtype=np.float32)
    split(checkpoint.write(), tmp_path / "out", model=TINY, format=format)
    stored, rows = Artifacts.open(tmp_path / "out").read_expert(1, 2), slice(128, 192)
    w1, v1, w2 = (
        checkpoint.tensors[f"transformer.blocks.1.ffn.experts.mlp.{name}"][rows] for name in ("w1", "v1", "w2")
    )
    if format == "f32":
        assert np.array_equal(stored["gate_up"], np.concatenate([w1, v1]))
        assert np.array_equal(stored["down"], w2.T)
    else:
        error = np.abs(dequantize(stored["down.q4"], stored["down.scales"]) - w2.T).reshape(32, 2, 32)
        assert (error <= np.abs(stored["down.scales"])[..., None] * 1.0001).all()


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(QWEN2, 14_315_784_192), (QWEN3, 30_532_122_624), (OLMOE, 6_919_161_856), (DBRX, 131_596_523_520)],
    ids=list(CONFIGS),
)
def test_tensors_of_a_published_config_have_the_published_number_of_weights(
    config: dict[str, Any], parameters: int
) -> None:
    family = family_of(config)
    refs = family.tensors(family.layout(config), (), tied=False).refs()
    assert sum(math.prod(whole) for whole in {ref.name: ref.whole for ref in refs}.values()) == parameters


def test_theta_stands_beside_rope_parameters_that_have_none() -> None:
    config = QWEN3 | {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}}
    assert family_of(config).layout(config).rope_theta == "500000.0"


def test_scaling_of_type_default_is_none() -> None:
    config = QWEN3 | {"rope_scaling": {"rope_type": "default"}}
    assert family_of(config).layout(config) == family_of(QWEN3).layout(QWEN3)
