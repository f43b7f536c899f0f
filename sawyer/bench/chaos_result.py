"""What a chaos run found: how long generations stood still, and what had to be right. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from sawyer.bench.chaos_book import BookVerdict
from sawyer.bench.chaos_load import Asked
from sawyer.bench.chaos_plan import KINDS, Kind
from sawyer.bench.machine import Machine
from sawyer.bench.memory import Held, Holding, holdings

V: Final = 1
"""Version of the JSON object."""
MOST_TOLD: Final = 20
CALM: Final = "none"
"""The kind of what happened while no fault was on."""

Span = tuple[float, float]
"""From and to, in seconds of perf_counter."""


@dataclass(frozen=True, slots=True)
class Window:
    """A fault was on: from the signal until the process went on, or was started again and ready."""

    kind: Kind
    from_s: float
    to_s: float

    def meets(self, span: Span) -> bool:
        return span[0] < self.to_s and self.from_s < span[1]


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds. A quantile is a value that was measured (the nearest rank); all are 0 if nothing was."""

    count: int
    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, values_s: Iterable[float]) -> Times:
        """Of seconds."""
        ordered = sorted(values_s)
        if not ordered:
            return cls(0, 0.0, 0.0, 0.0)
        ranks = (int(q * (len(ordered) - 1) + 0.5) for q in (0.5, 0.99, 1.0))
        return cls(len(ordered), *(round(1000 * ordered[rank], 1) for rank in ranks))


@dataclass(frozen=True, slots=True)
class KindResult:
    """What requests met while faults of one kind were on. `stall_ms`: of each generation and fault the longest time
    between two tokens; `token_ms`: all times between two tokens; `first_ms`: from asking to the first token; `bill_ms`:
    from the last token to the bill."""

    faults: int
    stall_ms: Times
    token_ms: Times
    first_ms: Times
    bill_ms: Times

    @classmethod
    def of(cls, asked: Sequence[Asked], windows: Sequence[Window]) -> KindResult:
        """Of faults of one kind."""
        stalls = [stall for each in asked for window in windows if (stall := longest(each, window)) is not None]
        return cls(
            len(windows),
            Times.of(stalls),
            Times.of(_lengths(span for each in asked for span in gaps(each) if _any(windows, span))),
            Times.of(_lengths(span for each in asked for span in _first(each) if _any(windows, span))),
            Times.of(_lengths(span for each in asked for span in _bill(each) if _any(windows, span))),
        )

    @classmethod
    def calm(cls, asked: Sequence[Asked], windows: Sequence[Window]) -> KindResult:
        """Of the time in which none of these faults was on."""
        quiet = [[span for span in gaps(each) if not _any(windows, span)] for each in asked]
        return cls(
            0,
            Times.of(max(_lengths(spans)) for spans in quiet if spans),
            Times.of(_lengths(span for spans in quiet for span in spans)),
            Times.of(_lengths(span for each in asked for span in _first(each) if not _any(windows, span))),
            Times.of(_lengths(span for each in asked for span in _bill(each) if not _any(windows, span))),
        )


@dataclass(frozen=True, slots=True)
class StallTimes:
    """Milliseconds, of all faults, and by kind of fault (CALM: while none was on)."""

    p50: float
    p99: float
    max: float
    by_kind: dict[str, KindResult]

    @classmethod
    def of(cls, asked: Sequence[Asked], windows: Sequence[Window]) -> StallTimes:
        """Of all requests and all faults of a run."""
        by_kind: dict[str, KindResult] = {
            kind: KindResult.of(asked, [each for each in windows if each.kind == kind])
            for kind in KINDS
            if any(each.kind == kind for each in windows)
        }
        stalls = [stall for each in asked for window in windows if (stall := longest(each, window)) is not None]
        times = Times.of(stalls)
        return cls(times.p50, times.p99, times.max, {CALM: KindResult.calm(asked, windows), **by_kind})


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that failed or changed: which prompt, what was said, after how many tokens, during which fault."""

    request: str
    prompt: str
    error: str
    why: str
    tokens: int
    seconds: float
    during: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChaosResult:
    """A whole run. `changed`: requests that were told another token than one machine alone computes. `wrong` are the
    first of those that failed or changed. `memory`: by program, of its longest life."""

    v: int
    requests: int
    failed: int
    changed: int
    stall_ms: StallTimes
    faults: dict[str, int]
    replay: BookVerdict
    seed: int
    tokens: int
    tokens_per_second: float
    seconds: float
    streams: int
    nodes: int
    model: str
    quick: bool
    errors: dict[str, int]
    wrong: tuple[Failure, ...]
    memory: dict[str, Holding]
    machine: Machine

    @property
    def ok(self) -> bool:
        """Nothing failed, nothing changed, and the book says what happened."""
        return not (self.failed or self.changed) and self.replay.ok

    @classmethod
    def of(
        cls, asked: Sequence[Asked], windows: Sequence[Window], samples: Sequence[Held], replay: BookVerdict,
        machine: Machine, *, seed: int, seconds: float, streams: int, nodes: int, model: str, quick: bool,
    ) -> ChaosResult:  # fmt: skip
        """Of all requests, faults and samples of memory, and the book, of a run whose load lasted so many seconds."""
        tokens = sum(len(each.ids) for each in asked)
        wrong = [each for each in asked if each.error or each.changed]
        return cls(
            v=V,
            requests=len(asked),
            failed=sum(1 for each in asked if each.error),
            changed=sum(1 for each in asked if each.changed),
            stall_ms=StallTimes.of(asked, windows),
            faults=dict(Counter(each.kind for each in windows)),
            replay=replay,
            seed=seed,
            tokens=tokens,
            tokens_per_second=round(tokens / seconds, 1) if seconds else 0.0,
            seconds=round(seconds, 1),
            streams=streams,
            nodes=nodes,
            model=model,
            quick=quick,
            errors=dict(Counter(each.error for each in asked if each.error)),
            wrong=tuple(_failure(each, windows) for each in wrong[:MOST_TOLD]),
            memory=holdings(samples),
            machine=machine,
        )


def gaps(asked: Asked) -> list[Span]:
    """The times between two tokens."""
    return list(zip(asked.tokens_s, asked.tokens_s[1:], strict=False))


def longest(asked: Asked, window: Window) -> float | None:
    """The longest time between two tokens of this request that fell, if only in part, into the window; None if it had
    no such time."""
    return max(_lengths(span for span in gaps(asked) if window.meets(span)), default=None)


def _first(asked: Asked) -> list[Span]:
    return [(asked.asked_s, asked.tokens_s[0])] if asked.tokens_s else []


def _bill(asked: Asked) -> list[Span]:
    return [(asked.tokens_s[-1], asked.ended_s)] if asked.tokens_s and not asked.error else []


def _any(windows: Sequence[Window], span: Span) -> bool:
    return any(each.meets(span) for each in windows)


def _lengths(spans: Iterable[Span]) -> list[float]:
    return [to_s - from_s for from_s, to_s in spans]


def _failure(asked: Asked, windows: Sequence[Window]) -> Failure:
    ended_s = max(asked.ended_s, asked.asked_s)
    during = tuple(each.kind for each in windows if each.meets((asked.asked_s, ended_s)))
    return Failure(
        asked.request, asked.known.prompt, asked.error, asked.why, len(asked.ids), round(ended_s - asked.asked_s, 3),
        during,
    )  # fmt: skip
