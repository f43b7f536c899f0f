"""The tensors of a GGUF file under the names and in the shapes of Hugging Face checkpoints. Pure: no IO.

llama.cpp's converter stacks the experts of a layer, reorders the rows of some query and key matrices, transposes DBRX's
down matrices and cuts DeepSeek's kv_b_proj in two. A `View` says how to get back what the checkpoint had.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sawyer.errors import CheckpointCorrupt, UnsupportedModel
from sawyer.model.gguf_header import GgufTensor
from sawyer.schemas.tensors import MAX_EXPERTS

Floats = NDArray[np.float32]
Stored = Mapping[str, GgufTensor]
Rearrange = Callable[[Sequence[Floats]], Floats]
"""For each part [groups, weights of that part in a group] -> [groups, weights of a group]."""


@dataclass(frozen=True, slots=True)
class Part:
    """Weights of a stored tensor: from `start` on, `group` of them for each group of the view."""

    tensor: str
    start: int
    group: int


@dataclass(frozen=True, slots=True)
class View:
    """A tensor of the checkpoint, of this shape, made of stored ones. Without `rearrange` it is a run of the weights of
    its only part; with it, group after group of `group` weights is made of the parts."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    rearrange: Rearrange | None = None

    @property
    def group(self) -> int:
        """Weights that come out of one group."""
        return sum(part.group for part in self.parts)


_LLAMA_LAYER: Final = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_DENSE: Final = {
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
}
_QK_NORMS: Final = {"attn_q_norm.weight": "self_attn.q_norm.weight", "attn_k_norm.weight": "self_attn.k_norm.weight"}
_MLP_EXPERTS: Final = {one: f"mlp.experts.{{}}.{one}_proj" for one in ("gate", "up", "down")}

LAYERS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "llama": {
            **_LLAMA_LAYER,
            "ffn_gate_inp.weight": "block_sparse_moe.gate.weight",
            "attn_rot_embd.weight": "self_attn.rotary_emb.inv_freq",
        },
        "qwen2moe": {
            **_LLAMA_LAYER,
            **_DENSE,
            **{f"attn_{one}.bias": f"self_attn.{one}_proj.bias" for one in "qkv"},
            **{f"ffn_{one}_shexp.weight": f"mlp.shared_expert.{one}_proj.weight" for one in ("gate", "up", "down")},
            "ffn_gate_inp_shexp.weight": "mlp.shared_expert_gate.weight",
        },
        "qwen3moe": {**_LLAMA_LAYER, **_DENSE, **_QK_NORMS},
        "olmoe": {**_LLAMA_LAYER, **_DENSE, **_QK_NORMS},
        "deepseek2": {
            **_LLAMA_LAYER,
            **_DENSE,
            **{f"ffn_{one}_shexp.weight": f"mlp.shared_experts.{one}_proj.weight" for one in ("gate", "up", "down")},
            "attn_q_a.weight": "self_attn.q_a_proj.weight",
            "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
            "attn_q_b.weight": "self_attn.q_b_proj.weight",
            "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
            "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
            "attn_kv_b.weight": "self_attn.kv_b_proj.weight",
        },
        "dbrx": {
            "attn_norm.weight": "norm_attn_norm.norm_1.weight",
            "attn_output_norm.weight": "norm_attn_norm.norm_2.weight",
            "attn_qkv.weight": "norm_attn_norm.attn.Wqkv.weight",
            "attn_output.weight": "norm_attn_norm.attn.out_proj.weight",
            "ffn_gate_inp.weight": "ffn.router.layer.weight",
        },
    }
)
"""By architecture: what follows `blk.N.` -> what follows the layer's prefix in a checkpoint."""

_EXPERTS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "llama": {
            "gate": "block_sparse_moe.experts.{}.w1",
            "up": "block_sparse_moe.experts.{}.w3",
            "down": "block_sparse_moe.experts.{}.w2",
        },
        **dict.fromkeys(("qwen2moe", "qwen3moe", "olmoe", "deepseek2"), _MLP_EXPERTS),
    }
)
_GLOBAL: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_DBRX_GLOBAL: Final = {
    **_GLOBAL, "token_embd.weight": "transformer.wte.weight", "output_norm.weight": "transformer.norm_f.weight",
}  # fmt: skip
_DBRX_MLP: Final = {"gate": "w1", "up": "v1", "down": "w2"}
_ROW_VECTORS: Final = frozenset({"ffn_gate_inp_shexp.weight"})
"""Matrices of one row, which the converter stores as vectors."""
MAX_VIEWS: Final = 1 << 19
"""No model has nearly so many matrices; a hostile file could stack more."""
_BLOCK: Final = re.compile(r"blk\.([0-9]{1,5})\.(.+)")
_STACK: Final = re.compile(r"ffn_(gate|up|down)_exps\.weight")
_LONE: Final = re.compile(r"ffn_(gate|up|down)\.([0-9]{1,5})\.weight")


def views(architecture: str, config: Mapping[str, Any], stored: Stored) -> dict[str, View]:
    """Every stored tensor by the name it has in a checkpoint; one that we know nothing of keeps its own. `config` is
    what sawyer.model.gguf_config made. Raises CheckpointCorrupt for shapes that cannot be what their names say."""
    found: dict[str, View] = {}
    for name in stored:
        for hub_name, view in _of(architecture, config, stored, name):
            if hub_name in found:
                raise CheckpointCorrupt(f"tensor {name} holds {hub_name}, which is there already")
            if len(found) >= MAX_VIEWS:
                raise UnsupportedModel(f"more than {MAX_VIEWS} matrices are no model that is known")
            found[hub_name] = view
    return found


