"""The address of a hub as a person wrote it: checked, and shown without the password that may be in it. Pure; knows no
library, because the hub's own fails on some addresses while it is imported."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from sawyer.errors import UsageError

_SECRET: Final = re.compile(r"(?<=://)[^/\s]*@")


def shown_endpoint(address: str) -> str:
    """The address without the user and password in it. Raises UsageError if it is none."""
    hint = "Write HF_ENDPOINT as https://HOST, or http://HOST:PORT, or unset it."
    try:
        parts = urlsplit(address)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not match, a port that is no number
        whole = False
    if not whole:
        raise UsageError(f"HF_ENDPOINT {without_secrets(address)!r} is no address of a hub", hint=hint)
    return without_secrets(address)


def without_secrets(text: str) -> str:
    """The text; addresses in it lose what stands before their host."""
    return _SECRET.sub("", text)
