"""What a router has done since it started, for `sawyer status`. Counts only; no bill is made from them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

WINDOW_S: Final = 10.0
MAX_KEPT: Final = 100_000
ENDS_KEPT: Final = 32
LEAST_RETRY_S: Final = 1.0
MOST_RETRY_S: Final = 60.0


@dataclass
class Tally:
    """Requests by how they ended, and tokens. Times are loop time in seconds."""

    completed: int = 0
    failed: int = 0
    refused: int = 0
    output_tokens: int = 0
    _sampled_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_KEPT))
    _ended_s: deque[float] = field(default_factory=lambda: deque(maxlen=ENDS_KEPT))

    def token(self, now_s: float) -> None:
        """One token was sampled."""
        self.output_tokens += 1
        self._sampled_s.append(now_s)

    def ended(self, now_s: float) -> None:
        """One request ended, in whatever way."""
        self._ended_s.append(now_s)

    def seconds_for(self, requests: int, now_s: float) -> float:
        """How long so many requests may take to end, as the last ones did: LEAST_RETRY_S to MOST_RETRY_S."""
        if not self._ended_s:
            return MOST_RETRY_S / 4
        each_s = (now_s - self._ended_s[0]) / len(self._ended_s)
        return min(MOST_RETRY_S, max(LEAST_RETRY_S, requests * each_s))

    def recent(self, now_s: float) -> tuple[int, int]:
        """(tokens, milliseconds): sampled within the last WINDOW_S, and the time from the first of them to now."""
        while self._sampled_s and self._sampled_s[0] < now_s - WINDOW_S:
            self._sampled_s.popleft()
        if not self._sampled_s:
            return 0, 0
        return len(self._sampled_s), max(1, int((now_s - self._sampled_s[0]) * 1000))
