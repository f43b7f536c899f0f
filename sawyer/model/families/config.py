"""Reading fields of a checkpoint's config.json, which a stranger wrote: typed, bounded, and named when wrong."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

from sawyer.errors import UnsupportedModel

MAX_SIZE: Final = 1 << 24
"""No dimension of any model is larger."""


def integer(config: Mapping[str, Any], field: str, default: int | None = None) -> int:
    """A size of at least 1; null and absent give `default`. Raises UnsupportedModel."""
    value = config.get(field)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIZE:
        raise UnsupportedModel(f"config.json: {field} must be an integer from 1 to {MAX_SIZE}, got {value!r}")
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
