"""What a benchmark found, in one object: for people who read it and for programs that compare two of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Final

from sawyer.bench.layer_calls import Calls
from sawyer.bench.machine import Machine
from sawyer.bench.timing import Quantiles, Spread, ratios
from sawyer.schemas.models import ModelLayout

GOAL_ACTIVATIONS_PER_SECOND: Final = 1000
GOAL_LAYER_CALL_US: Final = 3000
GOAL_RATIO: Final = 0.5
GOAL_STREAMS_RATIO: Final = 0.8
GOAL_STREAMS_GAIN: Final = 4.0
GOAL_FOUR_RATIO: Final = 0.5
V: Final = 1
"""Version of the JSON object."""


@dataclass
class Rounds:
    """What was measured of one model, a value or a series of calls a round; all lists are equally long."""

    model: str
    layout: ModelLayout
    tokens: int
    streams: int
    local: list[float] = field(default_factory=list)
    distributed: list[float] = field(default_factory=list)
    local_streams: list[float] = field(default_factory=list)
    distributed_streams: list[float] = field(default_factory=list)
    single: list[Calls] = field(default_factory=list)
    plain_us: list[list[float]] = field(default_factory=list)
    gathered_us: list[list[float]] = field(default_factory=list)
    four_plain_us: list[list[float]] = field(default_factory=list)
    four_own_us: list[list[float]] = field(default_factory=list)
    batches: dict[int, list[Calls]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """Layer calls with many rows. rows_per_second counts a row once, whatever the top k."""

    rows: int
    layer_call_us: Quantiles
    rows_per_second: Spread
    activations_per_second: Spread

    @classmethod
    def of(cls, rounds: list[Calls]) -> Batch:
        rows, top_k = rounds[0].rows, rounds[0].top_k
        per_second = [each.calls_per_second * rows for each in rounds]
        return cls(
            rows=rows,
            layer_call_us=Quantiles.of([us for each in rounds for us in each.wall_us]),
            rows_per_second=Spread.of(per_second),
            activations_per_second=Spread.of([top_k * each for each in per_second]),
        )


@dataclass(frozen=True, slots=True)
class ModelResult:
    """One model. `ratio`: distributed over in process, round by round; `streams_ratio`: the same with `streams` at
    once; `streams_gain`: over the network, so many at once over one. `communication_us`: of a layer call with one
    row, all but compute; `plain_us`: as many plain requests, `gathered_us`: the same through bus/gather.py, both to
    echoes; `communication_ratio`, `gathered_ratio`: over plain. `four_plain_us`, `four_own_us`: a row of 8 KB to
    each of four processes and back, by plain requests and over our bus at both ends; `four_ratio`: ours over plain."""

    model: str
    layers: int
    experts: int
    top_k: int
    hidden: int
    ffn: int
    tokens: int
    local_tokens_per_second: Spread
    distributed_tokens_per_second: Spread
    ratio: Spread
    streams: int
    local_streams_tokens_per_second: Spread
    distributed_streams_tokens_per_second: Spread
    streams_ratio: Spread
    streams_gain: Spread
    layer_call_us: Quantiles
    compute_us: Spread
    communication_us: Spread
    plain_us: Spread
    communication_ratio: Spread
    gathered_us: Spread
    gathered_ratio: Spread
    four_plain_us: Spread
    four_own_us: Spread
    four_ratio: Spread
    activations_per_second: Spread
    batches: tuple[Batch, ...]

    @classmethod
    def of(cls, rounds: Rounds) -> ModelResult:
        layout = rounds.layout
        communication = [median(each.communication_us) for each in rounds.single]
        plain = [median(each) for each in rounds.plain_us]
        gathered = [median(each) for each in rounds.gathered_us]
        four_plain, four_own = ([median(us) for us in each] for each in (rounds.four_plain_us, rounds.four_own_us))
        return cls(
            model=rounds.model,
            layers=layout.layers,
            experts=layout.experts,
            top_k=layout.top_k,
            hidden=layout.hidden,
            ffn=layout.ffn,
            tokens=rounds.tokens,
            local_tokens_per_second=Spread.of(rounds.local),
            distributed_tokens_per_second=Spread.of(rounds.distributed),
            ratio=Spread.of(ratios(rounds.distributed, rounds.local)),
            streams=rounds.streams,
            local_streams_tokens_per_second=Spread.of(rounds.local_streams),
            distributed_streams_tokens_per_second=Spread.of(rounds.distributed_streams),
            streams_ratio=Spread.of(ratios(rounds.distributed_streams, rounds.local_streams)),
            streams_gain=Spread.of(ratios(rounds.distributed_streams, rounds.distributed)),
            layer_call_us=Quantiles.of([us for each in rounds.single for us in each.wall_us]),
            compute_us=Spread.of([median(each.compute_us) for each in rounds.single]),
            communication_us=Spread.of(communication),
            plain_us=Spread.of(plain),
            communication_ratio=Spread.of(ratios(communication, plain)),
            gathered_us=Spread.of(gathered),
            gathered_ratio=Spread.of(ratios(gathered, plain)),
            four_plain_us=Spread.of(four_plain),
            four_own_us=Spread.of(four_own),
            four_ratio=Spread.of(ratios(four_own, four_plain)),
            activations_per_second=Spread.of([each.top_k * each.calls_per_second for each in rounds.single]),
            batches=tuple(Batch.of(each) for each in rounds.batches.values()),
        )


@dataclass(frozen=True, slots=True)
class Goal:
    """What was wanted, and whether this run had it."""

    name: str
    wanted: float
    got: float
    met: bool


@dataclass(frozen=True, slots=True)
class BenchResult:
    """A whole benchmark. `ratio` and `activations_per_second` are the medians of the first model. `threads`: compute
    threads of the in-process run, and of each node and the router."""

    v: int
    ratio: float
    activations_per_second: float
    goals: tuple[Goal, ...]
    quick: bool
    rounds: int
    nodes: int
    threads: dict[str, int]
    machine: Machine
    models: tuple[ModelResult, ...]

    @classmethod
    def of(
        cls, models: tuple[ModelResult, ...], machine: Machine, *, quick: bool, nodes: int, threads: dict[str, int],
        rounds: int,
    ) -> BenchResult:  # fmt: skip
        first = models[0]
        activations, call_us = int(first.activations_per_second.median), first.layer_call_us.p50
        goals = (
            Goal(
                "activations_per_second",
                GOAL_ACTIVATIONS_PER_SECOND,
                activations,
                activations >= GOAL_ACTIVATIONS_PER_SECOND,
            ),
            Goal("layer_call_p50_us", GOAL_LAYER_CALL_US, call_us, call_us <= GOAL_LAYER_CALL_US),
            _at_least("distributed_ratio", GOAL_RATIO, first.ratio),
            _at_least("streams_ratio", GOAL_STREAMS_RATIO, first.streams_ratio),
            _at_least("streams_gain", GOAL_STREAMS_GAIN, first.streams_gain),
            Goal(
                "four_nodes_ratio", GOAL_FOUR_RATIO, first.four_ratio.median, first.four_ratio.median <= GOAL_FOUR_RATIO
            ),
        )
        return cls(
            v=V,
            ratio=first.ratio.median,
            activations_per_second=first.activations_per_second.median,
            goals=goals,
            quick=quick,
            rounds=rounds,
            nodes=nodes,
            threads=threads,
            machine=machine,
            models=models,
        )


def _at_least(name: str, wanted: float, got: Spread) -> Goal:
    return Goal(name, wanted, got.median, got.median >= wanted)
