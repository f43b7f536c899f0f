"""What a router has done since it started, for `sawyer status`. Counts only; no bill is made from them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

WINDOW_S: Final = 10.0
MAX_KEPT: Final = 100_000


@dataclass
class Tally:
    """Requests by how they ended, and tokens. Times are loop time in seconds."""

    completed: int = 0
    failed: int = 0
    refused: int = 0
    output_tokens: int = 0
    _sampled_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_KEPT))

    def token(self, now_s: float) -> None:
        """One token was sampled."""
        self.output_tokens += 1
        self._sampled_s.append(now_s)

    def recent(self, now_s: float) -> tuple[int, int]:
        """(tokens, milliseconds): sampled within the last WINDOW_S, and the time from the first of them to now."""
        while self._sampled_s and self._sampled_s[0] < now_s - WINDOW_S:
            self._sampled_s.popleft()
        if not self._sampled_s:
            return 0, 0
        return len(self._sampled_s), max(1, int((now_s - self._sampled_s[0]) * 1000))
