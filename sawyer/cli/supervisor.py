"""Keeps the processes of a network running: one that dies is started again, with back-off, and said. Stops them in the
opposite order of their start."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from sawyer import durable

FIRST_PAUSE_S: Final = 0.5
MAX_PAUSE_S: Final = 30.0
STABLE_S: Final = 30.0
"""Who ran this long begins anew with the first pause."""
PARTS_FILE: Final = "parts.json"


class Process(Protocol):
    """What can be kept: a child process, or a NATS server."""

    @property
    def pid(self) -> int:
        """Of the process itself."""

    async def ready(self) -> None:
        """Returns when it serves. Raises if it ended instead."""

    async def died(self) -> str:
        """Returns when it has ended: how, in words."""

    async def stop(self) -> None:
        """In order, then by force. Idempotent."""


Start = Callable[[], Awaitable[Process]]


@dataclass
class PartStatus:
    """One kept process, for people. `state`: starting, running, or waiting before it is started again."""

    name: str
    state: Literal["starting", "running", "waiting", "stopped"] = "starting"
    pid: int = 0
    restarts: int = 0
    last_end: str = ""


class Supervisor:
    """Owns kept processes. `notice(text)` is called when one ends; the states are also written to the home, for
    `sawyer status`. Use it as an async context manager."""

    def __init__(self, folder: Path, notice: Callable[[str], None]) -> None:
        self._file = folder / PARTS_FILE
        self._notice = notice
        self._groups: list[list[_Kept]] = []

    @property
    def parts(self) -> list[PartStatus]:
        return [each.status for group in self._groups for each in group]

    async def __aenter__(self) -> Supervisor:
        self._file.unlink(missing_ok=True)  # of a supervisor that was killed
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            for group in reversed(self._groups):
                await asyncio.gather(*(each.stop() for each in group))
        finally:
            self._file.unlink(missing_ok=True)

    async def keep(self, *groups: dict[str, Start]) -> None:
        """Start and keep processes, all at once; returns when they serve. At the end each group is stopped together,
        the last one first. Raises what the first start of one of them met."""
        made = [[_Kept(name, start, self._notice, self._changed) for name, start in each.items()] for each in groups]
        self._groups += made
        began = [each for group in made for each in group]
        for each in began:
            each.begin()
        await asyncio.gather(*(each.first_ready for each in began))

    def _changed(self) -> None:
        rows = [asdict(each) for each in self.parts]
        with contextlib.suppress(OSError):  # a full disk costs the display, not the network
            durable.replace(self._file, json.dumps(rows).encode())


class _Kept:
    """One process and the task that watches over it."""

    def __init__(self, name: str, start: Start, notice: Callable[[str], None], changed: Callable[[], None]) -> None:
        self.status = PartStatus(name)
        self._start = start
        self._notice = notice
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self.first_ready: asyncio.Future[None] = self._loop.create_future()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """End the process and the watching."""
        self.first_ready.cancel()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._set("stopped")

    async def _watch(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            began_s = self._loop.time()
            try:
                how = await self._once()
            except Exception as error:  # noqa: BLE001  (whatever it is: told, and tried again)
                if not self.first_ready.done():
                    self.first_ready.set_exception(error)
                    return
                how = f"{self.status.name} did not start: {error}"
            if self._loop.time() - began_s > STABLE_S:
                pause_s = FIRST_PAUSE_S
            self.status.restarts += 1
            self.status.last_end = how
            self._set("waiting")
            self._notice(f"{how}. Starting it again in {pause_s:g} s (restart {self.status.restarts}).")
            await asyncio.sleep(pause_s)
            pause_s = min(MAX_PAUSE_S, 2 * pause_s)

    async def _once(self) -> str:
        """From start to end: how it ended."""
        self._set("starting")
        process = await self._start()
        try:
            self.status.pid = process.pid
            await process.ready()
            self._set("running")
            if not self.first_ready.done():
                self.first_ready.set_result(None)
            elif self.status.restarts:
                self._notice(f"{self.status.name} is back (process {process.pid}).")
            return await process.died()
        finally:
            await process.stop()

    def _set(self, state: Literal["starting", "running", "waiting", "stopped"]) -> None:
        self.status.state = state
        if state in ("waiting", "stopped"):
            self.status.pid = 0
        self._changed()


def read_parts(folder: Path) -> list[PartStatus]:
    """What the supervisor of this home last wrote; nothing if none runs."""
    try:
        return [PartStatus(**row) for row in json.loads((folder / PARTS_FILE).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []
