"""GGUF files for tests, written by ggml's own package: what llama.cpp's converter makes of a checkpoint."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

from sawyer.model.checkpoint import Checkpoint, TensorRef

Array = np.ndarray[Any, Any]
Stored = tuple[Array, str]
"""The bytes of a tensor [..., bytes of a row] (or its floats), and the type they are of."""

MIXED = {"attn_q": "Q8_0", "attn_k": "Q5_0", "attn_v": "F16", "ffn_gate_exps": "Q4_0", "ffn_up_exps": "Q5_0",
         "ffn_down_exps": "Q8_0", "token_embd": "Q8_0", "output": "Q5_1"}  # fmt: skip
"""Types by the name of a tensor, mixed as real files are; the rest is F32."""


def store(tensor: Array, kind: str = "F32") -> Stored:
    """A tensor quantised by ggml's package, which can do this for some types."""
    return quantize(np.ascontiguousarray(tensor), GGMLQuantizationType[kind]), kind


def random_blocks(shape: tuple[int, ...], kind: str, seed: int = 0) -> Stored:
    """Blocks of random bits, but for their factors, which give weights of ordinary size."""
    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (*shape[:-1], shape[-1] // weights, size), dtype=np.uint8)
    for at in {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2),
               "Q6_K": (208,)}.get(kind, (0,)):  # fmt: skip
        factors = (random.standard_normal(raw.shape[:-1]) * 0.005).astype("<f2")
        raw[..., at : at + 2] = factors[..., None].view(np.uint8)
    if kind in ("Q4_K", "Q5_K"):
        raw[..., 0, 4:8] &= 0xC0  # scales of zero: then only the minimum is left
    return raw.reshape(*shape[:-1], -1), kind


def decoded(stored: Stored) -> Array:
    """The weights that are meant, by ggml's package."""
    return dequantize(stored[0], GGMLQuantizationType[stored[1]])


def write_gguf(
    file: Path, architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, Stored], **options: Any
) -> Path:
    """`metadata` has full keys; lists become arrays."""
    writer = GGUFWriter(file, architecture, **options)
    for key, value in metadata.items():
        if key == "general.alignment":
            writer.add_custom_alignment(value)
        elif isinstance(value, list | np.ndarray):
            writer.add_array(key, list(value))
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, value)
    for name, (raw, kind) in tensors.items():
        writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def shuffled(rows: Array, heads: int) -> Array:
    """What the converter does to the rows of query and key matrices of the llama architecture."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def mixtral_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the converter writes of a Mixtral's config."""
    heads = config["num_attention_heads"]
    return {
        "llama.block_count": config["num_hidden_layers"], "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"], "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": heads, "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.rope.freq_base": float(config.get("rope_theta") or config["rope_parameters"]["rope_theta"]),
        "llama.rope.dimension_count": config.get("head_dim") or config["hidden_size"] // heads,
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.expert_count": config["num_local_experts"], "llama.expert_used_count": config["num_experts_per_tok"],
        "llama.vocab_size": config["vocab_size"], "general.file_type": 15,
        "tokenizer.ggml.bos_token_id": config["bos_token_id"], "tokenizer.ggml.eos_token_id": config["eos_token_id"],
    }  # fmt: skip


