"""How long things took, in a few integers: fixed buckets, each twice as wide as the one before. Adding one is an
addition, and two histograms add up to that of both. Owns the counting; schemas/metrics.py has the bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sawyer.schemas.metrics import LATENCY_BOUNDS_US, Latency

_FIRST_BITS = (LATENCY_BOUNDS_US[0] - 1).bit_length()
_LAST = len(LATENCY_BOUNDS_US)


@dataclass(slots=True)
class Histogram:
    """Counts a bucket, and the sum of all times in microseconds. Not thread safe."""

    counts: list[int] = field(default_factory=lambda: [0] * (_LAST + 1))
    sum_us: int = 0

    def add(self, took_us: int) -> None:
        """One more, of at least 0 microseconds."""
        self.counts[bucket_of(took_us)] += 1
        self.sum_us += took_us

    def told(self) -> Latency:
        return Latency(counts=tuple(self.counts), sum_us=self.sum_us)


def bucket_of(took_us: int) -> int:
    """The index of the first bound that is not below this."""
    return min(_LAST, max(0, (took_us - 1).bit_length() - _FIRST_BITS)) if took_us > 0 else 0


def merged(parts: Sequence[Latency]) -> Latency:
    """All of them as one. At least one."""
    return Latency(
        counts=tuple(map(sum, zip(*(each.counts for each in parts), strict=True))),
        sum_us=sum(each.sum_us for each in parts),
    )


def quantile_us(latency: Latency, quantile: float) -> int:
    """The time that this part (0 to 1) of all did not exceed, read from the bucket as if it were filled evenly; 0 where
    nothing was counted. What is in the last bucket counts as its lower end."""
    total = sum(latency.counts)
    left = quantile * total
    for at, count in enumerate(latency.counts):
        if count and left <= count:
            low = LATENCY_BOUNDS_US[at - 1] if at else 0
            high = LATENCY_BOUNDS_US[at] if at < _LAST else low
            return int(low + (high - low) * left / count)
        left -= count
    return 0
