"""Memory pressure: loaded experts make room and come back, and loading again and again is told, rarely."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest

from sawyer.engine.experts import ExpertPool, PoolCounts
from sawyer.model.artifacts import Artifacts
from sawyer.node.memory import Memory, MiB
from sawyer.node.pressure import TOLD_EVERY_S, WINDOW_LOOKS, Pressure, lacking_bytes
from sawyer.schemas.models import Format

HOSTED = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("total_mb", "free_mb", "needed_mb", "lacking_mb"),
    [
        (8000, 4000, 0, 0),
        (8000, 401, 1, 0),
        (8000, 400, 1, 1),
        (8000, 0, 0, 400),
        (512, 64, 0, 0),
        (512, 0, 10, 74),
        (1_000_000, 2000, 0, 48),
    ],
)
def test_a_twentieth_of_the_memory_stays_free_within_bounds(
    total_mb: int, free_mb: int, needed_mb: int, lacking_mb: int
) -> None:
    assert lacking_bytes(Memory(total_mb * MiB, free_mb * MiB), needed_mb * MiB) == lacking_mb * MiB


async def test_pool_makes_room_when_memory_runs_short_and_fills_up_when_it_is_back(
    demo: Callable[[Format], Artifacts],
) -> None:
    now = [Memory(8000 * MiB, 8000 * MiB)]
    pressure = Pressure(lambda: now[0])
    pool = ExpertPool(demo("q4"), HOSTED, device="cpu", lacking=pressure.lacking)
    await pressure.look(pool)
    assert pool.counts.loaded == 4
    now[0] = Memory(8000 * MiB, 0)
    await pressure.look(pool)
    assert (pool.counts.loaded, pool.counts.drops) == (1, 3)
    assert pool.is_loaded(1, 1), "the one used last"
    now[0] = Memory(8000 * MiB, 8000 * MiB)
    await pressure.look(pool)
    assert pool.counts.loaded == 1, "nothing is loaded before somebody asks for it"


class LoadedAgainAndAgain:
    """A pool that spends a part of its time on loading."""

    uses_main_memory = False

    def __init__(self, loading_part: float) -> None:
        self.counts = PoolCounts(hosted=32, loaded=2, loads=0, drops=0, loading_s=0.0)
        self.now_s = 0.0
        self._loading_part = loading_part

    def second(self) -> None:
        counts = self.counts
        self.now_s += 1
        self.counts = replace(counts, loads=counts.loads + 3, loading_s=counts.loading_s + self._loading_part)


@pytest.mark.parametrize(("loading_part", "times"), [(0.2, 0), (0.5, 2)])
async def test_loading_again_and_again_is_told_once_in_ten_minutes(
    loading_part: float, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    pool = LoadedAgainAndAgain(loading_part)
    pressure = Pressure(lambda: Memory(1, 0), lambda: pool.now_s)
    with caplog.at_level(logging.WARNING):
        for _ in range(WINDOW_LOOKS + int(TOLD_EVERY_S) + 5):
            await pressure.look(pool)  # type: ignore[arg-type]
            pool.second()
    assert len(caplog.messages) == times
    if times:
        assert caplog.messages[0] == (
            "50% of the last 60 s went into loading experts, 180 times: 2 of 32 are loaded. Host fewer, or give them "
            "more memory."
        )
