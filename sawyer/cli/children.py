"""Child processes of one command: started on a leash, waited for until they are ready, ended whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Final

from sawyer import leash
from sawyer.cli.parts import READY
from sawyer.errors import SawyerError

READY_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 15.0
TAIL_LINES: Final = 5


class Child:
    """One `sawyer` program as a process of its own. Its stderr goes to `log`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self._process = process
        self.log = log
        self._log_start = 0
        self.patience_s = STOP_TIMEOUT_S

    @classmethod
    async def start(cls, name: str, arguments: list[str], log: Path, threads: int = 0) -> Child:
        """Start `sawyer ARGUMENTS`. `threads` bounds what numeric libraries take."""
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ, PYTHONUNBUFFERED="1")
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        with log.open("ab") as output:
            log_start = output.tell()
            process = await asyncio.create_subprocess_exec(
                *leash.argv([sys.executable, "-P", "-m", "sawyer", *arguments]),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                env=environment,
                start_new_session=True,  # Ctrl-C is for us; we end our children in order
            )
        child = cls(name, process, log)
        child._log_start = log_start
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> None:
        """Returns when the program says so. Raises SawyerError with the end of its log if it ends instead."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while line := await self._process.stdout.readline():
                    if line.decode(errors="replace").startswith(READY):
                        return
                await self._process.wait()
        except TimeoutError as error:
            raise SawyerError(
                f"{self.name} was not ready within {READY_TIMEOUT_S:g} s", hint=f"See {self.log}."
            ) from error
        raise SawyerError(f"{self.name} ended before it was ready: {self._tail()}", hint=f"The whole log: {self.log}")

    async def died(self) -> str:
        """Returns when the process has ended: how, and where its log is."""
        code = await self._process.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return f"{self.name} ended {how}; its log: {self.log}"

    def kill(self) -> None:
        """SIGKILL: no word of farewell."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is ignored. Idempotent."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), self.patience_s)
            except TimeoutError:
                self.kill()
        await self._process.wait()

    def _tail(self) -> str:
        said = self.log.read_bytes()[self._log_start :].decode(errors="replace")
        lines = [each.strip() for each in said.splitlines() if each.strip()]
        return " / ".join(lines[-TAIL_LINES:]) or "its log is empty"
