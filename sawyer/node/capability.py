"""What a node can do, measured: how fast an expert runs here, and how long and wide the way to a router is. Claims for
people and for a first guess; a router goes by what it measures itself."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sawyer.bus.protocol import Bus
from sawyer.engine.experts import ExpertPool
from sawyer.errors import Busy, SawyerError
from sawyer.ids import ModelId
from sawyer.schemas import subjects

MANY_ROWS: Final = 32
SPEED_RUNS: Final = 7
SPEED_LIMIT_S: Final = 0.2
"""For each of the two measurements of speed; a run that takes longer is the only one."""

PINGS: Final = 5
PING_BYTES: Final = 64
BODIES_BYTES: Final = (16 * 1024, 256 * 1024)
"""The small one first: on a narrow line the big one would hold up answers, and is not sent."""
NARROW_S: Final = 0.05
"""A body that would take longer, as far as the one before it tells, is not sent. The waiting for a far router is not
counted: it holds up nobody."""
ECHO_TIMEOUT_S: Final = 2.0
WAY_EVERY_S: Final = 60.0
WAY_RETRY_S: Final = 5.0
"""As long as no router has answered."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Speed:
    """Of one expert on this device: microseconds for one row, and rows a second when there are many."""

    row_us: int
    rows_per_second: int

    @property
    def rows_one_by_one(self) -> int:
        """A second: what a node can count on, for most rows come alone."""
        return 1_000_000 // max(1, self.row_us)


@dataclass(frozen=True)
class Way:
    """To a router and back: a small message's microseconds, and how many kilobytes (1000 bytes, both ways added) pass
    in a second. Zeros: not measured yet."""

    round_trip_us: int = 0
    kilobytes_per_second: int = 0


def measure_speed(pool: ExpertPool) -> Speed:
    """Medians over a loaded expert; all have one shape. Takes a fraction of a second. Blocking."""
    layer, expert = next(pair for pair in pool.hosted if pool.is_loaded(*pair))
    return speed_of(lambda rows: pool.run(layer, expert, rows), pool.hidden)


def speed_of(run: Callable[[NDArray[np.float32]], object], hidden: int) -> Speed:
    """Medians of one expert that runs rows [T, hidden]. Blocking."""
    rows = np.random.default_rng(0).standard_normal((MANY_ROWS, hidden)).astype(np.float32)
    one_s = _median_s(lambda: run(rows[:1]))
    many_s = _median_s(lambda: run(rows))
    return Speed(max(1, round(one_s * 1e6)), max(1, int(MANY_ROWS / many_s)))


def _median_s(run: Callable[[], object]) -> float:
    """Of the runs within SPEED_LIMIT_S, at most SPEED_RUNS; the first does not count if there is a second."""
    until_s, took_s = perf_counter() + SPEED_LIMIT_S, list[float]()
    while len(took_s) <= SPEED_RUNS and (not took_s or perf_counter() < until_s):
        started_s = perf_counter()
        run()
        took_s.append(perf_counter() - started_s)
    return median(took_s[1:] or took_s)


async def measure_way(bus: Bus, model: ModelId, busy: Callable[[], bool] = lambda: False) -> Way:
    """Small messages to a router of the model and back, then bigger ones; none while `busy`. Raises SawyerError
    (NobodyServes, NoAnswer, a router that does not echo, Busy if nothing could be measured)."""
    trips_s = list[float]()
    for _ in range(PINGS):
        _refuse_if(busy)
        trips_s.append(await _echo_s(bus, model, PING_BYTES))
    trip_s, rate = median(trips_s), 0.0
    for size in BODIES_BYTES:
        if rate and (busy() or 2 * size / rate > NARROW_S):
            break
        _refuse_if(busy)
        took_s = await _echo_s(bus, model, size)
        rate = 2 * size / max(took_s - trip_s, 0.1 * took_s)
    return Way(max(1, round(trip_s * 1e6)), max(1, int(rate / 1000)))


def _refuse_if(busy: Callable[[], bool]) -> None:
    if busy():
        raise Busy("requests wait: the way is measured later")


async def _echo_s(bus: Bus, model: ModelId, size: int) -> float:
    body = os.urandom(size)  # what cannot be compressed on the way
    started_s = perf_counter()
    reply = await bus.request(subjects.echo(model), body, ECHO_TIMEOUT_S)
    took_s = perf_counter() - started_s
    if reply != body:
        raise SawyerError("a router answered an echo with something else")
    return took_s


class WayKeeper:
    """Measures the way again and again, beside the serving."""

    def __init__(self, measure: Callable[[], Awaitable[Way]]) -> None:
        self._measure = measure
        self.way = Way()

    async def run(self) -> None:
        """Until cancelled. What cannot be measured stays as it was."""
        while True:
            try:
                self.way = await self._measure()
            except SawyerError as error:
                log.debug("the way to a router is not measured: %s", error)
            await asyncio.sleep(WAY_EVERY_S if self.way.round_trip_us else WAY_RETRY_S)
