"""The config.json that a GGUF file's metadata stands for, in the fields that the families read. Pure: no IO.

The file says less than a checkpoint: what llama.cpp computes without being told (whether weights are renormalised) is
filled in here, and a key that could change the computation and is not known is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from types import MappingProxyType
from typing import Any, Final

from sawyer.errors import CheckpointCorrupt, UnsupportedModel
from sawyer.model.gguf_header import GgufTensor, Value

Metadata = Mapping[str, Value]
Tensors = Mapping[str, GgufTensor]

ARCHITECTURE_KEY: Final = "general.architecture"
MAX_SIZE: Final = 1 << 24
_BETAS: Final = (("fast", 32.0), ("slow", 1.0))
"""Of YaRN, and what they are where a file does not say."""
SOFTMAX: Final = 1
"""The `expert_gating_func` of every family we know; 0 is a file that does not say."""
_HARMLESS: Final = frozenset({"vocab_size", "tensor_data_layout", "expert_group_scale", "rope.scaling.finetuned"})
"""Keys of an architecture that say what we know already, or change nothing for the models that are split."""


class _Fields:
    """The keys `ARCHITECTURE.*`, typed, and which of them were asked for."""

    def __init__(self, architecture: str, metadata: Metadata) -> None:
        self.prefix = f"{architecture}."
        self._values = {key[len(self.prefix) :]: one for key, one in metadata.items() if key.startswith(self.prefix)}
        self._asked: set[str] = set()

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A size. Raises CheckpointCorrupt if it is none, or absent without a default."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MAX_SIZE:
            raise CheckpointCorrupt(
                f"{self.prefix}{key} must be an integer from {least} to {MAX_SIZE}, got {_short(value)}"
            )
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A finite number. Raises CheckpointCorrupt if it is none, or absent without a default."""
        value = self._value(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
            raise CheckpointCorrupt(f"{self.prefix}{key} must be a number, got {_short(value)}")
        return value

    def text(self, key: str, default: str) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise CheckpointCorrupt(f"{self.prefix}{key} must be text, got {_short(value)}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise CheckpointCorrupt(f"{self.prefix}{key} must be true or false, got {_short(value)}")
        return value

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def check_all_read(self) -> None:
        """Raises UnsupportedModel for a key that nobody asked for, unless its value means "not used"."""
        for key in sorted(self._values.keys() - self._asked - _HARMLESS):
            value = self._values[key]
            if not isinstance(value, int | float | bool | str) or value not in (0, "", "none"):
                raise UnsupportedModel(
                    f"the key {self.prefix}{key} ({_short(value)}) is not known, and could change what is computed",
                    hint="Split the safetensors checkpoint of this model instead.",
                )

    def _value(self, key: str, default: object) -> object:
        self._asked.add(key)
        return self._values.get(key, default)


def config_of(metadata: Metadata, tensors: Tensors) -> dict[str, Any]:
    """The config. Raises UnsupportedModel (an architecture or a key that is not known), CheckpointCorrupt."""
    architecture = architecture_of(metadata)
    fields = _Fields(architecture, metadata)
    _require_causal(fields)
    config = _ARCHITECTURES[architecture](fields, tensors)
    config |= {
        "vocab_size": _rows(tensors, "token_embd.weight"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": _token(metadata, "bos"),
        "eos_token_id": _ends(metadata),
    }
    fields.check_all_read()
    return config


def architecture_of(metadata: Metadata) -> str:
    """Raises UnsupportedModel for an architecture that no family here computes."""
    architecture = metadata.get(ARCHITECTURE_KEY)
    if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
        raise UnsupportedModel(
            f"GGUF architecture {_short(architecture)} is not known; known: {', '.join(_ARCHITECTURES)}"
        )
    return architecture


def _short(value: object) -> str:
    """A value of a stranger in a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _rows(tensors: Tensors, name: str) -> int:
    if name not in tensors:
        raise CheckpointCorrupt(f"tensor {name} is missing")
    return tensors[name].shape[0]


def _width(tensors: Tensors, suffix: str) -> int | None:
    """The rows of a matrix of this kind: the first files of Qwen's do not say in words how wide an expert is."""
    return next((one.shape[-2] for name, one in tensors.items() if name.endswith(suffix) and len(one.shape) > 1), None)


def _token(metadata: Metadata, name: str) -> int | None:
    token = metadata.get(f"tokenizer.ggml.{name}_token_id")
    return token if isinstance(token, int) and not isinstance(token, bool) else None


def _ends(metadata: Metadata) -> list[int]:
    """The ids that end an answer: of the text, and of a turn."""
    ids = dict.fromkeys(_token(metadata, name) for name in ("eos", "eot"))
    return [one for one in ids if one is not None]


def _decoder(fields: _Fields) -> dict[str, Any]:
    """What all decoders but DBRX say in the same words."""
    heads = fields.integer("attention.head_count")
    return {
        "hidden_size": fields.integer("embedding_length"),
        "num_hidden_layers": fields.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("attention.head_count_kv", heads),
        "max_position_embeddings": fields.integer("context_length"),
        "rms_norm_eps": fields.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.real("rope.freq_base", 10_000.0),
        "rope_scaling": _rope_scaling(fields),
    }


def _require_causal(fields: _Fields) -> None:
    if not fields.flag("attention.causal", True):
        raise UnsupportedModel(f"{fields.prefix}attention.causal is false: rows would see what comes after them")


def _rope_scaling(fields: _Fields) -> dict[str, Any] | None:
    factor = fields.real("rope.scaling.factor", 1.0)
    kind = fields.text("rope.scaling.type", "none" if factor in (0.0, 1.0) else "linear")  # as llama.cpp reads it
    original = fields.integer("rope.scaling.original_context_length", 0, least=0)
    if kind == "none":
        return None
    return {"type": kind, "factor": factor, **({"original_max_position_embeddings": original} if original else {})}


def _head_dim(fields: _Fields, hidden: int, heads: int) -> int:
    """Keys, values and rotation are all of this size in the models that we know. Raises UnsupportedModel."""
    size = fields.integer("attention.key_length", max(1, hidden // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if fields.integer(key, size) != size:
            raise UnsupportedModel(f"{fields.prefix}{key} is {fields.integer(key)}, but a head has {size} values")
    return size


def _with_heads(fields: _Fields) -> dict[str, Any]:
    config = _decoder(fields)
    config["head_dim"] = _head_dim(fields, config["hidden_size"], config["num_attention_heads"])
    if fields.integer("expert_gating_func", SOFTMAX, least=0) not in (0, SOFTMAX):
        raise UnsupportedModel(f"{fields.prefix}expert_gating_func is not softmax")
    if fields.real("expert_weights_scale", 1.0) not in (0.0, 1.0):
        raise UnsupportedModel(f"{fields.prefix}expert_weights_scale is not 1")
    return config


def _renormalised(fields: _Fields, *, default: bool) -> bool:
    """Whether a token's weights are made to add up to 1: llama.cpp knows it by architecture, few files say it."""
    return fields.flag("expert_weights_norm", default)


def _mixtral(fields: _Fields, tensors: Tensors) -> dict[str, Any]:
    del tensors
    if "expert_count" not in fields or not fields.integer("expert_count", least=0):
        raise UnsupportedModel("a llama without experts: only mixtures of experts are split")
    if not _renormalised(fields, default=True):
        raise UnsupportedModel("llama.expert_weights_norm is false, which no Mixtral is")
    return _with_heads(fields) | {
        "model_type": "mixtral",
        "intermediate_size": fields.integer("feed_forward_length"),
        "num_local_experts": fields.integer("expert_count"),
        "num_experts_per_tok": fields.integer("expert_used_count"),
        "hidden_act": "silu",
    }


def _moe(fields: _Fields, tensors: Tensors, *, renormalised: bool) -> dict[str, Any]:
    """The fields that Qwen's two families share; layers without a router are dense."""
    config = _with_heads(fields)
    layers = range(min(config["num_hidden_layers"], len(tensors)))  # a claim: every layer has tensors
    width = fields.integer("expert_feed_forward_length", _width(tensors, ".ffn_gate_exps.weight"))
    return config | {
        "num_experts": fields.integer("expert_count"),
        "num_experts_per_tok": fields.integer("expert_used_count"),
        "intermediate_size": fields.integer("feed_forward_length", width),
        "moe_intermediate_size": width,
        "norm_topk_prob": _renormalised(fields, default=renormalised),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer in layers if f"blk.{layer}.ffn_gate_inp.weight" not in tensors],
        "hidden_act": "silu",
    }


def _qwen2_moe(fields: _Fields, tensors: Tensors) -> dict[str, Any]:
    return _moe(fields, tensors, renormalised=False) | {
        "model_type": "qwen2_moe",
        "shared_expert_intermediate_size": fields.integer(
            "expert_shared_feed_forward_length", _width(tensors, ".ffn_gate_shexp.weight")
        ),
    }


def _qwen3_moe(fields: _Fields, tensors: Tensors) -> dict[str, Any]:
    return _moe(fields, tensors, renormalised=True) | {"model_type": "qwen3_moe"}


def _olmoe(fields: _Fields, tensors: Tensors) -> dict[str, Any]:
    del tensors
    return _with_heads(fields) | {
        "model_type": "olmoe",
        "num_experts": fields.integer("expert_count"),
        "num_experts_per_tok": fields.integer("expert_used_count"),
        "intermediate_size": fields.integer("feed_forward_length"),
        "norm_topk_prob": _renormalised(fields, default=False),
        "clip_qkv": fields.real("attention.clamp_kqv", 0.0) or None,
        "hidden_act": "silu",
    }


def _dbrx(fields: _Fields, tensors: Tensors) -> dict[str, Any]:
    del tensors
    heads, hidden = fields.integer("attention.head_count"), fields.integer("embedding_length")
    theta = fields.real("rope.freq_base", 10_000.0)
    _head_dim(fields, hidden, heads)
    if _rope_scaling(fields) is not None:
        raise UnsupportedModel("dbrx.rope.scaling.type is set, which no DBRX is")
    if fields.real("attention.layer_norm_epsilon", 1e-5) != 1e-5:
        raise UnsupportedModel("dbrx.attention.layer_norm_epsilon is not 1e-05")
    ffn = fields.integer("feed_forward_length")
    return {
        "model_type": "dbrx",
        "d_model": hidden,
        "n_heads": heads,
        "n_layers": fields.integer("block_count"),
        "max_seq_len": fields.integer("context_length"),
        "rope_theta": theta,
        "attn_config": {
            "kv_n_heads": fields.integer("attention.head_count_kv", heads),
            "clip_qkv": fields.real("attention.clamp_kqv", 0.0) or None,
            "rope_theta": theta,
        },
        "ffn_config": {
            "ffn_hidden_size": ffn,
            "moe_num_experts": fields.integer("expert_count"),
            "moe_top_k": fields.integer("expert_used_count"),
            "moe_normalize_expert_weights": 1.0,
            "ffn_act_fn": {"name": "silu"},
        },
    }


def _deepseek_v2(fields: _Fields, tensors: Tensors) -> dict[str, Any]:
    del tensors
    config = _decoder(fields)
    rotated = fields.integer("rope.dimension_count")
    split_kv = "attention.key_length_mla" in fields  # then key_length is that of the latent, for multi-query attention
    key = fields.integer("attention.key_length_mla") if split_kv else fields.integer("attention.key_length")
    value = fields.integer("attention.value_length_mla") if split_kv else fields.integer("attention.value_length")
    for latent in ("attention.key_length", "attention.value_length"):
        fields.integer(latent, 1)
    if key <= rotated:
        raise CheckpointCorrupt(f"deepseek2.attention.key_length {key} is not more than the {rotated} rotated values")
    if fields.integer("expert_gating_func", SOFTMAX, least=0) not in (0, SOFTMAX):
        raise UnsupportedModel("deepseek2.expert_gating_func is not softmax: DeepSeek-V3 is not known")
    q_rank = fields.integer("attention.q_lora_rank", 0, least=0) or None
    scaling = config["rope_scaling"]
    log_multiplier = fields.real("rope.scaling.yarn_log_multiplier", 0.0)
    if scaling is not None and scaling["type"] == "yarn":
        if log_multiplier <= 0:
            raise UnsupportedModel(
                "deepseek2.rope.scaling.yarn_log_multiplier is missing: the file does not say mscale"
            )
        scale = float(f"{log_multiplier * 10:.6g}")  # stored as a tenth; published models give both mscales one value
        fast, slow = (fields.real(f"rope.scaling.yarn_beta_{each}", usual) for each, usual in _BETAS)
        scaling |= {"beta_fast": fast, "beta_slow": slow, "mscale": scale, "mscale_all_dim": scale}
        for factor in ("ext", "attn"):
            if fields.real(f"rope.scaling.yarn_{factor}_factor", 1.0) != 1:
                raise UnsupportedModel(f"deepseek2.rope.scaling.yarn_{factor}_factor is not 1, which is not known")
    elif log_multiplier:
        raise UnsupportedModel("deepseek2.rope.scaling.yarn_log_multiplier is there, and no YaRN that it belongs to")
    return config | _deepseek_routing(fields, q_rank) | {
        "model_type": "deepseek_v2",
        "num_key_value_heads": config["num_attention_heads"],
        "q_lora_rank": q_rank,
        "kv_lora_rank": fields.integer("attention.kv_lora_rank"),
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": key - rotated,
        "v_head_dim": value,
        "intermediate_size": fields.integer("feed_forward_length"),
        "moe_intermediate_size": fields.integer("expert_feed_forward_length"),
        "n_routed_experts": fields.integer("expert_count"),
        "num_experts_per_tok": fields.integer("expert_used_count"),
        "n_shared_experts": fields.integer("expert_shared_count", 0, least=0) or None,
        "first_k_dense_replace": fields.integer("leading_dense_block_count", 0, least=0),
        "moe_layer_freq": 1,
        "attention_bias": False,
        "hidden_act": "silu",
    }  # fmt: skip


def _deepseek_routing(fields: _Fields, q_rank: int | None) -> dict[str, Any]:
    """Raises UnsupportedModel where the file does not say what decides the routing: older converters left the groups of
    the full model out, and llama.cpp then computed without them."""
    groups = fields.integer("expert_group_count", 0, least=0)
    chosen = fields.integer("expert_group_used_count", 0, least=0)
    if not groups and q_rank is not None:
        raise UnsupportedModel(
            "deepseek2.expert_group_count is missing: this file does not say how a full DeepSeek-V2 chooses experts",
            hint="Split the safetensors checkpoint of this model instead.",
        )
    return {
        "topk_method": "group_limited_greedy" if groups > 1 else "greedy",
        "n_group": groups or None,
        "topk_group": chosen or None,
        "routed_scaling_factor": fields.real("expert_weights_scale", 1.0) or 1.0,
        "norm_topk_prob": _renormalised(fields, default=False),
        "scoring_func": "softmax",
    }


_ARCHITECTURES: Final[Mapping[str, Callable[[_Fields, Tensors], dict[str, Any]]]] = MappingProxyType(
    {
        "llama": _mixtral,
        "qwen2moe": _qwen2_moe,
        "qwen3moe": _qwen3_moe,
        "olmoe": _olmoe,
        "deepseek2": _deepseek_v2,
        "dbrx": _dbrx,
    }
)
