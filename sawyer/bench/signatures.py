"""What Ed25519 verification alone costs of the very signatures that are measured elsewhere: on one core, and on
several.

Keys decoded, messages put together beforehand: nothing is left but libsodium's own work and Python's call to it.
"""

from __future__ import annotations

import base64
import multiprocessing
import time
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from typing import Final

from sawyer.errors import SawyerError, VerificationError
from sawyer.identity.keys import public_bytes, verify
from sawyer.ledger.commands import Claim
from sawyer.schemas.signed import pre_image

Prepared = tuple[bytes, bytes, bytes]
"""(public key, message, signature)."""
READY: Final = b"ready"


def prepared(claims: Iterable[Claim]) -> list[Prepared]:
    """These signatures, ready for verifying."""
    return [
        (
            public_bytes(claim.signature.key_id),
            pre_image(claim.kind, claim.statement),
            base64.b64decode(claim.signature.sig),
        )
        for claim in claims
    ]


def verify_s(signatures: Sequence[Prepared], processes: int) -> float:
    """Seconds that it takes to verify all of these, divided among so many processes (1: this one). Raises
    VerificationError if one does not hold, SawyerError if a process ends early."""
    if processes == 1:
        return _timed(signatures)
    context = multiprocessing.get_context("spawn")
    shares = [signatures[number::processes] for number in range(processes)]
    pipes = [context.Pipe() for _ in shares]
    workers = [context.Process(target=_work, args=(theirs,), daemon=True) for _, theirs in pipes]
    try:
        for worker, (_, theirs) in zip(workers, pipes, strict=True):
            worker.start()
            theirs.close()  # the process has its own; while this one were open, nobody would see that it ended
        return _measured([ours for ours, _ in pipes], shares)
    except (EOFError, OSError) as error:
        raise SawyerError(
            "a process that verifies signatures ended before it was done",
            hint="What it wrote above says why. If it wrote nothing, see the system's log for who ended it (memory?).",
        ) from error
    finally:
        for ours, _ in pipes:
            ours.close()
        for worker in workers:
            worker.join()


def _measured(pipes: Sequence[Connection], shares: Sequence[Sequence[Prepared]]) -> float:
    """Seconds from the word to all until the last has answered. Raises EOFError or OSError if one ends, and what one
    raised."""
    for pipe, share in zip(pipes, shares, strict=True):
        pipe.send(share)
    for pipe in pipes:
        pipe.recv_bytes()
    started = time.perf_counter()
    for pipe in pipes:
        pipe.send_bytes(READY)
    for pipe in pipes:
        pipe.recv()
    return time.perf_counter() - started


def _work(pipe: Connection) -> None:
    share = pipe.recv()
    pipe.send_bytes(READY)
    pipe.recv_bytes()
    pipe.send(_timed(share))


def _timed(signatures: Sequence[Prepared]) -> float:
    started = time.perf_counter()
    held = sum(verify(*each) for each in signatures)
    took = time.perf_counter() - started
    if held != len(signatures):
        raise VerificationError(f"{len(signatures) - held} signatures of the benchmark's own book do not hold")
    return took
