"""Numbers of repeated measurements: the middle, and how far apart they lie. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """One number a round: their median, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(_short(median(values)), _short(min(values)), _short(max(values)))


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of all calls of all rounds, in microseconds."""

    p50: int
    p95: int
    p99: int

    @classmethod
    def of(cls, values_us: Sequence[float]) -> Quantiles:
        """Of at least one value. A quantile is a value that was measured: the nearest rank."""
        ordered = sorted(values_us)
        return cls(*(int(ordered[min(len(ordered) - 1, int(q * len(ordered)))]) for q in (0.5, 0.95, 0.99)))


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round, so that what slows a whole round cancels out."""
    return [a / b for a, b in zip(above, below, strict=True)]


def _short(value: float) -> float:
    """Four significant digits: more would pretend."""
    return float(f"{value:.4g}")
