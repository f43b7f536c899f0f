"""What `sawyer bench wan` found, beside what the links allow at best. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from sawyer.bench.machine import Machine
from sawyer.schemas.models import ModelLayout

V: Final = 1
"""Version of the JSON object."""


@dataclass(frozen=True, slots=True)
class Burst:
    """So many texts at once: all their tokens, and the seconds from asking to the last bill."""

    streams: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class StreamsResult:
    """`tokens_per_second` of all streams together, `a_stream` of each; `of_bound`: the latter, over the bound."""

    streams: int
    tokens: int
    seconds: float
    tokens_per_second: float
    a_stream: float
    of_bound: float

    @classmethod
    def of(cls, burst: Burst, bound: float) -> StreamsResult:
        """`bound`: tokens a second that a stream can have at most."""
        rate = burst.tokens / burst.seconds
        each = rate / burst.streams
        return cls(
            burst.streams, burst.tokens, round(burst.seconds, 2), round(rate, 2), round(each, 2), round(each / bound, 3)
        )


@dataclass(frozen=True, slots=True)
class Guessed:
    """One text twice, one stream each: one token a pass, and with guesses what comes next computed ahead. Seconds from
    the first token to the last."""

    text: str
    tokens: int
    without_s: float
    with_s: float
    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True)
class SpeculationResult:
    """`ratio`: tokens a second with guesses, over those without. Of `drafted` tokens `accepted` were right."""

    text: str
    tokens: int
    without_tokens_per_second: float
    with_tokens_per_second: float
    ratio: float
    drafted: int
    accepted: int

    @classmethod
    def of(cls, guessed: Guessed) -> SpeculationResult:
        passes = guessed.tokens - 1
        return cls(
            guessed.text, guessed.tokens, round(passes / guessed.without_s, 2), round(passes / guessed.with_s, 2),
            round(guessed.without_s / guessed.with_s, 3), guessed.drafted, guessed.accepted,
        )  # fmt: skip


def bound_tokens_per_second(moe_layers: int, rtt_s: float) -> float:
    """The most that one stream can have if each layer with experts waits for its answers before the next begins: a
    token then takes a round trip a layer, whatever the machines compute."""
    return 1 / (moe_layers * rtt_s)


@dataclass(frozen=True, slots=True)
class WanResult:
    """A whole run. `measured_rtt_ms`: the median round trip of an empty message between a node's place and the
    router, with nothing else under way; `bound_tokens_per_second` a stream, by the round trip that was asked for."""

    v: int
    rtt_ms: float
    measured_rtt_ms: float
    mbit: float
    loss_percent: float
    model: str
    moe_layers: int
    experts: int
    top_k: int
    nodes: int
    bound_tokens_per_second: float
    streams: tuple[StreamsResult, ...]
    speculation: tuple[SpeculationResult, ...]
    quick: bool
    machine: Machine

    @classmethod
    def of(
        cls, bursts: Sequence[Burst], guessed: Sequence[Guessed], round_trips_s: Sequence[float],
        layout: ModelLayout, machine: Machine, *, rtt_ms: float, mbit: float, loss_percent: float, model: str,
        nodes: int, quick: bool,
    ) -> WanResult:  # fmt: skip
        """Of at least one round trip."""
        layers = len(layout.moe_layers)
        bound = bound_tokens_per_second(layers, rtt_ms / 1000)
        return cls(
            v=V,
            rtt_ms=rtt_ms,
            measured_rtt_ms=round(1000 * median(round_trips_s), 2),
            mbit=mbit,
            loss_percent=loss_percent,
            model=model,
            moe_layers=layers,
            experts=layout.experts,
            top_k=layout.top_k,
            nodes=nodes,
            bound_tokens_per_second=round(bound, 2),
            streams=tuple(StreamsResult.of(each, bound) for each in bursts),
            speculation=tuple(SpeculationResult.of(each) for each in guessed),
            quick=quick,
            machine=machine,
        )
