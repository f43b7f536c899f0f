"""What a node measures of itself: latency and throughput of its last answers, the device that really runs."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from sawyer.bus.service import Counts

WINDOW: Final = 512


@dataclass
class Health:
    """Counters since start, and windows over the last answers. Thread safe."""

    answers: int = 0
    refused: int = 0
    rows: int = 0
    runs: int = 0
    compute_s: float = 0.0
    last_error: str = ""
    _latencies_us: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _work: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, rows: int, latency_s: float) -> None:
        """One answer went out, so long after its request came in."""
        with self._lock:
            self.answers += 1
            self.rows += rows
            self._latencies_us.append(int(latency_s * 1e6))

    def computed(self, rows: int, compute_s: float, runs: int = 1) -> None:
        """So many rows ran through experts in this time, in so many runs of ONNX Runtime."""
        with self._lock:
            self.runs += runs
            self.compute_s += compute_s
            self._work.append((rows, compute_s))

    def refuse(self, error: Exception) -> None:
        """One request was refused."""
        with self._lock:
            self.refused += 1
            self.last_error = str(error)

    def counts(self) -> Counts:
        """For discovery."""
        return Counts(self.answers + self.refused, self.refused, int(self.compute_s * 1e9), self.last_error)

    def data(self) -> dict[str, int]:
        """What else discovery tells of the experts' endpoint."""
        return {
            "rows": self.rows,
            "runs": self.runs,
            "rows_per_second": self.rows_per_second(),
            "latency_p50_us": self.latency_us(0.5),
            "latency_p95_us": self.latency_us(0.95),
        }

    def latency_us(self, quantile: float) -> int:
        """Of the last answers, from arrival to reply; 0 before the first."""
        with self._lock:
            ordered = sorted(self._latencies_us)
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] if ordered else 0

    def rows_per_second(self) -> int:
        """While computing, over the last answers; 0 before the first."""
        with self._lock:
            rows = sum(each for each, _ in self._work)
            seconds = sum(each for _, each in self._work)
        return int(rows / seconds) if seconds > 0 else 0
