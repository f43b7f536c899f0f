"""JetStream's API: its answers, and the numbers of its refusals. The streams themselves are journal.py's and
objects.py's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from sawyer.errors import SawyerError

NO_JETSTREAM: Final = (10039, 10076)
"""Not enabled for this account, or on this server."""
NO_STREAM: Final = 10059
END_OF_BATCH: Final = "204"
NOT_FOUND: Final = "404"
"""Status of a direct get (ADR-31 of nats-architecture-and-design)."""


def answer(raw: bytes) -> dict[str, Any]:
    """Raises SawyerError for what is no JSON object."""
    try:
        reply = json.loads(raw)
    except ValueError as error:
        raise SawyerError(f"JetStream's answer is no JSON: {raw[:80]!r}") from error
    if not isinstance(reply, dict):
        raise SawyerError(f"JetStream's answer is no JSON object: {raw[:80]!r}")
    return reply


def error_code(reply: Mapping[str, Any]) -> int | None:
    """The number of its refusal; None for one without."""
    code = reply.get("error", {}).get("err_code")
    return code if isinstance(code, int) else None


def reason(reply: Mapping[str, Any]) -> str:
    """Its word on a refusal."""
    error = reply.get("error", {})
    return f"{error.get('description', 'no reason given')} ({error.get('err_code', error.get('code', '?'))})"