def _of(architecture: str, config: Mapping[str, Any], stored: Stored, name: str) -> Iterator[tuple[str, View]]:
    block = _BLOCK.fullmatch(name)
    names = _DBRX_GLOBAL if architecture == "dbrx" else _GLOBAL
    if block is None:
        yield names.get(name, name), _plain(name, stored[name].shape)
        return
    layer, suffix = int(block[1]), block[2]
    prefix = f"transformer.blocks.{layer}." if architecture == "dbrx" else f"model.layers.{layer}."
    shape = stored[name].shape
    if stack := _STACK.fullmatch(suffix):
        if architecture == "dbrx":
            yield _dbrx_stack(prefix, stack[1], name, shape)
        else:
            yield from _experts(f"{prefix}{_EXPERTS[architecture][stack[1]]}.weight", name, shape)
    elif (lone := _LONE.fullmatch(suffix)) and architecture in _EXPERTS:
        expert = _EXPERTS[architecture][lone[1]].format(int(lone[2]))  # files of before April 2024
        yield f"{prefix}{expert}.weight", _plain(name, shape)
    elif suffix in ("attn_k_b.weight", "attn_v_b.weight") and architecture == "deepseek2":
        if suffix.startswith("attn_k") or f"blk.{layer}.attn_k_b.weight" not in stored:
            yield f"{prefix}self_attn.kv_b_proj.weight", _kv_b(stored, layer)
    else:
        hub_name = LAYERS[architecture].get(suffix)
        view = _plain(name, (1, *shape) if suffix in _ROW_VECTORS and len(shape) == 1 else shape)
        if architecture == "llama" and suffix in ("attn_q.weight", "attn_k.weight"):
            heads = config["num_attention_heads" if suffix.startswith("attn_q") else "num_key_value_heads"]
            view = _rotary_rows(name, shape, heads)
        yield name if hub_name is None else prefix + hub_name, view


def _plain(name: str, shape: tuple[int, ...]) -> View:
    return View(shape, (Part(name, 0, prod(shape)),))


def _experts(hub_name: str, name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, View]]:
    """Each expert's matrix of a stack [experts, rows, columns]."""
    count, rows, columns = _stack_shape(name, shape)
    for expert in range(count):
        yield hub_name.format(expert), View((rows, columns), (Part(name, expert * rows * columns, rows * columns),))


def _stack_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise CheckpointCorrupt(f"tensor {name}: expected a stack of matrices, got shape {list(shape)}")
    if shape[0] > MAX_EXPERTS:
        raise UnsupportedModel(f"tensor {name} holds {shape[0]} experts; at most {MAX_EXPERTS} are possible")
    return shape[0], shape[1], shape[2]


def _dbrx_stack(prefix: str, which: str, name: str, shape: tuple[int, ...]) -> tuple[str, View]:
    """DBRX's checkpoint has w1, v1 and w2 as [experts x ffn, hidden]; of these the converter transposes w2."""
    count, rows, columns = _stack_shape(name, shape)
    hub_name = f"{prefix}ffn.experts.mlp.{_DBRX_MLP[which]}"
    if which != "down":
        return hub_name, _plain(name, (count * rows, columns))
    part = Part(name, 0, rows * columns)
    return hub_name, View((count * columns, rows), (part,), partial(_transposed, rows=rows))


def _transposed(parts: Sequence[Floats], *, rows: int) -> Floats:
    groups = len(parts[0])
    return parts[0].reshape(groups, rows, -1).transpose(0, 2, 1).reshape(groups, -1)


def _rotary_rows(name: str, shape: tuple[int, ...], heads: int) -> View:
    """llama.cpp rotates neighbours, a checkpoint the two halves of a head: the converter shuffled each head's rows, so
    that row 2i was row i, and row 2i + 1 was row i + half. A head is a group."""
    if len(shape) != 2 or shape[0] % (2 * heads):
        raise CheckpointCorrupt(f"tensor {name}: shape {list(shape)} is not that of {heads} heads")
    part = Part(name, 0, prod(shape) // heads)
    return View(shape, (part,), partial(_halved, columns=shape[1]))


def _halved(parts: Sequence[Floats], *, columns: int) -> Floats:
    groups = len(parts[0])
    return parts[0].reshape(groups, -1, 2, columns).transpose(0, 2, 1, 3).reshape(groups, -1)


def _kv_b(stored: Stored, layer: int) -> View:
    """DeepSeek's kv_b_proj [heads x (nope + value), rank] from k_b [heads, rank, nope] and v_b [heads, value, rank]."""
    keys, values = (f"blk.{layer}.attn_{one}_b.weight" for one in "kv")
    shapes = [stored[name].shape if name in stored else () for name in (keys, values)]
    if [len(shape) for shape in shapes] != [3, 3] or shapes[0][:2] != (shapes[1][0], shapes[1][2]):
        raise CheckpointCorrupt(f"tensors {keys} {list(shapes[0])} and {values} {list(shapes[1])} do not fit together")
    (heads, rank, nope), value = shapes[0], shapes[1][1]
    parts = (Part(keys, 0, rank * nope), Part(values, 0, value * rank))
    return View((heads * (nope + value), rank), parts, partial(_keys_then_values, rank=rank))


def _keys_then_values(parts: Sequence[Floats], *, rank: int) -> Floats:
    return np.concatenate([_transposed(parts[:1], rows=rank), parts[1]], axis=1)
