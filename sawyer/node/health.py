"""What a node measures of itself: latency and throughput of its last answers, the device that really runs."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from sawyer.bus.service import Counts
from sawyer.errors import SawyerError
from sawyer.ids import ModelId, NodeId
from sawyer.schemas.histogram import Histogram
from sawyer.schemas.metrics import NodeMetrics

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
    joined_runs: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    histogram: Histogram = field(default_factory=Histogram)
    _latencies_us: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _work: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def arrived(self, size_bytes: int) -> None:
        """One message came in."""
        with self._lock:
            self.bytes_in += size_bytes

    def answered(self, rows: int, latency_s: float, size_bytes: int = 0) -> None:
        """One answer of this size went out, so long after its request came in."""
        with self._lock:
            self.answers += 1
            self.rows += rows
            self.bytes_out += size_bytes
            self._latencies_us.append(int(latency_s * 1e6))
            self.histogram.add(int(latency_s * 1e6))

    def computed(self, rows: int, compute_s: float, runs: int = 1, joined_runs: int = 0) -> None:
        """So many rows ran through experts in this time, in so many runs of ONNX Runtime; of these so many were to hold
        rows of several requests."""
        with self._lock:
            self.runs += runs
            self.joined_runs += joined_runs
            self.compute_s += compute_s
            self._work.append((rows, compute_s))

    def refuse(self, error: Exception) -> None:
        """One request was refused."""
        with self._lock:
            self.refused += 1
            self.refusals[error.code if isinstance(error, SawyerError) else "failed"] += 1
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

    def told(self, node: NodeId, model: ModelId, started_ms: int, queue: int) -> NodeMetrics:
        """All counters, as a message."""
        with self._lock:
            return NodeMetrics(
                node=node,
                model=model,
                started_ms=started_ms,
                queue=queue,
                answers=self.answers,
                rows=self.rows,
                runs=self.runs,
                joined_runs=self.joined_runs,
                bytes_in=self.bytes_in,
                bytes_out=self.bytes_out,
                compute_us=int(self.compute_s * 1e6),
                refusals=dict(sorted(self.refusals.items())),
                latency=self.histogram.told(),
            )

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