def mixtral_tensors(config: Mapping[str, Any], hub: Mapping[str, Array]) -> dict[str, Array]:
    """A Mixtral's tensors under hub names -> as the converter names, stacks and shuffles them."""
    tensors = {
        "token_embd.weight": hub["model.embed_tokens.weight"], "output_norm.weight": hub["model.norm.weight"],
    }  # fmt: skip
    if "lm_head.weight" in hub:
        tensors["output.weight"] = hub["lm_head.weight"]
    for layer in range(config["num_hidden_layers"]):
        blk, model = f"blk.{layer}.", f"model.layers.{layer}."
        attention, moe = f"{model}self_attn.", f"{model}block_sparse_moe."
        tensors[f"{blk}attn_norm.weight"] = hub[f"{model}input_layernorm.weight"]
        tensors[f"{blk}ffn_norm.weight"] = hub[f"{model}post_attention_layernorm.weight"]
        tensors[f"{blk}attn_q.weight"] = shuffled(hub[f"{attention}q_proj.weight"], config["num_attention_heads"])
        tensors[f"{blk}attn_k.weight"] = shuffled(hub[f"{attention}k_proj.weight"], config["num_key_value_heads"])
        tensors[f"{blk}attn_v.weight"] = hub[f"{attention}v_proj.weight"]
        tensors[f"{blk}attn_output.weight"] = hub[f"{attention}o_proj.weight"]
        tensors[f"{blk}ffn_gate_inp.weight"] = hub[f"{moe}gate.weight"]
        for name, w in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            stack = [hub[f"{moe}experts.{expert}.{w}.weight"] for expert in range(config["num_local_experts"])]
            tensors[f"{blk}ffn_{name}_exps.weight"] = np.stack(stack)
    return tensors


def in_types(tensors: Mapping[str, Array], kinds: Mapping[str, str]) -> dict[str, Stored]:
    """Each tensor quantised to the type of its name, without layer and suffix."""
    return {name: store(one, kinds.get(name.split(".")[-2], "F32")) for name, one in tensors.items()}


def hub_tensors(folder: Path) -> dict[str, Array]:
    """All tensors of a checkpoint folder in hub names, fused experts taken apart."""
    checkpoint = Checkpoint.open(folder)
    hub: dict[str, Array] = {}
    for name, stored in checkpoint.tensors.items():
        tensor = checkpoint.read(TensorRef.all_of(name, *stored.shape))
        prefix, fused, which = name.partition("mlp.experts.")
        if not fused:
            hub[name.replace("mlp.gate.", "block_sparse_moe.gate.")] = tensor
            continue
        for expert, matrix in enumerate(tensor):
            own = f"{prefix}block_sparse_moe.experts.{expert}."
            if which == "down_proj":
                hub[f"{own}w2.weight"] = matrix
            else:
                hub[f"{own}w1.weight"], hub[f"{own}w3.weight"] = np.split(matrix, 2)
    return hub


def write_checkpoint(folder: Path, config: Mapping[str, Any], hub: Mapping[str, Array], tokenizer: bytes) -> Path:
    """A folder of safetensors, in float32."""
    header, data = {}, b""
    for name, tensor in hub.items():
        raw = tensor.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header).encode()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes(tokenizer)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data)
    return folder


def unshuffled(tensors: Mapping[str, Stored], config: Mapping[str, Any]) -> dict[str, Array]:
    """The weights that a Mixtral file means, in hub names: decoded by ggml's package, converted back one by one."""
    hub: dict[str, Array] = {}
    for name, stored in tensors.items():
        weights, parts = decoded(stored), name.split(".")
        prefix = f"model.layers.{parts[1]}."
        if parts[-2] in ("attn_q", "attn_k"):
            heads = config["num_attention_heads" if parts[-2] == "attn_q" else "num_key_value_heads"]
            pairs = weights.reshape(heads, -1, 2, weights.shape[1])
            hub[f"{prefix}self_attn.{parts[-2][-1]}_proj.weight"] = np.concatenate(
                [head[:, half] for head in pairs for half in (0, 1)]
            )
        elif parts[-2].endswith("_exps"):
            w = {"ffn_gate_exps": "w1", "ffn_up_exps": "w3", "ffn_down_exps": "w2"}[parts[-2]]
            for expert, matrix in enumerate(weights):
                hub[f"{prefix}block_sparse_moe.experts.{expert}.{w}.weight"] = matrix
        else:
            hub[_PLAIN[parts[-2]].format(prefix)] = weights
    return hub


_PLAIN = {
    "token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight", "output": "lm_head.weight",
    "attn_norm": "{}input_layernorm.weight", "ffn_norm": "{}post_attention_layernorm.weight",
    "attn_v": "{}self_attn.v_proj.weight", "attn_output": "{}self_attn.o_proj.weight",
    "ffn_gate_inp": "{}block_sparse_moe.gate.weight",
}  # fmt: skip
