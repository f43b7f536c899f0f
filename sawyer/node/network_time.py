"""The time that all nodes share: the bookkeeper's. Clocks of two machines may be minutes apart, so what two
processes say of when they started and spoke can be compared only in this time."""

from __future__ import annotations

import time
from collections.abc import Callable

from sawyer.bus.calls import ask
from sawyer.bus.protocol import Bus
from sawyer.schemas.messages import NetworkReply


class NetworkTime:
    """The bookkeeper's clock as its last answer tells it: at most that answer's round trip behind, never ahead, and
    never going back. Between answers this machine's monotonic clock counts, which nobody sets."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._told_ms = 0
        self._told_at_s = now_s()
        self._last_ms = 0

    async def ask(self, bus: Bus) -> tuple[NetworkReply, int]:
        """What the bookkeeper answers, and a time that it has not passed before now: nothing that was said before we
        asked is later. Not believed until `take`."""
        asked_s = self._now_s()
        reply = await ask(bus, "network", NetworkReply)
        return reply, reply.now_ms + round((self._now_s() - asked_s) * 1000)

    def take(self, told_ms: int) -> None:
        """Count from this answer on, which came just now."""
        self._told_ms, self._told_at_s = told_ms, self._now_s()

    def now_ms(self) -> int:
        """Milliseconds since 1970 by the bookkeeper's clock."""
        passed_ms = int((self._now_s() - self._told_at_s) * 1000)
        self._last_ms = max(self._last_ms, self._told_ms + passed_ms)
        return self._last_ms
