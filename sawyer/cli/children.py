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
from sawyer.bus.server import LocalServer, ServerTrust
from sawyer.cli.network_plan import READY_S, Part
from sawyer.cli.parts import READY
from sawyer.errors import SawyerError

STOP_TIMEOUT_S: Final = 15.0
TAIL_LINES: Final = 5
SERVER_POLL_S: Final = 0.1
TAIL_BYTES: Final = 64 * 1024


class Child:
    """One `sawyer` program as a process of its own. Its stderr goes to `log`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self._process = process
        self.log = log
        self._log_start = 0
        self._ready_s = READY_S
        self.patience_s = STOP_TIMEOUT_S

    @classmethod
    async def start(cls, part: Part, logs: Path) -> Child:
        """Start `sawyer ARGUMENTS` of this part, with a log of its own in this folder. Raises OSError."""
        log = logs / f"{part.name}.log"
        environment = dict(os.environ, PYTHONUNBUFFERED="1", **part.environment)
        if part.threads:
            environment["OMP_NUM_THREADS"] = str(part.threads)
        with log.open("ab") as output:
            log_start = output.tell()
            process = await asyncio.create_subprocess_exec(
                *leash.argv([*part.within, sys.executable, "-P", "-m", "sawyer", *part.arguments]),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                env=environment,
                start_new_session=True,  # Ctrl-C is for us; we end our children in order
            )
        child = cls(part.name, process, log)
        child._log_start = log_start
        child._ready_s = part.ready_s
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> None:
        """Returns when the program says so. Raises SawyerError with the end of its log if it ends instead."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(self._ready_s):
                while line := await self._process.stdout.readline():
                    if line.decode(errors="replace").startswith(READY):
                        return
                await self._process.wait()
        except TimeoutError as error:
            raise SawyerError(
                f"{self.name} was not ready within {self._ready_s:g} s", hint=f"See {self.log}."
            ) from error
        raise SawyerError(f"{self.name} ended before it was ready: {self._tail()}", hint=f"The whole log: {self.log}")

    async def died(self) -> str:
        """Returns when the process has ended: how."""
        code = await self._process.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return f"{self.name} ended {how}"

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
        with self.log.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            said = log.read().decode(errors="replace")
        lines = [each.strip() for each in said.splitlines() if each.strip()]
        return " / ".join(lines[-TAIL_LINES:]) or "its log is empty"


class ServerChild:
    """The bundled nats-server of a home, always at one address."""

    def __init__(self, server: LocalServer) -> None:
        self._server = server

    @classmethod
    async def start(cls, folder: Path, listen: str, program: str = "", trust: ServerTrust | None = None) -> ServerChild:
        """Returns when it is ready. Without `trust` it lets in everybody. Raises ServerUnreachable with its last
        words."""
        return cls(await asyncio.to_thread(LocalServer.start, folder, listen=listen, program=program, trust=trust))

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def pid(self) -> int:
        return self._server.process.pid

    async def ready(self) -> None:
        """It is, since `start`."""

    async def died(self) -> str:
        """Returns when it has ended."""
        while self._server.process.poll() is None:  # noqa: ASYNC110  (no event tells of this process)
            await asyncio.sleep(SERVER_POLL_S)
        code = self._server.process.returncode
        return f"nats-server ended {f'by signal {-code}' if code < 0 else f'with exit code {code}'}"

    async def stop(self) -> None:
        """In order, then by force. Idempotent."""
        await asyncio.to_thread(self._server.stop)
