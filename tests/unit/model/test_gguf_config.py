"""What the metadata of GGUF files mean as a config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sawyer.errors import CheckpointCorrupt, UnsupportedModel
from sawyer.model.families import family_of
from sawyer.model.gguf_blocks import BLOCK_TYPES
from sawyer.model.gguf_config import config_of
from sawyer.model.gguf_header import GgufTensor

Metadata = dict[str, Any]


def tensors(*names: str, vocab: int = 100) -> dict[str, GgufTensor]:
    f32 = BLOCK_TYPES[0]
    shapes = {"token_embd.weight": (vocab, 64), **dict.fromkeys(names, (64,))}
    return {name: GgufTensor(Path("a.gguf"), f32, shape, 0) for name, shape in shapes.items()}


def metadata(architecture: str, **keys: Any) -> Metadata:
    """What the converter writes for every model, and `keys` with two low lines for a dot."""
    usual = {
        "block_count": 2, "context_length": 4096, "embedding_length": 64, "feed_forward_length": 128,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-06,
        "rope.freq_base": 1e6, "expert_count": 8, "expert_used_count": 2, "vocab_size": 100,
    }  # fmt: skip
    usual |= {key.replace("__", "."): value for key, value in keys.items()}
    said = {f"{architecture}.{key}": value for key, value in usual.items() if value is not None}
    return {
        "general.architecture": architecture,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    } | said


def test_llama_with_experts_is_a_mixtral() -> None:
    config = config_of(metadata("llama", rope__dimension_count=16), tensors("output.weight"))
    assert config == {
        "model_type": "mixtral", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128, "num_local_experts": 8,
        "num_experts_per_tok": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "rope_scaling": None, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": [2],
        "tie_word_embeddings": False,
    }  # fmt: skip
    layout = family_of(config).layout(config)
    assert (layout.family, layout.experts, layout.rope_theta, layout.eos) == ("mixtral", 8, "1000000.0", (2,))


def test_rope_base_that_is_not_written_is_that_of_llama() -> None:
    assert config_of(metadata("llama", rope__freq_base=None), tensors())["rope_theta"] == 10_000.0


def test_head_is_tied_where_the_file_has_none() -> None:
    assert config_of(metadata("llama"), tensors())["tie_word_embeddings"] is True


def test_end_of_a_turn_ends_an_answer_too() -> None:
    said = metadata("llama") | {"tokenizer.ggml.eot_token_id": 7}
    assert config_of(said, tensors())["eos_token_id"] == [2, 7]


def test_qwen2_moe_does_not_renormalise_and_names_its_dense_layers() -> None:
    said = metadata("qwen2moe", expert_feed_forward_length=48, expert_shared_feed_forward_length=96)
    config = config_of(said, tensors("blk.1.ffn_gate_inp.weight"))
    expected = {
        "model_type": "qwen2_moe", "num_experts": 8, "intermediate_size": 128, "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 96, "norm_topk_prob": False, "mlp_only_layers": [0],
        "decoder_sparse_step": 1,
    }  # fmt: skip
    assert expected.items() <= config.items()


def test_first_files_of_qwen2_moe_say_by_their_tensors_how_wide_experts_are() -> None:
    shapes = {"blk.0.ffn_gate_exps.weight": (8, 48, 64), "blk.0.ffn_gate_shexp.weight": (96, 64)}
    stored = tensors("blk.0.ffn_gate_inp.weight") | {
        name: GgufTensor(Path("a.gguf"), BLOCK_TYPES[0], shape, 0) for name, shape in shapes.items()
    }
    config = config_of(metadata("qwen2moe"), stored)
    assert {"moe_intermediate_size": 48, "shared_expert_intermediate_size": 96}.items() <= config.items()


def test_qwen3_moe_renormalises_and_has_heads_of_its_own_size() -> None:
    said = metadata("qwen3moe", expert_feed_forward_length=48, attention__key_length=128, attention__value_length=128)
    config = config_of(said, tensors("blk.0.ffn_gate_inp.weight", "blk.1.ffn_gate_inp.weight"))
    assert {
        "model_type": "qwen3_moe",
        "norm_topk_prob": True,
        "head_dim": 128,
        "mlp_only_layers": [],
    }.items() <= config.items()


def test_olmoe_does_not_renormalise() -> None:
    config = config_of(metadata("olmoe"), tensors())
    assert {"model_type": "olmoe", "norm_topk_prob": False, "intermediate_size": 128}.items() <= config.items()


def test_dbrx_has_its_own_words() -> None:
    said = metadata("dbrx", attention__layer_norm_epsilon=1e-05, attention__clamp_kqv=8.0) | {}
    del said["dbrx.attention.layer_norm_rms_epsilon"]
    config = config_of(said, tensors("output.weight"))
    assert {
        "model_type": "dbrx",
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 4096,
    }.items() <= config.items()
    assert config["attn_config"] == {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e6}
    ffn = {"ffn_hidden_size": 128, "moe_num_experts": 8, "moe_top_k": 2, "moe_normalize_expert_weights": 1.0}
    assert ffn.items() <= config["ffn_config"].items()


DEEPSEEK = {
    "attention__kv_lora_rank": 32, "rope__dimension_count": 8, "expert_feed_forward_length": 48,
    "expert_shared_count": 2,
    "leading_dense_block_count": 1, "expert_weights_scale": 1.5, "rope__scaling__type": "yarn",
    "rope__scaling__factor": 40.0, "rope__scaling__original_context_length": 4096,
    "rope__scaling__yarn_log_multiplier": 0.0707,
}  # fmt: skip
LITE = {
    "model_type": "deepseek_v2", "kv_lora_rank": 32, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "v_head_dim": 16, "num_key_value_heads": 4, "n_routed_experts": 8, "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5, "topk_method": "greedy", "norm_topk_prob": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "heads",
    [
        {"attention__head_count_kv": 4, "attention__key_length": 24, "attention__value_length": 16},
        {
            "attention__head_count_kv": 1, "attention__key_length": 40, "attention__value_length": 32,
            "attention__key_length_mla": 24, "attention__value_length_mla": 16,
        },
    ],
    ids=["whole-kv_b", "split-kv_b"],
)  # fmt: skip
def test_deepseek_lite_is_the_same_from_old_and_new_files(heads: dict[str, int]) -> None:
    config = config_of(metadata("deepseek2", **DEEPSEEK, **heads), tensors("output.weight"))
    assert LITE.items() <= config.items()
    assert config["rope_scaling"] == {
        "type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
        "mscale": 0.707, "mscale_all_dim": 0.707,
    }  # fmt: skip


LITE_HEADS = {"attention__key_length": 24, "attention__value_length": 16}
NO_MSCALE = {"rope__scaling__yarn_log_multiplier": None}
FULL = {"attention__q_lora_rank": 24, "attention__key_length": 24, "attention__value_length": 16}


def test_full_deepseek_has_its_groups() -> None:
    said = metadata("deepseek2", **DEEPSEEK, **FULL, expert_group_count=8, expert_group_used_count=3)
    config = config_of(said, tensors())
    groups = {"q_lora_rank": 24, "topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3}
    assert groups.items() <= config.items()


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (metadata("mamba"), "architecture 'mamba' is not known; known: llama, qwen2moe"),
        ({}, "architecture None is not known"),
        ({"general.architecture": "x" * 1000}, "architecture 'xxx"),
        (metadata("llama", expert_count=None), "a llama without experts"),
        (metadata("llama", expert_count=0), "a llama without experts"),
        (metadata("llama", attention__value_length=8), "attention.value_length is 8, but a head has 16 values"),
        (metadata("llama", rope__dimension_count=8), "rope.dimension_count is 8, but a head has 16 values"),
        (metadata("llama", expert_gating_func=2), "llama.expert_gating_func is not softmax"),
        (metadata("llama", expert_weights_scale=2.5), "expert_weights_scale is not 1"),
        (metadata("llama", expert_weights_norm=False), "expert_weights_norm is false"),
        (metadata("llama", logit_scale=0.5), r"the key llama.logit_scale \(0.5\) is not known"),
        (metadata("llama", attention__sliding_window=4096), "the key llama.attention.sliding_window"),
        (metadata("deepseek2", **DEEPSEEK, **FULL), "expert_group_count is missing"),
        (metadata("deepseek2", **DEEPSEEK | LITE_HEADS | NO_MSCALE), "does not say mscale"),
        (metadata("deepseek2", **DEEPSEEK, **FULL, expert_gating_func=2), "DeepSeek-V3 is not known"),
    ],
)
def test_what_we_would_compute_wrongly_is_refused(said: Metadata, problem: str) -> None:
    with pytest.raises(UnsupportedModel, match=problem):
        config_of(said, tensors())


@pytest.mark.parametrize("value", [0, 0.0, False, "", "none"])
def test_option_that_is_off_is_no_obstacle(value: Any) -> None:
    assert config_of(metadata("llama", some__option=value), tensors())["model_type"] == "mixtral"


@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_scaled_rope_reaches_the_family_which_refuses_it(scaling: str) -> None:
    config = config_of(metadata("llama", rope__scaling__type=scaling, rope__scaling__factor=2.0), tensors())
    with pytest.raises(UnsupportedModel, match="rope_scaling"):
        family_of(config).layout(config)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"block_count": None}, "llama.block_count must be an integer from 1 to 16777216, got None"),
        ({"block_count": 0}, "llama.block_count must be an integer"),
        ({"embedding_length": 2**40}, "llama.embedding_length must be an integer"),
        ({"attention__head_count": True}, "llama.attention.head_count must be an integer"),
        ({"attention__head_count": np.array([4, 4])}, "llama.attention.head_count must be an integer"),
        ({"feed_forward_length": "128"}, "llama.feed_forward_length must be an integer"),
        ({"rope__freq_base": float("nan")}, "llama.rope.freq_base must be a number"),
        ({"rope__freq_base": float("inf")}, "llama.rope.freq_base must be a number"),
        ({"rope__scaling__type": 1}, "llama.rope.scaling.type must be text"),
        ({"expert_weights_norm": 1}, "llama.expert_weights_norm must be true or false"),
    ],
)
def test_value_that_is_none_is_refused_with_its_key(keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointCorrupt, match=problem):
        config_of(metadata("llama", **keys), tensors())


def test_file_without_an_embedding_is_refused() -> None:
    with pytest.raises(CheckpointCorrupt, match=r"tensor token_embd\.weight is missing"):
        config_of(metadata("llama"), {})


def test_layers_that_are_only_claimed_cost_nothing() -> None:
    said = metadata("qwen2moe", block_count=2**24, expert_feed_forward_length=48, expert_shared_feed_forward_length=96)
    assert len(config_of(said, tensors())["mlp_only_layers"]) == 1


def test_yarn_betas_are_those_of_the_file() -> None:
    keys = {"rope__scaling__yarn_beta_fast": 16.0, "rope__scaling__yarn_beta_slow": 2.0}
    config = config_of(metadata("deepseek2", **DEEPSEEK, **LITE_HEADS, **keys), tensors("output.weight"))
    assert (config["rope_scaling"]["beta_fast"], config["rope_scaling"]["beta_slow"]) == (16.0, 2.0)


def test_positions_that_are_scaled_in_a_way_that_is_not_said_are_refused() -> None:
    config = config_of(metadata("llama", rope__scaling__factor=4.0), tensors("output.weight"))
    with pytest.raises(UnsupportedModel, match="rope_scaling"):
        family_of(config).layout(config)
    without = DEEPSEEK | {"rope__scaling__type": None}
    with pytest.raises(UnsupportedModel, match=r"yarn_log_multiplier|rope_scaling"):
        config_of(metadata("deepseek2", **without, **LITE_HEADS), tensors("output.weight"))


def test_attention_that_sees_what_comes_after_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"attention\.causal is false"):
        config_of(metadata("llama", attention__causal=False), tensors())
