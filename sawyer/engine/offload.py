"""Where blocking compute runs: in one worker thread, or at once on the event loop while it takes less than going there.

A hop to a thread and back costs about 100 us of CPU and two wake-ups; a decoding step of a small trunk, or one row of a
small expert, takes about as long. So steps that proved short run at once: nobody on the loop waits longer for them than
INLINE_BELOW_S, but for one in LONG_WINDOW. Big models never do: their steps are measured in the thread.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Lock
from time import perf_counter, thread_time
from typing import Any, Final, TypeVar

INLINE_BELOW_S: Final = 0.0005
"""Steps whose last runs took less than this (their median) run at once."""
WINDOW: Final = 9
"""That many runs are remembered, and needed before the first one at once."""
LONG_S: Final = 4 * INLINE_BELOW_S
"""One run that computes so long sends its kind to the thread: a median alone would not see the few long steps among
many short ones, as when requests of several sizes take turns. By CPU time: on a busy machine any step may wait."""
LONG_WINDOW: Final = 32
"""So many runs in a row must not be long before the next one at once."""

ReturnT = TypeVar("ReturnT")


class Offload:
    """One worker thread, and the memory of what is short. For one event loop; steps of one kind are comparable."""

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._taken_s: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self._after_long: defaultdict[str, int] = defaultdict(int)
        self._in_thread = 0
        self._counting = Lock()

    async def run(self, kind: str, function: Callable[..., ReturnT], *arguments: Any) -> ReturnT:
        """The result of `function(*arguments)`. With an empty kind always in the thread, otherwise where its kind
        belongs. What waits for the thread already is never overtaken: steps run in the order they were given."""
        if kind and not self._in_thread and self.is_short(kind):
            return self._timed(kind, partial(function, *arguments))
        with self._counting:
            self._in_thread += 1
        submitted = self._threads.submit(self._timed, kind, partial(function, *arguments))
        submitted.add_done_callback(self._left)  # a step goes on in the thread when its caller is cancelled
        return await asyncio.wrap_future(submitted)

    def is_short(self, kind: str) -> bool:
        """Whether the next step of this kind may run at once."""
        taken_s = self._taken_s[kind]
        if self._after_long[kind] or len(taken_s) < WINDOW:
            return False
        return sorted(taken_s)[WINDOW // 2] < INLINE_BELOW_S

    def shutdown(self) -> None:
        """Waits for the step that runs."""
        self._threads.shutdown()

    def _timed(self, kind: str, step: Callable[[], ReturnT]) -> ReturnT:
        started_s, computed_s = perf_counter(), thread_time()
        try:
            return step()
        finally:
            if kind:
                self._note(kind, perf_counter() - started_s, thread_time() - computed_s)

    def _note(self, kind: str, taken_s: float, computed_s: float) -> None:
        self._taken_s[kind].append(taken_s)
        self._after_long[kind] = LONG_WINDOW if computed_s > LONG_S else max(0, self._after_long[kind] - 1)

    def _left(self, _: Future[Any]) -> None:
        with self._counting:
            self._in_thread -= 1
