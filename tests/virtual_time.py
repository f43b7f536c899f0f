"""Time that passes only while nothing is to be done, and all that would make two runs differ: clocks, threads and
randomness. Owns none of what runs in it.

A loop without a wall clock jumps to its next timer, so that minutes of waiting cost nothing and no load of the machine
makes anything late. Work for threads runs on the loop, a drawn while after it was given: one order of events a seed.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import selectors
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest

START_MS: Final = 1_700_000_000_000
CLOCKS: Final = {
    "perf_counter": (time.perf_counter, 1),
    "monotonic": (time.monotonic, 1),
    "thread_time": (time.thread_time, 1),
    "perf_counter_ns": (time.perf_counter_ns, 1_000_000_000),
}
"""Names that modules take from `time`, what they are, and their units a second."""


class NothingLeft(BaseException):
    """Everybody waits, and nothing will ever come: what would hang for ever on a real loop."""


class _NoWait(selectors.DefaultSelector):
    """Does not wait, but says how long it would have."""

    waited_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if timeout is None and not ready:
            raise NothingLeft
        self.waited_s += max(0.0, timeout or 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time is the waiting it was spared. `hop_s` draws how long work given to a thread takes; it runs here."""

    def __init__(self, hop_s: Callable[[], float] = lambda: 0.0) -> None:
        self._no_wait = _NoWait()
        self.hop_s = hop_s
        super().__init__(self._no_wait)

    def time(self) -> float:
        return self._no_wait.waited_s

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.Handle:
        """There is one thread, so nobody must be woken through a socket."""
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """As if a thread took it up after a while, and was done at once. Cancelled before, it never runs."""
        future = self.create_future()
        self.call_later(self.hop_s(), _settle, future, func, args)
        return future


def _settle(future: asyncio.Future[Any] | Future[Any], func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if future.cancelled():
        return
    try:
        result = func(*args)
    except Exception as error:  # noqa: BLE001  (whoever waits is told)
        future.set_exception(error)
    else:
        future.set_result(result)


class InlineThread:
    """In place of a ThreadPoolExecutor of one thread: steps run on the loop, in their order, each a while after the
    one before."""

    def __init__(self, *_: object, **__: object) -> None:
        self._waiting: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()
        self._busy_until_s = 0.0

    def submit(self, func: Callable[..., Any], *args: Any) -> Future[Any]:
        """Given to the loop that runs."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        made: Future[Any] = Future()
        self._waiting.append((made, func, args))
        self._busy_until_s = max(self._busy_until_s, loop.time()) + loop.hop_s()
        loop.call_at(self._busy_until_s, self._next)
        return made

    def shutdown(self, *_: object, **__: object) -> None:
        """What was given to it is done first."""
        while self._waiting:
            self._next()

    def _next(self) -> None:
        if self._waiting:
            future, func, args = self._waiting.popleft()
            _settle(future, func, args)


@dataclass
class LoopClock:
    """A wall clock that follows the loop. `ahead_ms` may be raised: then it is that much later at once."""

    loop: asyncio.AbstractEventLoop
    ahead_ms: int = 0

    def now_ms(self) -> int:
        return START_MS + self.ahead_ms + int(self.loop.time() * 1000)


@contextmanager
def determined(loop: VirtualLoop, drawn: random.Random) -> Iterator[pytest.MonkeyPatch]:
    """Inside, no module of ours reads a real clock, starts a thread to compute, or draws what the seed did not give."""
    with pytest.MonkeyPatch.context() as patch:
        for module in [each for name, each in sys.modules.items() if name.startswith("sawyer.")]:
            for name, (real, units) in CLOCKS.items():
                if vars(module).get(name) is real:
                    patch.setattr(module, name, _clock(loop, units))
        patch.setattr("sawyer.engine.offload.ThreadPoolExecutor", InlineThread)
        patch.setattr("sawyer.clock.SystemClock.now_ms", _refuse("SystemClock"))
        patch.setattr("threading.Thread.start", _refuse("a thread"))
        patch.setattr(secrets, "randbits", drawn.getrandbits)
        patch.setattr(secrets, "token_bytes", lambda count=32: drawn.randbytes(count))
        patch.setattr(secrets, "token_hex", lambda count=32: drawn.randbytes(count).hex())
        patch.setattr(os, "urandom", drawn.randbytes)
        yield patch


def _clock(loop: VirtualLoop, units: int) -> Callable[[], float]:
    return loop.time if units == 1 else lambda: int(loop.time() * units)


def _refuse(what: str) -> Callable[..., Any]:
    def refuse(*_: object) -> Any:
        raise AssertionError(f"{what} in a simulation: two runs of one seed could differ")

    return refuse
