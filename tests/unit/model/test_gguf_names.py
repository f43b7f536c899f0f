"""Tensors of GGUF files under hub names: what the converter did to each family is undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest

from sawyer.errors import CheckpointCorrupt, UnsupportedModel
from sawyer.model import gguf, gguf_names
from sawyer.model.checkpoint import TensorRef
from sawyer.model.gguf import Gguf

LAYERS, HIDDEN, FFN, EXPERTS, HEADS, KV_HEADS, VOCAB = 2, 32, 64, 3, 4, 2, 40
Array = np.ndarray[Any, Any]
Open = Callable[..., Gguf]


def metadata(architecture: str, **more: Any) -> dict[str, Any]:
    said = {
        "block_count": LAYERS, "context_length": 64, "embedding_length": HIDDEN, "feed_forward_length": FFN,
        "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "rope.freq_base": 1e6,
        "expert_count": EXPERTS, "expert_used_count": 2,
        "attention.layer_norm_epsilon" if architecture == "dbrx" else "attention.layer_norm_rms_epsilon": 1e-5,
    } | more  # fmt: skip
    if architecture.startswith("qwen"):
        said["expert_feed_forward_length"] = FFN
    return {f"{architecture}.{key}": value for key, value in said.items()}


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def written(architecture: str, tensors: dict[str, Array], **more: Any) -> Gguf:
        stored = {"token_embd.weight": weights(VOCAB, HIDDEN)} | tensors
        return Gguf.open(
            gguf_files.write_gguf(
                tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf", architecture, metadata(architecture, **more),
                gguf_files.in_types(stored, {}),
            )
        )  # fmt: skip

    return written


def weights(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def assert_holds(source: Gguf, hub: dict[str, Array]) -> None:
    """Each tensor whole, a part of it, and in slices."""
    for name, expected in hub.items():
        assert np.array_equal(source.read(TensorRef.all_of(name, *expected.shape)), expected), name
        part = TensorRef(name, expected.shape, (expected.size // 3,), start=expected.size // 5)
        assert np.array_equal(source.read(part), expected.reshape(-1)[part.start :][: expected.size // 3]), name
        assert np.array_equal(np.concatenate([*source.stream(part)]), source.read(part)), name


@pytest.mark.parametrize("prefix", ["qwen2moe", "qwen3moe", "olmoe", "deepseek2"])
def test_stacked_experts_come_one_by_one(prefix: str, opened: Open) -> None:
    stacks = {name: weights(EXPERTS, *shape) for name, shape in (("gate", (FFN, HIDDEN)), ("down", (HIDDEN, FFN)))}
    more = DEEPSEEK if prefix == "deepseek2" else {"expert_shared_feed_forward_length": FFN} if "2" in prefix else {}
    source = opened(prefix, {f"blk.1.ffn_{name}_exps.weight": stack for name, stack in stacks.items()}, **more)
    hub = {
        f"model.layers.1.mlp.experts.{expert}.{name}_proj.weight": matrix
        for name, stack in stacks.items()
        for expert, matrix in enumerate(stack)
    }
    assert set(hub) < set(source.tensors)
    assert_holds(source, hub)


def test_mixtral_of_before_stacks_has_its_experts_apart(opened: Open) -> None:
    gate, down = weights(FFN, HIDDEN), weights(HIDDEN, FFN)
    source = opened("llama", {"blk.0.ffn_gate.2.weight": gate, "blk.0.ffn_down.2.weight": down})
    prefix = "model.layers.0.block_sparse_moe.experts.2."
    assert_holds(source, {f"{prefix}w1.weight": gate, f"{prefix}w2.weight": down})


def test_rows_of_queries_and_keys_are_in_order_again_only_where_they_were_shuffled(opened: Open) -> None:
    q, k, v = weights(HIDDEN, HIDDEN), weights(HIDDEN // 2, HIDDEN), weights(HIDDEN // 2, HIDDEN, seed=1)
    hub = {f"model.layers.0.self_attn.{name}_proj.weight": one for name, one in (("q", q), ("k", k), ("v", v))}
    stored = {
        "blk.0.attn_q.weight": gguf_files.shuffled(q, HEADS), "blk.0.attn_k.weight": gguf_files.shuffled(k, KV_HEADS),
        "blk.0.attn_v.weight": v,
    }  # fmt: skip
    assert_holds(opened("llama", stored), hub)
    plain = {"blk.0.attn_q.weight": q, "blk.0.attn_k.weight": k, "blk.0.attn_v.weight": v}
    assert_holds(opened("qwen3moe", plain), hub)


def test_qwen2_moe_has_biases_and_a_gated_shared_expert(opened: Open) -> None:
    bias, gate, shared = weights(HIDDEN), weights(HIDDEN, seed=1), weights(FFN, HIDDEN)
    stored = {
        "blk.0.attn_q.bias": bias, "blk.0.ffn_gate_inp_shexp.weight": gate, "blk.0.ffn_up_shexp.weight": shared,
        "blk.0.ffn_gate_inp.weight": shared, "blk.1.ffn_gate.weight": shared,
    }  # fmt: skip
    hub = {
        "self_attn.q_proj.bias": bias, "mlp.shared_expert_gate.weight": gate[None], "mlp.gate.weight": shared,
        "mlp.shared_expert.up_proj.weight": shared,
    }  # fmt: skip
    source = opened("qwen2moe", stored, expert_shared_feed_forward_length=FFN)
    assert_holds(source, {f"model.layers.0.{name}": one for name, one in hub.items()})
    assert_holds(source, {"model.layers.1.mlp.gate_proj.weight": shared})


def test_olmoe_has_norms_of_queries_and_keys(opened: Open) -> None:
    norm = weights(HIDDEN)
    source = opened("olmoe", {"blk.0.attn_q_norm.weight": norm, "output_norm.weight": norm})
    assert_holds(source, {"model.layers.0.self_attn.q_norm.weight": norm, "model.norm.weight": norm})


NOPE, ROPE, VALUE, RANK = 16, 8, 24, 32
DEEPSEEK = {
    "attention.kv_lora_rank": RANK, "rope.dimension_count": ROPE, "expert_feed_forward_length": FFN,
    "attention.key_length": NOPE + ROPE, "attention.value_length": VALUE,
}  # fmt: skip


def test_kv_b_of_deepseek_is_whole_again(opened: Open) -> None:
    kv_b = weights(HEADS * (NOPE + VALUE), RANK)
    heads = kv_b.reshape(HEADS, NOPE + VALUE, RANK)
    split = {"blk.0.attn_k_b.weight": heads[:, :NOPE].swapaxes(1, 2), "blk.0.attn_v_b.weight": heads[:, NOPE:]}
    hub = {"model.layers.0.self_attn.kv_b_proj.weight": kv_b}
    assert_holds(opened("deepseek2", split, **DEEPSEEK), hub)
    assert_holds(opened("deepseek2", {"blk.0.attn_kv_b.weight": kv_b}, **DEEPSEEK), hub)


@pytest.mark.parametrize("missing", ["k", "v"])
def test_half_of_kv_b_is_refused(missing: str, opened: Open) -> None:
    halves = {"k": weights(HEADS, RANK, NOPE), "v": weights(HEADS, VALUE, RANK)}
    del halves[missing]
    with pytest.raises(CheckpointCorrupt, match=r"blk\.0\.attn_k_b\.weight .* do not fit together"):
        opened("deepseek2", {f"blk.0.attn_{one}_b.weight": half for one, half in halves.items()}, **DEEPSEEK)


def test_dbrx_has_its_down_matrices_turned_back(opened: Open) -> None:
    w1, v1, w2 = (weights(EXPERTS * FFN, HIDDEN, seed=seed) for seed in range(3))
    stacked = {name: one.reshape(EXPERTS, FFN, HIDDEN) for name, one in (("gate", w1), ("up", v1))}
    stacked["down"] = w2.reshape(EXPERTS, FFN, HIDDEN).swapaxes(1, 2)
    qkv = weights(2 * HIDDEN, HIDDEN)
    stored = {f"blk.1.ffn_{name}_exps.weight": one for name, one in stacked.items()}
    source = opened("dbrx", stored | {"blk.1.attn_qkv.weight": qkv, "blk.1.attn_output_norm.weight": qkv[0]})
    prefix = "transformer.blocks.1."
    hub = {"ffn.experts.mlp.w1": w1, "ffn.experts.mlp.v1": v1, "ffn.experts.mlp.w2": w2,
           "norm_attn_norm.attn.Wqkv.weight": qkv, "norm_attn_norm.norm_2.weight": qkv[0]}  # fmt: skip
    assert_holds(source, {f"{prefix}{name}": one for name, one in hub.items()})
    assert_holds(source, {"transformer.wte.weight": weights(VOCAB, HIDDEN)})
    turned = TensorRef(f"{prefix}ffn.experts.mlp.w2", w2.shape, (FFN, HIDDEN), start=FFN * HIDDEN, transposed=True)
    assert np.array_equal(source.read(turned), w2[FFN : 2 * FFN].T)


def test_matrix_that_was_turned_is_decoded_once_for_all_its_slices(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    w2 = weights(EXPERTS * FFN, HIDDEN)
    stack = w2.reshape(EXPERTS, FFN, HIDDEN).swapaxes(1, 2)
    source = opened("dbrx", {"blk.0.ffn_down_exps.weight": stack})
    monkeypatch.setattr(gguf, "SLICE_WEIGHTS", 100)
    asked: list[int] = []
    decode = gguf.decode
    monkeypatch.setattr(gguf, "decode", lambda kind, raw: (asked.append(len(raw)), decode(kind, raw))[1])
    name = "transformer.blocks.0.ffn.experts.mlp.w2"
    rows = [source.read(TensorRef(name, w2.shape, (8, HIDDEN), start)) for start in range(0, w2.size, 8 * HIDDEN)]
    assert np.array_equal(np.concatenate(rows), w2)
    assert sum(asked) == w2.nbytes
    across = TensorRef(name, w2.shape, (w2.size // 2,), w2.size // 4)
    assert np.array_equal(source.read(across), w2.reshape(-1)[w2.size // 4 :][: w2.size // 2])


def test_tensor_that_nobody_knows_keeps_its_name_so_that_the_split_finds_it_left_over(opened: Open) -> None:
    source = opened("llama", {"rope_freqs.weight": weights(8), "blk.0.ffn_exp_probs_b.bias": weights(3)})
    assert {"rope_freqs.weight", "blk.0.ffn_exp_probs_b.bias"} < set(source.tensors)


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"blk.0.ffn_gate_exps.weight": (FFN, HIDDEN)}, "expected a stack of matrices"),
        ({"blk.0.attn_q.weight": (HIDDEN + 1, HIDDEN)}, r"shape \[33, 32\] is not that of 4 heads"),
        ({"blk.0.attn_q.weight": (HIDDEN,)}, "is not that of 4 heads"),
        ({"blk.0.ffn_gate_exps.weight": (3, FFN, HIDDEN), "blk.0.ffn_gate.1.weight": (FFN, HIDDEN)}, "there already"),
        ({"blk.0.attn_v.weight": (4, 32), "blk.00.attn_v.weight": (4, 32)}, "there already"),
    ],
)
def test_shapes_that_cannot_be_are_refused(tensors: dict[str, Any], problem: str, opened: Open) -> None:
    with pytest.raises(CheckpointCorrupt, match=problem):
        opened("llama", {name: weights(*shape) for name, shape in tensors.items()})


def test_more_experts_than_any_message_can_name_are_refused(opened: Open) -> None:
    with pytest.raises(UnsupportedModel, match="holds 1025 experts"):
        opened("llama", {"blk.0.ffn_gate_exps.weight": weights(1025, 1, 32)})


def test_more_matrices_than_any_model_are_refused(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_names, "MAX_VIEWS", 4)
    with pytest.raises(UnsupportedModel, match="more than 4 matrices"):
        opened("llama", {"blk.0.ffn_gate_exps.weight": weights(4, 1, 32)})
