"""How our processes talk through pipes with that of a chat template: a length (4 bytes, big-endian), then JSON."""

from __future__ import annotations

import json
from typing import Final

NUMBER_BYTES: Final = 4


def frame_of(message: object) -> bytes:
    """As it goes through the pipe."""
    payload = json.dumps(message).encode()
    return len(payload).to_bytes(NUMBER_BYTES, "big") + payload
