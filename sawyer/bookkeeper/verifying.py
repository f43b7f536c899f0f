"""Commands as they came -> verified commands, beside the writer. Owns where that runs, not what is checked.

Ed25519 runs without Python's lock, but the few microseconds around each signature need it, and the writer holds it for
milliseconds: threads wait for each other. Processes do not, and cost memory and a start: a busy bookkeeper has them.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Final, Self

from sawyer.errors import SawyerError
from sawyer.ledger.commands import VerifiedCommand, parse, read

JOB_COMMANDS: Final = 32
"""Commands that are verified in one job: a job costs as much as a signature or two."""
Verified = VerifiedCommand | SawyerError


class Verifiers:
    """`processes` of them, or one thread where that is 0. Close it, or use it as a context."""

    def __init__(self, processes: int = 0) -> None:
        self._wanted = processes
        self._pool: Executor = _pool(processes)

    async def verify(self, commands: Sequence[bytes]) -> list[Verified]:
        """Each command, or why it is refused. Raises SawyerError if a verifying process was killed: nothing of these
        was
        accepted then, and the next call has new processes."""
        loop = asyncio.get_running_loop()
        if not self._wanted:
            return await loop.run_in_executor(self._pool, _read_all, commands)
        try:
            verdicts = await loop.run_in_executor(self._pool, _verdicts, commands)
        except BrokenProcessPool as error:
            self._pool.shutdown(wait=False)
            self._pool = _pool(self._wanted)
            raise SawyerError(
                f"a process that verifies signatures ended: {error}",
                hint="Nothing was recorded: send the command again. If it happens again, look for the killer in the "
                "system's log (memory?), or set ledger_verifiers to 0.",
            ) from error
        return [verdict or parse(raw) for raw, verdict in zip(commands, verdicts, strict=True)]

    @property
    def processes(self) -> list[int]:
        """The ids of the processes that have been started."""
        return list(getattr(self._pool, "_processes", None) or {})

    def close(self) -> None:
        """End the processes; what is under way is given up."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pool(processes: int) -> Executor:
    if not processes:
        return ThreadPoolExecutor(1, thread_name_prefix="verify")
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))


def _read_all(commands: Sequence[bytes]) -> list[Verified]:
    return [_read(raw) for raw in commands]


def _read(raw: bytes) -> Verified:
    try:
        return read(raw)
    except SawyerError as error:
        return error


def _verdicts(commands: Sequence[bytes]) -> list[SawyerError | None]:
    """In another process: None for each command whose signatures hold."""
    found = (_read(raw) for raw in commands)
    return [each if isinstance(each, SawyerError) else None for each in found]
