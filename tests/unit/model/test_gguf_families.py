"""A checkpoint of each family, and the GGUF file that llama.cpp's converter makes of it: split into the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

from sawyer.engine.experts import EXACT, ExpertPool
from sawyer.engine.local import LocalModel
from sawyer.engine.trunk import Trunk
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.families import FAMILIES, family_of
from sawyer.model.gguf import Gguf
from sawyer.model.layout import all_experts
from sawyer.model.split import split

Array = np.ndarray[Any, Any]
BASE = {
    "vocab_size": 40, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e5, "hidden_act": "silu", "bos_token_id": 1,
    "eos_token_id": 2, "intermediate_size": 96, "num_experts_per_tok": 2,
}  # fmt: skip
YARN = {
    "type": "yarn", "factor": 40, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1,
    "mscale": 0.707, "mscale_all_dim": 0.707,
}  # fmt: skip
DEEPSEEK = BASE | {
    "model_type": "deepseek_v2", "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": None,
    "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32, "n_routed_experts": 4, "n_shared_experts": 2,
    "moe_intermediate_size": 32, "first_k_dense_replace": 1, "routed_scaling_factor": 1.5, "topk_method": "greedy",
    "norm_topk_prob": False, "rope_scaling": YARN,
}  # fmt: skip
DBRX = {
    "model_type": "dbrx", "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "vocab_size": 40,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 5e5}, "bos_token_id": 1, "eos_token_id": 2,
    "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2, "moe_normalize_expert_weights": 1},
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": BASE | {"model_type": "mixtral", "num_local_experts": 4},
    "qwen2_moe": BASE | {
        "model_type": "qwen2_moe", "num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64,
        "norm_topk_prob": False,
    },
    "qwen3_moe": BASE | {
        "model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 32, "norm_topk_prob": True,
        "head_dim": 32,
    },
    "olmoe": BASE | {"model_type": "olmoe", "num_experts": 4, "norm_topk_prob": False},
    "deepseek_v2-lite": DEEPSEEK,
    "deepseek_v2": DEEPSEEK | {
        "q_lora_rank": 32, "topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1, "rope_scaling": None,
    },
    "dbrx": DBRX,
}  # fmt: skip
ARCHITECTURES = {
    "mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "olmoe": "olmoe", "deepseek_v2": "deepseek2",
    "dbrx": "dbrx",
}  # fmt: skip


def weights(config: Mapping[str, Any]) -> dict[str, Array]:
    """Random weights for every tensor that the family expects of a checkpoint from the hub."""
    family = family_of(config)
    refs = family.tensors(family.layout(config), (), tied=family.is_tied(config)).refs()
    shapes = {ref.name: ref.whole for ref in refs}
    random = np.random.default_rng(7)
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the converter writes."""
    if config["model_type"] == "dbrx":
        attention, ffn = config["attn_config"], config["ffn_config"]
        said = {
            "block_count": config["n_layers"], "context_length": config["max_seq_len"],
            "embedding_length": config["d_model"], "feed_forward_length": ffn["ffn_hidden_size"],
            "attention.head_count": config["n_heads"],
            "attention.head_count_kv": attention["kv_n_heads"], "rope.freq_base": attention["rope_theta"],
            "attention.clamp_kqv": float(attention["clip_qkv"]), "expert_count": ffn["moe_num_experts"],
            "expert_used_count": ffn["moe_top_k"], "attention.layer_norm_epsilon": 1e-5,
        }  # fmt: skip
    else:
        said = {
            "block_count": config["num_hidden_layers"], "context_length": config["max_position_embeddings"],
            "embedding_length": config["hidden_size"], "feed_forward_length": config["intermediate_size"],
            "attention.head_count": config["num_attention_heads"], "rope.freq_base": config["rope_theta"],
            "attention.head_count_kv": config["num_key_value_heads"],
            "expert_used_count": config["num_experts_per_tok"],
            "attention.layer_norm_rms_epsilon": config["rms_norm_eps"], "vocab_size": config["vocab_size"],
            "expert_count": next(config[name] for name in config if name.endswith("_experts") and "shared" not in name),
        }  # fmt: skip
    for field, key in (
        ("moe_intermediate_size", "expert_feed_forward_length"), ("n_shared_experts", "expert_shared_count"),
        ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"), ("head_dim", "attention.key_length"),
        ("head_dim", "attention.value_length"), ("n_group", "expert_group_count"),
        ("topk_group", "expert_group_used_count"), ("first_k_dense_replace", "leading_dense_block_count"),
        ("routed_scaling_factor", "expert_weights_scale"), ("q_lora_rank", "attention.q_lora_rank"),
        ("kv_lora_rank", "attention.kv_lora_rank"), ("qk_rope_head_dim", "rope.dimension_count"),
    ):  # fmt: skip
        if config.get(field) is not None:
            said[key] = config[field]
    architecture = ARCHITECTURES[config["model_type"]]
    said |= latent_metadata(config) if architecture == "deepseek2" else {}
    ends = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    return ends | {f"{architecture}.{key}": value for key, value in said.items()}


