"""What a config and tensor names mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sawyer.errors import CheckpointCorrupt, UnsupportedModel
from sawyer.ids import ModelId
from sawyer.model.families import family_named, family_of
from sawyer.model.families.mixtral import Mixtral
from sawyer.model.split import split


def test_layout_of_a_hub_config(tiny: Any) -> None:
    layout = Mixtral().layout(tiny.config)
    assert (layout.hidden, layout.ffn, layout.experts, layout.top_k) == (32, 64, 3, 2)
    assert (layout.heads, layout.kv_heads, layout.head_dim, layout.context) == (2, 1, 16, 64)
    assert (layout.rms_eps, layout.rope_theta) == ("1e-05", "1000000.0")
    assert (layout.moe_layers, layout.eos, layout.bos) == ((0, 1), (2,), 1)


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        (
            {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
            "rope_theta",
            "500000.0",
        ),
        ({"rope_theta": 10000}, "rope_theta", "10000.0"),
        ({"rope_theta": None}, "rope_theta", "1000000.0"),
        ({"rms_norm_eps": 1e-6}, "rms_eps", "1e-06"),
        ({"head_dim": 48}, "head_dim", 48),
        ({"num_key_value_heads": None}, "kv_heads", 2),
        ({"eos_token_id": [2, 7]}, "eos", (2, 7)),
        ({"eos_token_id": None, "bos_token_id": None}, "eos", ()),
        ({"sliding_window": 48}, "context", 48),
        ({"sliding_window": 4096}, "context", 64),
    ],
)
def test_config_variants_are_understood(tiny: Any, change: dict[str, Any], field: str, expected: object) -> None:
    assert getattr(Mixtral().layout(tiny.config | change), field) == expected


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type is 'yarn'"),
        ({"rope_parameters": {"factor": 2.0}}, "hold more than a theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_size": None}, "hidden_size must be an integer"),
        ({"hidden_size": "32"}, "hidden_size must be an integer"),
        ({"hidden_size": True}, "hidden_size must be an integer"),
        ({"vocab_size": 2**40}, "vocab_size must be an integer"),
        ({"num_hidden_layers": 2**24}, "num_hidden_layers must be an integer from 1 to"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be an integer"),
        ({"rms_norm_eps": -1}, "rms_norm_eps must be a positive number"),
        ({"rope_theta": "big"}, "rope_theta must be a positive number"),
        ({"eos_token_id": [-1]}, "eos_token_id must be token ids"),
        ({"num_experts_per_tok": 4}, "top 4 of 3 experts"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "4 heads over 3 key-value heads"),
        ({"head_dim": 24}, "head size 24"),
    ],
)
def test_config_that_cannot_be_computed_is_refused_with_its_field(
    tiny: Any, change: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UnsupportedModel, match=problem):
        Mixtral().layout(tiny.config | change)


def test_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedModel, match="'dense-thing' is not known; known: mixtral"):
        family_of({"model_type": "dense-thing"})
    assert family_named("mixtral").name == "mixtral"


GATE = "model.layers.1.block_sparse_moe.gate.weight"
W2 = "model.layers.0.block_sparse_moe.experts.2.w2.weight"


@pytest.mark.parametrize("missing", [GATE, W2, "lm_head.weight", "model.layers.0.self_attn.k_proj.weight"])
def test_missing_tensor_is_named(tiny: Any, tmp_path: Path, missing: str) -> None:
    del tiny.tensors[missing]
    with pytest.raises(CheckpointCorrupt, match=f"tensor {missing} is missing"):
        split(tiny.write(), tmp_path / "out", model=ModelId("tiny"))


@pytest.mark.parametrize("misshaped", [GATE, W2, "model.embed_tokens.weight"])
def test_misshaped_tensor_is_named_with_both_shapes(tiny: Any, tmp_path: Path, misshaped: str) -> None:
    right = list(tiny.tensors[misshaped].shape)
    tiny.tensors[misshaped] = tiny.tensors[misshaped].T.copy()
    wrong = str(right[::-1]).replace("[", r"\[")
    with pytest.raises(CheckpointCorrupt, match=f"tensor {misshaped}: expected shape .*, got {wrong}"):
        split(tiny.write(), tmp_path / "out", model=ModelId("tiny"))


@pytest.mark.parametrize(
    "extra",
    [
        "model.layers.0.block_sparse_moe.experts.3.w1.weight",
        "model.layers.0.mlp.shared_expert.gate_proj.weight",
        "model.layers.0.self_attn.q_proj.bias",
    ],
)
def test_tensor_left_over_is_named(tiny: Any, tmp_path: Path, extra: str) -> None:
    tiny.tensors[extra] = tiny.tensors["model.norm.weight"]
    with pytest.raises(CheckpointCorrupt, match=f"tensor {extra} is left over"):
        split(tiny.write(), tmp_path / "out", model=ModelId("tiny"))
    assert not (tmp_path / "out").exists()


def test_tensors_that_mean_nothing_may_be_there(tiny: Any, tmp_path: Path) -> None:
    tiny.config["tie_word_embeddings"] = True  # then lm_head.weight is a copy that nobody reads
    tiny.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = tiny.tensors["model.norm.weight"]
    split(tiny.write(), tmp_path / "out", model=ModelId("tiny"))
    assert not (tmp_path / "out" / "trunk" / "head.f32.bin").exists()


@pytest.mark.parametrize("format", ["f32", "q4"])
def test_fused_names_give_the_bytes_of_hub_names(tiny: Any, another_tiny: Any, tmp_path: Path, format: Any) -> None:
    another_tiny.fuse()
    manifests = [
        split(source.write(), tmp_path / str(n), model=ModelId("tiny"), format=format)
        for n, source in enumerate((tiny, another_tiny))
    ]
    assert manifests[0] == manifests[1]
