"""Times as a person types them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from sawyer.errors import UsageError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def moment_ms(text: str) -> int:
    """Milliseconds since 1970 of a day or a time, UTC unless it says otherwise. Raises UsageError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        hint = "Give it like 2026-11-23 or 2026-11-23T16:07:30 (UTC)."
        raise UsageError(f"{text!r} is no time", hint=hint) from error
    since_epoch = (found if found.tzinfo else found.replace(tzinfo=UTC)) - _EPOCH
    if since_epoch < timedelta(0):
        raise UsageError(f"{text} is before 1970", hint="Give a time of this century.")
    return since_epoch // timedelta(milliseconds=1)
