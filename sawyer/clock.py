"""Where time comes from. Decisions and folds never read a clock: a time reaches them inside a command or an entry."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What everything that needs the time is given."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC."""


class SystemClock(Clock):
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


@dataclass
class ManualClock:
    """A clock that moves only when told to: for tests and simulations."""

    at_ms: int = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.at_ms

    def advance(self, by_ms: int) -> None:
        self.at_ms += by_ms


def iso(at_ms: int) -> str:
    """`2026-01-31T12:00:00Z`, for people; a time that no calendar has is told as it is."""
    try:
        return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{at_ms} ms after 1970"
