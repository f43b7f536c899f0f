"""Where blocking compute runs: in one worker thread, or at once on the event loop while it takes less than going there.

A hop to a thread and back costs about 100 us of CPU and two wake-ups; a decoding step of a small trunk, or one row of a
small expert, takes about as long. So steps that proved short run at once: nobody on the loop waits longer for them than
INLINE_BELOW_S, give or take one outlier. Big models never do: their steps are measured in the thread.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any, Final, TypeVar

INLINE_BELOW_S: Final = 0.0005
"""Steps whose last runs took less than this (their median) run at once."""
WINDOW: Final = 9
"""That many runs are remembered, and needed before the first one at once."""

ReturnT = TypeVar("ReturnT")


class Offload:
    """One worker thread, and the memory of what is short. For one event loop; steps of one kind are comparable."""

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._taken_s: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self._in_thread = 0

    async def run(self, kind: str, function: Callable[..., ReturnT], *arguments: Any) -> ReturnT:
        """The result of `function(*arguments)`. With an empty kind always in the thread, otherwise where its kind
        belongs. What waits for the thread already is never overtaken: steps run in the order they were given."""
        if kind and not self._in_thread and self.is_short(kind):
            return self._timed(kind, partial(function, *arguments))
        loop = asyncio.get_running_loop()
        self._in_thread += 1
        try:
            return await loop.run_in_executor(self._threads, self._timed, kind, partial(function, *arguments))
        finally:
            self._in_thread -= 1

    def is_short(self, kind: str) -> bool:
        """Whether the next step of this kind may run at once."""
        taken_s = self._taken_s[kind]
        return len(taken_s) == WINDOW and sorted(taken_s)[WINDOW // 2] < INLINE_BELOW_S

    def shutdown(self) -> None:
        """Waits for the step that runs."""
        self._threads.shutdown()

    def _timed(self, kind: str, step: Callable[[], ReturnT]) -> ReturnT:
        started_s = perf_counter()
        try:
            return step()
        finally:
            if kind:
                self._taken_s[kind].append(perf_counter() - started_s)
