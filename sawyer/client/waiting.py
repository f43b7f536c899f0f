"""An event loop in a thread of its own, and waiting for what runs there. Owns both, and what an interrupt does.

Not through anyio's blocking portal: that waits with `concurrent.futures`, whose locks are taken in Python code. A
KeyboardInterrupt at the wrong instruction leaves one taken, and the loop's thread then waits for it for ever (measured:
once in some 500 interrupts). A SimpleQueue waits in C, so that an interrupt comes before it or after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from sawyer.errors import Cancelled


class LoopThread:
    """Runs from its making until `stop`. It does not keep the program alive."""

    def __init__(self) -> None:
        started: SimpleQueue[asyncio.AbstractEventLoop] = SimpleQueue()
        self._calls: set[_Call] = set()
        self._ended = False
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="sawyer-loop", daemon=True)
        self._thread.start()
        self._loop = started.get()

    def call(self, function: Callable[[], Any]) -> Any:
        """What this function, or the coroutine it makes, returns or raises there. An interrupted wait cancels it, and
        waits for it no more. Raises Cancelled if the thread ends before it does."""
        call = _Call(function)
        self._calls.add(call)
        try:
            if self._ended:
                raise Cancelled(_ENDED)
            self._loop.call_soon_threadsafe(call.start)
            return call.wait()
        except RuntimeError as error:
            raise (Cancelled(_ENDED) if self._ended or self._loop.is_closed() else error) from error
        except BaseException:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(call.cancel)
            raise
        finally:
            self._calls.discard(call)

    def soon(self, function: Callable[[], Any]) -> None:
        """Starts it there and waits for nothing; from a signal handler, too."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is left that it could change
            self._loop.call_soon_threadsafe(_Call(function).start)

    def stop(self) -> None:
        """Cancels what runs there still; returns when the thread has ended. Idempotent."""
        with contextlib.suppress(RuntimeError):  # its loop is closed already
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self, started: SimpleQueue[asyncio.AbstractEventLoop]) -> None:
        async def until_stopped() -> None:
            started.put(asyncio.get_running_loop())
            await self._stopping.wait()

        try:
            asyncio.run(until_stopped())
        finally:
            self._ended = True  # first: who comes now is refused, who came before is told below
            for call in list(self._calls):
                call.end()


class _Call:
    """One function on its way to the loop and back. It can be cancelled at whatever moment its caller is interrupted:
    before there is a task, too."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._ends: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False

    def wait(self) -> Any:
        """On the caller's thread."""
        given, error = self._ends.get()
        if error is not None:
            raise error
        return given

    def start(self) -> None:
        """On the loop."""
        if not self._cancelled:
            self._task = asyncio.get_running_loop().create_task(self._run())
            self._task.add_done_callback(self._tell)

    def cancel(self) -> None:
        """On the loop."""
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    def end(self) -> None:
        self._ends.put((None, Cancelled(_ENDED)))

    async def _run(self) -> Any:
        given = self._function()
        return await given if inspect.isawaitable(given) else given

    def _tell(self, task: asyncio.Task[Any]) -> None:
        """The task stays on its loop: the caller's thread is not to clean up after it, where an interrupt would be lost
        in a weak reference's callback."""
        self._task = None
        if task.cancelled():
            self.end()
        else:
            error = task.exception()
            self._ends.put((None, error) if error else (task.result(), None))


_ENDED = "the client was closed while it was waited for"
