"""Reading fields of a checkpoint's config.json, which a stranger wrote: typed, bounded, and named when wrong."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

from sawyer.errors import UnsupportedModel
from sawyer.schemas.tensors import MAX_LAYERS

MAX_SIZE: Final = 1 << 24
"""No dimension of any model is larger."""


def integer(config: Mapping[str, Any], field: str, default: int | None = None, *, most: int = MAX_SIZE) -> int:
    """A size of at least 1; null and absent give `default`. Raises UnsupportedModel."""
    value = config.get(field)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise UnsupportedModel(f"config.json: {field} must be an integer from 1 to {most}, got {value!r}")
    return value


def real_text(config: Mapping[str, Any], field: str, default: float | None = None) -> str:
    """A positive number as the decimal text that a ModelLayout holds. Raises UnsupportedModel."""
    value = config.get(field)
    if value is None:
        value = default
    if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value) or value <= 0:
        raise UnsupportedModel(f"config.json: {field} must be a positive number, got {value!r}")
    return repr(float(value))


def token_ids(config: Mapping[str, Any], field: str) -> tuple[int, ...]:
    """One token id, a list of them, or none. Raises UnsupportedModel."""
    value = config.get(field)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one <= MAX_SIZE for one in ids):
        raise UnsupportedModel(f"config.json: {field} must be token ids, got {value!r}")
    return tuple(ids)


def require(config: Mapping[str, Any], field: str, *accepted: object) -> None:
    """Raises UnsupportedModel unless the field has one of these values (None: also when absent)."""
    value = config.get(field)
    if value not in accepted:
        raise UnsupportedModel(f"config.json: {field} is {value!r}; only {', '.join(map(repr, accepted))} is known")


def flag(config: Mapping[str, Any], field: str, *, default: bool) -> bool:
    """True or false; null and absent give `default`. Raises UnsupportedModel."""
    require(config, field, None, False, True)
    value = config.get(field)
    return default if value is None else bool(value)


def section(config: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    """The object in this field, empty where it is null or absent. Raises UnsupportedModel."""
    value = config.get(field)
    if value is not None and not isinstance(value, dict):
        raise UnsupportedModel(f"config.json: {field} must be an object, got {value!r}")
    return value or {}


def expert_count(config: Mapping[str, Any]) -> int:
    """From `num_experts` or `num_local_experts`: tools write the one, the other, or both. Raises UnsupportedModel."""
    known = [integer(config, name) for name in ("num_experts", "num_local_experts") if config.get(name) is not None]
    if len(set(known)) > 1:
        raise UnsupportedModel(f"config.json: num_experts is {known[0]} and num_local_experts is {known[1]}")
    return known[0] if known else integer(config, "num_experts")


def context(config: Mapping[str, Any], *, windowed: bool = True) -> int:
    """How many tokens fit. Beyond a sliding window the model attends locally, which the trunk does not: if there is one
    (`windowed`), the window is the context. Raises UnsupportedModel."""
    longest = integer(config, "max_position_embeddings")
    return min(longest, integer(config, "sliding_window", longest)) if windowed else longest


def rope_theta(config: Mapping[str, Any], default: float) -> str:
    """From `rope_parameters` (new files) or from `rope_theta` beside `rope_scaling` (hub files). Positions that are
    scaled are refused. Raises UnsupportedModel."""
    require(config, "rope_scaling", None, {"rope_type": "default"}, {"type": "default"})
    require(config, "partial_rotary_factor", None, 1, 1.0)
    parameters = config.get("rope_parameters")
    if parameters is None:
        return real_text(config, "rope_theta", default)
    if not isinstance(parameters, dict) or not parameters.keys() <= {"rope_theta", "rope_type"}:
        raise UnsupportedModel(f"config.json: rope_parameters {parameters!r} hold more than a theta")
    require(parameters, "rope_type", None, "default")
    if parameters.get("rope_theta") is None:
        return real_text(config, "rope_theta", default)
    return real_text(parameters, "rope_theta")


def sparse_layers(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """The layers with experts: each `decoder_sparse_step`th, but none of `mlp_only_layers`. Raises UnsupportedModel."""
    step = integer(config, "decoder_sparse_step", 1)
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(layer, int) for layer in dense):
        raise UnsupportedModel(f"config.json: mlp_only_layers must be a list of layers, got {dense!r}")
    skipped = frozenset(dense)
    sparse = tuple(layer for layer in range(layers) if (layer + 1) % step == 0 and layer not in skipped)
    if not sparse:
        raise UnsupportedModel(
            f"config.json: decoder_sparse_step {step} and mlp_only_layers {dense} leave none of {layers} layers experts"
        )
    return sparse


def usual_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a ModelLayout that most families keep under the same names. Raises UnsupportedModel."""
    require(config, "hidden_act", None, "silu")
    hidden, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    return {
        "vocab": integer(config, "vocab_size"),
        "hidden": hidden,
        "layers": integer(config, "num_hidden_layers", most=MAX_LAYERS),
        "heads": heads,
        "kv_heads": integer(config, "num_key_value_heads", heads),
        "head_dim": integer(config, "head_dim", max(1, hidden // heads)),
        "top_k": integer(config, "num_experts_per_tok"),
        **ends(config),
    }


def ends(config: Mapping[str, Any]) -> dict[str, Any]:
    """`eos` and `bos` of a ModelLayout. Raises UnsupportedModel."""
    bos = token_ids(config, "bos_token_id")
    return {"eos": token_ids(config, "eos_token_id"), "bos": bos[0] if bos else None}
