"""A process that verifies signatures for a replay, and does nothing else. Owns its side of the pipe.

It is sent frames: a length (4 bytes, big-endian), then MessagePack: pairs of a public key and a signed message. It says
READY once, and for each frame the number (from 0) of the first signature that fails, or HOLDS. It ends with its input.
"""

from __future__ import annotations

import sys
from queue import SimpleQueue
from threading import Thread
from typing import BinaryIO, Final

import msgspec

from sawyer.identity.keys import verify_signed

READY: Final = -2
HOLDS: Final = -1
NUMBER_BYTES: Final = 4
Jobs = list[tuple[bytes, bytes]]
"""Public keys, and signatures followed by what they sign."""


def frame_of(jobs: Jobs) -> bytes:
    """These jobs, as they go through the pipe."""
    payload = msgspec.msgpack.encode(jobs)
    return len(payload).to_bytes(NUMBER_BYTES, "big") + payload


def first_failure(jobs: Jobs) -> int:
    """The number of the first signature that fails, or HOLDS."""
    for number, (public, signed) in enumerate(jobs):
        if not verify_signed(public, signed):
            return number
    return HOLDS


def main() -> None:
    """Serve stdin and stdout. The frames are read beside the verifying, so that who sends them never waits long: it has
    only so many under way (verifying.py)."""
    frames: SimpleQueue[bytes | None] = SimpleQueue()
    Thread(target=_read, args=(sys.stdin.buffer, frames), daemon=True).start()
    decoder = msgspec.msgpack.Decoder(Jobs)
    _answer(READY)
    while (payload := frames.get()) is not None:
        _answer(first_failure(decoder.decode(payload)))


def _read(pipe: BinaryIO, frames: SimpleQueue[bytes | None]) -> None:
    while length := pipe.read(NUMBER_BYTES):
        frames.put(pipe.read(int.from_bytes(length, "big")))
    frames.put(None)


def _answer(number: int) -> None:
    sys.stdout.buffer.write(number.to_bytes(NUMBER_BYTES, "big", signed=True))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