def latent_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    rank, rotated = config["kv_lora_rank"], config["qk_rope_head_dim"]
    said = {
        "attention.head_count_kv": 1, "attention.key_length": rank + rotated, "attention.value_length": rank,
        "attention.key_length_mla": config["qk_nope_head_dim"] + rotated,
        "attention.value_length_mla": config["v_head_dim"],
    }  # fmt: skip
    yarn = config["rope_scaling"]
    if yarn:
        said |= {
            "rope.scaling.type": "yarn", "rope.scaling.factor": float(yarn["factor"]),
            "rope.scaling.original_context_length": yarn["original_max_position_embeddings"],
            "rope.scaling.yarn_log_multiplier": 0.1 * yarn["mscale_all_dim"],
        }  # fmt: skip
    return said


def converted(config: Mapping[str, Any], hub: Mapping[str, Array]) -> dict[str, gguf_files.Stored]:
    """The checkpoint's tensors by the converter's rules, and under the names that ggml's package gives them."""
    architecture = ARCHITECTURES[config["model_type"]]
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(kind, 2)
    stacks: dict[str, list[Array]] = {}
    found: dict[str, Array] = {}
    for name, tensor in hub.items():
        prefix, expert, rest = name.partition(".experts.")
        if expert and rest[0].isdigit():
            which = rest.split(".")[1]
            stacks.setdefault(
                f"{prefix.replace('block_sparse_moe', 'mlp')}.experts.{PROJECTIONS[which]}.weight", []
            ).append(tensor)
        elif ".mlp.w" in name or ".mlp.v" in name:
            stack = tensor.reshape(config["ffn_config"]["moe_num_experts"], -1, tensor.shape[1])
            found[f"{name}.weight"] = stack.swapaxes(1, 2) if name.endswith("w2") else stack
        elif name.endswith("kv_b_proj.weight"):
            heads = tensor.reshape(config["num_attention_heads"], -1, tensor.shape[1])
            nope = config["qk_nope_head_dim"]
            found[name.replace("kv_b", "k_b")] = heads[:, :nope].swapaxes(1, 2)
            found[name.replace("kv_b", "v_b")] = heads[:, nope:]
        elif architecture == "llama" and "q_proj" in name:
            found[name] = gguf_files.shuffled(tensor, config["num_attention_heads"])
        elif architecture == "llama" and "k_proj" in name:
            found[name] = gguf_files.shuffled(tensor, config["num_key_value_heads"])
        else:
            found[name] = tensor.squeeze()
    found |= {name: np.stack(parts) for name, parts in stacks.items()}
    ggml = {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in found}
    assert [name for name, mapped in ggml.items() if mapped is None] == []
    return {mapped: gguf_files.store(found[name]) for name, mapped in ggml.items() if mapped is not None}


PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
PROJECTIONS |= {name: name for name in PROJECTIONS.values()}
TOKENIZER = b'{"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}'


def test_every_family_is_tried() -> None:
    assert {config["model_type"] for config in CONFIGS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", CONFIGS)
def test_converted_checkpoint_is_split_into_the_bytes_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    hub = weights(config)
    folder = gguf_files.write_checkpoint(tmp_path / "folder", config, hub, TOKENIZER)
    architecture = ARCHITECTURES[config["model_type"]]
    file = gguf_files.write_gguf(tmp_path / "model.gguf", architecture, metadata(config), converted(config, hub))
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER)
    expected = split(folder, tmp_path / "expected", model=ModelId("m"), format="f32")
    got = split(Gguf.open(file), tmp_path / "got", model=ModelId("m"), format="f32")
    assert got.layout == expected.layout
    assert got.files == expected.files


@pytest.mark.parametrize("name", CONFIGS)
def test_exact_split_gives_the_logits_of_the_dequantised_weights(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    hub = {tensor: weights * np.float32(0.15) for tensor, weights in weights(config).items()}
    tensors = {
        tensor: gguf_files.store(raw[0], QUANTISED.get(tensor.split(".")[-2], "F32"))
        for tensor, raw in converted(config, hub).items()
    }
    architecture = ARCHITECTURES[config["model_type"]]
    file = gguf_files.write_gguf(tmp_path / "model.gguf", architecture, metadata(config), tensors)
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER)
    for format in ("gguf", "f32"):
        split(Gguf.open(file), tmp_path / format, model=ModelId("m"), format=format)
    coded, reference = Artifacts.open(tmp_path / "gguf"), Artifacts.open(tmp_path / "f32")
    codings = coded.layout.codings or ()
    down = "f32" if config["model_type"] == "dbrx" else "Q8_0"  # whose matrices the converter turns
    assert {(each.gate, each.up, each.down) for each in codings} == {("Q4_0", "Q5_1", down)}
    got, expected = logits(coded), logits(reference)
    assert float(np.abs(expected).max()) > 0.1
    np.testing.assert_allclose(got, expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())), rtol=0)
    assert np.array_equal(got.argmax(axis=-1), expected.argmax(axis=-1))


QUANTISED = {
    "attn_q": "Q8_0",
    "attn_k": "Q5_0",
    "ffn_gate_exps": "Q4_0",
    "ffn_up_exps": "Q5_1",
    "ffn_down_exps": "Q8_0",
}


def logits(artifacts: Artifacts) -> Array:
    pool = ExpertPool(artifacts, all_experts(artifacts.layout), accuracy_level=EXACT, device="cpu")
    model = LocalModel(Trunk(artifacts), pool)
    found: Array = model.trunk.logits(model.forward([3, 17, 8, 30, 5, 12], model.trunk.new_cache()))
    return found
