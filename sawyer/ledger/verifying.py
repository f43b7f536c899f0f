"""The signatures of a book, verified beside the folding of its entries: here and in other processes. Owns who does it.

Entries come in order; a signature that fails is told before anything that is wrong in a later entry. This process never
waits for the others: what they have no room for it verifies itself. So all cores are busy, whatever folding costs.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from sawyer.errors import BadSignature, BookCorrupt, SawyerError
from sawyer.ledger.commands import Job, first_claims, jobs
from sawyer.ledger.entry import decode_entry
from sawyer.ledger.verify_worker import HOLDS, NUMBER_BYTES, READY, first_failure, frame_of
from sawyer.projections.fold import Entry

CHUNK_SIGNATURES: Final = 512
"""That are verified as one: about 30 ms of work."""
CHUNK_BYTES: Final = 1024 * 1024
"""A chunk ends where it holds so many."""
CHUNKS_AHEAD: Final = 3
"""Chunks that one process may have before it: bounds memory, and the wait at the end."""
ALONE_SIGNATURES: Final = 2048
"""A book with fewer is verified sooner than another process is started."""
ANSWER_S: Final = 60
"""A process that says nothing for so long is given up."""
STOP_S: Final = 5
MAX_WORKERS: Final = 256
WORKER: Final = ["-P", "-m", "sawyer.ledger.verify_worker"]
"""What Python is to run there."""


@dataclass
class _Chunk:
    """Signatures, and whose they are: each entry's bytes with the number of its first one. Not the entries themselves:
    what is read and let go at once stays in the processor's cache."""

    jobs: list[Job] = field(default_factory=list)
    entries: list[tuple[int, bytes]] = field(default_factory=list)
    size_bytes: int = 0

    def failure(self, number: int) -> BookCorrupt:
        """What is wrong if signature `number` fails."""
        first, raw = next(each for each in reversed(self.entries) if each[0] <= number)
        entry = decode_entry(raw)
        claim = first_claims(entry)[number - first]
        return _wrong(entry, claim.failure)


class Verifying:
    """Verifies with `workers` processes, this one among them. Close it, or use it as a context."""

    def __init__(self, workers: int = 1) -> None:
        self.signatures = 0
        self._workers = workers
        self._others: list[_Other] = []
        self._chunk = _Chunk()
        self._failures: list[BookCorrupt] = []

    def add(self, entry: Entry, raw: bytes) -> None:
        """Take the signatures of the next entry, which was read from `raw`. Raises BookCorrupt for one that cannot be,
        or one of earlier entries that failed: call `finish` to know the first of all. SawyerError if a process
        failed."""
        chunk = self._chunk
        chunk.entries.append((len(chunk.jobs), raw))
        try:
            chunk.jobs += jobs(entry)
        except BadSignature as error:
            raise _wrong(entry, error.message) from error
        chunk.size_bytes += 2 * len(raw)
        if len(chunk.jobs) >= CHUNK_SIGNATURES or chunk.size_bytes >= CHUNK_BYTES:
            self._end_chunk()
            if self._failures:
                raise self._first_failure()

    def finish(self) -> None:
        """Wait for all. Raises BookCorrupt for the first signature, in the order of the book, that fails."""
        self._end_chunk()
        for other in self._others:
            while other.under_way:
                self._take(other, wait_s=ANSWER_S)
        if self._failures:
            raise self._first_failure()

    def close(self) -> None:
        """End the other processes, whatever they do."""
        for other in self._others:
            other.close()
        self._others.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _first_failure(self) -> BookCorrupt:
        return min(self._failures, key=lambda failure: failure.seq or 0)

    def _end_chunk(self) -> None:
        chunk, self._chunk = self._chunk, _Chunk()
        if not chunk.jobs:
            return
        self.signatures += len(chunk.jobs)
        if self._workers > 1 and not self._others and self.signatures > ALONE_SIGNATURES:
            self._others = [_Other() for _ in range(self._workers - 1)]
        for other in self._others:
            self._take(other, wait_s=0)
        free = [other for other in self._others if other.ready and len(other.under_way) < CHUNKS_AHEAD]
        if free:
            min(free, key=lambda other: len(other.under_way)).send(chunk)
        else:
            self._judge(chunk, first_failure(chunk.jobs))

    def _take(self, other: _Other, wait_s: int) -> None:
        for number in other.answers(wait_s):
            self._judge(other.under_way.popleft(), number)

    def _judge(self, chunk: _Chunk, number: int) -> None:
        if number == HOLDS:
            return
        if not 0 <= number < len(chunk.jobs):
            raise SawyerError(f"a process that verifies signatures answered {number}", hint=_HINT)
        self._failures.append(chunk.failure(number))


class _Other:
    """Another process, and the chunks that it has not answered yet, oldest first."""

    def __init__(self) -> None:
        self.ready = False
        self.under_way: deque[_Chunk] = deque()
        self._heard = b""
        self._process = subprocess.Popen(
            [sys.executable, *WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))),
            process_group=0,  # Ctrl-C is for us; it ends when its input does
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def send(self, chunk: _Chunk) -> None:
        """Raises SawyerError if the process has ended."""
        try:
            self._stdin.write(frame_of(chunk.jobs))
            self._stdin.flush()
        except OSError as error:
            raise self._ended() from error
        self.under_way.append(chunk)

    def answers(self, wait_s: int) -> list[int]:
        """What it has found since, one number a chunk; within `wait_s` at least one, if that is not 0. Raises
        SawyerError."""
        if not select.select([self._stdout], [], [], wait_s)[0]:
            if wait_s:
                raise SawyerError(f"a process that verifies signatures said nothing for {wait_s} s", hint=_HINT)
            return []
        heard = os.read(self._stdout.fileno(), CHUNKS_AHEAD * NUMBER_BYTES)
        if not heard:
            raise self._ended()
        self._heard += heard
        whole = len(self._heard) // NUMBER_BYTES * NUMBER_BYTES
        numbers = [
            int.from_bytes(self._heard[at : at + NUMBER_BYTES], "big", signed=True)
            for at in range(0, whole, NUMBER_BYTES)
        ]
        self._heard = self._heard[whole:]
        if not self.ready and numbers:
            self.ready = numbers.pop(0) == READY
        return numbers

    def close(self) -> None:
        """End it, and wait until it has."""
        self._process.kill()
        with suppress(OSError):
            self._stdin.close()
        self._stdout.close()
        self._process.wait(STOP_S)

    def _ended(self) -> SawyerError:
        return SawyerError("a process that verifies signatures ended before its time", hint=_HINT)


def _wrong(entry: Entry, why: str) -> BookCorrupt:
    signer = f"{entry.signer.by} ({entry.signer.key_id})"
    return BookCorrupt(f"entry {entry.seq}: {why}", seq=entry.seq, signer=signer)


_ROOT: Final = str(Path(__file__).parents[2])
"""Where this very Sawyer is imported from."""
_HINT: Final = (
    "This says nothing about the book. Look for the killer in the system's log (memory?), or use --workers 1."
)
