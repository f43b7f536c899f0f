"""A tiny checkpoint that a test can break in every way before it is written."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

CONFIG: dict[str, Any] = {
    "model_type": "mixtral", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3, "num_experts_per_tok": 2,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "hidden_act": "silu", "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False, "head_dim": None,
}  # fmt: skip


def tiny_tensors() -> dict[str, NDArray[np.float32]]:
    """Random weights of CONFIG, under hub names."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (40, 32),
        "model.norm.weight": (32,),
        "lm_head.weight": (40, 32),
    }
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{norm}.weight"] = (32,)
        for part, rows in (("q", 32), ("k", 16), ("v", 16), ("o", 32)):
            shapes[f"{prefix}self_attn.{part}_proj.weight"] = (rows, 32)
        shapes[f"{prefix}block_sparse_moe.gate.weight"] = (3, 32)
        for expert in range(3):
            for name, shape in (("w1", (64, 32)), ("w3", (64, 32)), ("w2", (32, 64))):
                shapes[f"{prefix}block_sparse_moe.experts.{expert}.{name}.weight"] = shape
    random = np.random.default_rng(11)
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def fuse(tensors: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The same weights under the names that newer tools save."""
    fused = {name: tensor for name, tensor in tensors.items() if "block_sparse_moe" not in name}
    for layer in range(2):
        old, new = f"model.layers.{layer}.block_sparse_moe.", f"model.layers.{layer}.mlp."
        w1, w3, w2 = (
            [tensors[f"{old}experts.{expert}.{name}.weight"] for expert in range(3)] for name in ("w1", "w3", "w2")
        )
        fused[f"{new}gate.weight"] = tensors[f"{old}gate.weight"]
        fused[f"{new}experts.gate_up_proj"] = np.stack([np.concatenate(pair) for pair in zip(w1, w3, strict=True)])
        fused[f"{new}experts.down_proj"] = np.stack(w2)
    return fused


def stored(tensor: NDArray[np.float32], kind: str) -> bytes:
    if kind == "BF16":
        return (tensor.view(np.uint32) >> 16).astype("<u2").tobytes()
    return tensor.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[kind]).tobytes()


def safetensors(tensors: dict[str, NDArray[np.float32]], kind: str = "F32") -> bytes:
    """The bytes of a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        raw = stored(tensor, kind)
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return with_header(json.dumps(header).encode(), data)


def with_header(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@dataclass
class Tiny:
    """What the checkpoint will be; change it, then `write`."""

    folder: Path
    config: dict[str, Any] = field(default_factory=lambda: dict(CONFIG))
    tensors: dict[str, NDArray[np.float32]] = field(default_factory=tiny_tensors)
    kind: str = "F32"

    def write(self, *, shards: int = 1) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.json").write_text(json.dumps(self.config))
        (self.folder / "tokenizer.json").write_text('{"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}')
        if shards == 1:
            (self.folder / "model.safetensors").write_bytes(safetensors(self.tensors, self.kind))
            return self.folder
        names = sorted(self.tensors)
        weight_map = {name: f"model-{n % shards}.safetensors" for n, name in enumerate(names)}
        for file in sorted(set(weight_map.values())):
            part = {name: self.tensors[name] for name in names if weight_map[name] == file}
            (self.folder / file).write_bytes(safetensors(part, self.kind))
        (self.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return self.folder

    def fuse(self) -> None:
        self.tensors = fuse(self.tensors)


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path / "checkpoint")


@pytest.fixture
def another_tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path / "another")


@pytest.fixture(scope="session")
def make_file() -> Any:
    """(header bytes, data bytes) -> the bytes of a safetensors file."""
    return with_header
