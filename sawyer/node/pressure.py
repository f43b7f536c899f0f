"""Memory pressure: loaded experts make room where the machine runs short, and the host is told if they are loaded again
and again. Owns how much memory is left to others."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final

from sawyer.engine.experts import ExpertPool
from sawyer.node.memory import Memory, MiB, read_memory

LOOK_EVERY_S: Final = 1.0
FLOOR_PART: Final = 20
LEAST_FLOOR_BYTES: Final = 64 * MiB
MOST_FLOOR_BYTES: Final = 2048 * MiB
WINDOW_LOOKS: Final = 60
MOST_LOADING_PART: Final = 0.25
"""Of the time that has passed since the first look of the window."""
TOLD_EVERY_S: Final = 600.0

log = logging.getLogger(__name__)


def lacking_bytes(memory: Memory, needed_bytes: int = 0) -> int:
    """How much must be freed before so much more may be used: a twentieth of the memory stays free for others, between
    LEAST_FLOOR_BYTES and MOST_FLOOR_BYTES of it."""
    return max(0, floor_bytes(memory.total_bytes) + needed_bytes - memory.free_bytes)


def floor_bytes(total_bytes: int) -> int:
    """How much of so much memory stays free for others."""
    return min(MOST_FLOOR_BYTES, max(LEAST_FLOOR_BYTES, total_bytes // FLOOR_PART))


class Pressure:
    """Looks at the memory beside the serving, and has a pool make room. `lacking` is for the pool itself, which asks
    before it loads."""

    def __init__(self, read: Callable[[], Memory] = read_memory, now_s: Callable[[], float] = monotonic) -> None:
        self._read = read
        self._now_s = now_s
        self._looks: deque[tuple[float, int, float]] = deque(maxlen=WINDOW_LOOKS)
        self._quiet_until_s = float("-inf")

    def lacking(self, needed_bytes: int) -> int:
        """`lacking_bytes` of the memory as it is now."""
        return lacking_bytes(self._read(), needed_bytes)

    async def run(self, pool: ExpertPool) -> None:
        """Until cancelled."""
        while True:
            await self.look(pool)
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self, pool: ExpertPool) -> None:
        """Once: drop what there is no room for, and tell of too much loading."""
        lacking = self.lacking(0) if pool.uses_main_memory else 0
        if lacking and (dropped := await asyncio.to_thread(pool.relieve, lacking)):
            log.info("memory is short by %d MiB: %d loaded experts made room", lacking // MiB, dropped)
        self._tell(pool)

    def _tell(self, pool: ExpertPool) -> None:
        now_s, counts = self._now_s(), pool.counts
        if len(self._looks) == WINDOW_LOOKS and now_s >= self._quiet_until_s:
            since_s, loads, loading_s = self._looks[0]
            if counts.loading_s - loading_s > MOST_LOADING_PART * (now_s - since_s):
                log.warning(
                    "%d%% of the last %.0f s went into loading experts, %d times: %d of %d are loaded. Host fewer, or "
                    "give them more memory.",
                    100 * (counts.loading_s - loading_s) / (now_s - since_s), now_s - since_s, counts.loads - loads,
                    counts.loaded, counts.hosted,
                )  # fmt: skip
                self._quiet_until_s = now_s + TOLD_EVERY_S
        self._looks.append((now_s, counts.loads, counts.loading_s))
