"""The names of things, as distinct types, and the only place that makes new ones."""

from __future__ import annotations

import os
import re
from typing import Final, NewType

RequestId = NewType("RequestId", str)
"""32 lower-case hex characters: 16 random bytes. The idempotency key of a request, made by the client."""
NodeId = NewType("NodeId", str)
HostId = NewType("HostId", str)
AccountId = NewType("AccountId", str)
ModelId = NewType("ModelId", str)
NetworkId = NewType("NetworkId", str)
"""Name of one network and the origin of its book, such as `sawyer-net/3f9a1c`."""
KeyId = NewType("KeyId", str)
"""A public key in NKEY form: 56 characters, `U` (participant) or `O` (operator) first."""

SLUG_PATTERN: Final = r"^[a-z0-9][a-z0-9_-]{0,62}$"
"""What may stand as one token of a NATS subject: no dots, spaces, `*` or `>`."""
MAX_SLUG: Final = 63
_SLUG: Final = re.compile(SLUG_PATTERN)
NETWORK_PATTERN: Final = r"^[a-z0-9][a-z0-9.-]{0,62}/[a-z0-9-]{1,63}$"
_NETWORK: Final = re.compile(NETWORK_PATTERN)


def is_slug(text: str) -> bool:
    return _SLUG.fullmatch(text) is not None  # `$` alone would let a trailing newline into a subject


def slug_of(text: str) -> str:
    """A name that people gave as a slug: `Mixtral-8x7B-v0.1` is mixtral-8x7b-v0-1. Empty if nothing of it can stay."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:MAX_SLUG]


def is_network(text: str) -> bool:
    return _NETWORK.fullmatch(text) is not None


def new_request_id() -> RequestId:
    return RequestId(os.urandom(16).hex())


def new_network_id(name: str = "sawyer-net") -> NetworkId:
    return NetworkId(f"{name}/{os.urandom(4).hex()}")
