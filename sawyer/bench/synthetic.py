"""Makes checkpoints to measure with: Mixtral-like, with random weights, in the files of a real one. What is measured
is time, so the weights only have to be numbers of the usual size; split, files and graphs are the real ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

import numpy as np

WEIGHT_SCALE: Final = 0.02
"""Standard deviation of the weights, as models are initialised: rows stay well inside float16."""
SEED: Final = 7
BF16_BYTES: Final = 2
HEAD_DIM: Final = 64

Weights = tuple[str, tuple[int, ...]]
"""A tensor's name and shape."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a synthetic model. Every layer has experts; there is no end token, so a text is as long as asked."""

    hidden: int
    ffn: int
    layers: int
    experts: int
    top_k: int = 2
    vocab: int = 4096
    context: int = 1024

    @property
    def config(self) -> dict[str, object]:
        """config.json of a Mixtral of this size."""
        heads = max(1, self.hidden // HEAD_DIM)
        return {
            "model_type": "mixtral",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(1, heads // 4),
            "head_dim": HEAD_DIM,
            "num_local_experts": self.experts,
            "num_experts_per_tok": self.top_k,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        }


def write_checkpoint(folder: Path, shape: Shape) -> Path:
    """Writes config.json, tokenizer.json and bfloat16 weights; the same shape always gives the same bytes. Memory: one
    tensor at a time. The tokenizer's words are w0, w1, ...: one token each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(shape.vocab)), encoding="utf-8")
    random = np.random.default_rng(SEED)
    tensors = list(_tensors(shape))
    header, end = {}, 0
    for name, size in tensors:
        begin, end = end, end + prod(size) * BF16_BYTES
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for name, size in tensors:
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            weights = random.standard_normal(size, dtype=np.float32) * np.float32(WEIGHT_SCALE) + np.float32(centre)
            file.write((weights.view(np.uint32) >> 16).astype("<u2").tobytes())
    return folder


def prompt(words: int, first: int = 0) -> str:
    """So many tokens of the synthetic tokenizer."""
    return " ".join(f"w{first + n}" for n in range(words))


def _tokenizer(vocab: int) -> dict[str, object]:
    words = {f"w{n}": n for n in range(vocab)}
    return {
        "version": "1.0",
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }


def _tensors(shape: Shape) -> Iterator[Weights]:
    hidden, ffn = shape.hidden, shape.ffn
    heads = max(1, hidden // HEAD_DIM)
    width, kv_width = heads * HEAD_DIM, max(1, heads // 4) * HEAD_DIM
    yield "model.embed_tokens.weight", (shape.vocab, hidden)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (shape.vocab, hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)
        for part, rows in (("q", width), ("k", kv_width), ("v", kv_width)):
            yield f"{prefix}self_attn.{part}_proj.weight", (rows, hidden)
        yield f"{prefix}self_attn.o_proj.weight", (hidden, width)
        yield f"{prefix}block_sparse_moe.gate.weight", (shape.experts, hidden)
        for expert in range(shape.experts):
            own = f"{prefix}block_sparse_moe.experts.{expert}."
            yield f"{own}w1.weight", (ffn, hidden)
            yield f"{own}w3.weight", (ffn, hidden)
            yield f"{own}w2.weight", (hidden, ffn)
