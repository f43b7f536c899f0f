"""The one thread in which a node runs its experts: away from the event loop, one turn after another.

A ThreadPoolExecutor does the same with two more locks and a second future: 10 us a hop, which every answer would pay.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, Generic, TypeVar

JOIN_TIMEOUT_S: Final = 5.0
EXIT_TIMEOUT_S: Final = 60.0
"""At the end of the program: a thread that is inside ONNX Runtime while the interpreter is taken down would crash."""

ResultT = TypeVar("ResultT")


class ComputeThread(Generic[ResultT]):
    """Runs what it is given, in order. At most one caller waits at a time, so nothing piles up here."""

    def __init__(self, name: str) -> None:
        self._todo: SimpleQueue[tuple[Callable[[], ResultT], asyncio.Future[ResultT]] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        atexit.register(self._end, EXIT_TIMEOUT_S)

    async def do(self, work: Callable[[], ResultT]) -> ResultT:
        """What `work` returns or raises. Not after `stop`."""
        future: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
        self._todo.put((work, future))
        return await future

    async def stop(self) -> None:
        """End the thread after the work it has; waits JOIN_TIMEOUT_S at most, and the loop goes on. Idempotent."""
        await asyncio.to_thread(self._end, JOIN_TIMEOUT_S)
        if not self._thread.is_alive():
            atexit.unregister(self._end)

    def _end(self, patience_s: float) -> None:
        self._todo.put(None)
        self._thread.join(patience_s)

    def _run(self) -> None:
        while (asked := self._todo.get()) is not None:
            work, future = asked
            settle: Callable[[Any], None]
            outcome: ResultT | BaseException
            try:
                settle, outcome = future.set_result, work()
            except BaseException as error:  # noqa: BLE001  (raised where it is awaited)
                settle, outcome = future.set_exception, error
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                future.get_loop().call_soon_threadsafe(_settle, future, settle, outcome)


def _settle(future: asyncio.Future[Any], settle: Callable[[Any], None], outcome: object) -> None:
    if not future.done():  # its caller was cancelled
        settle(outcome)
