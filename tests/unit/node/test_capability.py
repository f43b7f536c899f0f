"""What a node measures before and while it serves: real experts, and a router that echoes, lies, or is not there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.service import Service
from sawyer.engine.experts import ExpertPool
from sawyer.errors import Busy, NobodyServes, SawyerError
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.node import capability
from sawyer.node.capability import BODIES_BYTES, PING_BYTES, PINGS, Way, WayKeeper, measure_speed, measure_way
from sawyer.schemas import subjects
from sawyer.schemas.models import Format

MODEL = ModelId("austen")


def test_speed_of_a_real_expert_is_measured_for_one_row_and_for_many(demo: Callable[[Format], Artifacts]) -> None:
    speed = measure_speed(ExpertPool(demo("q4"), [(0, 0), (1, 3)], device="cpu"))
    assert speed.row_us > 0
    assert speed.rows_per_second > 0


def test_slow_expert_is_measured_with_one_run_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability, "SPEED_LIMIT_S", 0.0)

    class Slow:
        hosted = ((4, 2),)
        hidden = 8
        ran: list[tuple[int, ...]]

        def __init__(self) -> None:
            self.ran = []

        def is_loaded(self, layer: int, expert: int) -> bool:
            return True

        def run(self, layer: int, expert: int, rows: object) -> None:
            self.ran.append((layer, expert, len(rows)))  # type: ignore[arg-type]

    pool = Slow()
    measure_speed(pool)  # type: ignore[arg-type]
    assert pool.ran == [(4, 2, 1), (4, 2, capability.MANY_ROWS)]


class Echo:
    """A router's echo that remembers sizes, and can be made to answer wrongly."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.wrong = False

    async def answer(self, message: object) -> bytes:
        data: bytes = message.data  # type: ignore[attr-defined]
        self.sizes.append(len(data))
        return data[:-1] if self.wrong else data


@pytest.fixture
async def bus() -> MemoryBus:
    return MemoryBus(MemoryNetwork())


@pytest.fixture
async def echo(bus: MemoryBus) -> Echo:
    made = Echo()
    await Service(bus, subjects.echo(MODEL), made.answer, lambda _: b"", limit=8).start()
    return made


async def test_way_is_measured_with_small_messages_and_then_bigger_ones(bus: MemoryBus, echo: Echo) -> None:
    way = await measure_way(bus, MODEL)
    assert way.round_trip_us > 0
    assert way.kilobytes_per_second > 0
    assert echo.sizes == [PING_BYTES] * PINGS + list(BODIES_BYTES)


async def test_narrow_way_is_not_filled_with_a_big_body(
    bus: MemoryBus, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capability, "NARROW_S", 0.0)
    assert (await measure_way(bus, MODEL)).kilobytes_per_second > 0
    assert echo.sizes[PINGS:] == list(BODIES_BYTES[:1])


async def test_far_router_is_no_narrow_way(bus: MemoryBus, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    async def far(_bus: MemoryBus, _model: ModelId, size: int) -> float:
        sizes.append(size)
        return 0.1 + size * 1e-9

    monkeypatch.setattr(capability, "_echo_s", far)
    monkeypatch.setattr(capability, "NARROW_S", 0.06)
    way = await measure_way(bus, MODEL)
    assert sizes[PINGS:] == list(BODIES_BYTES[:1]), "one tenth of the trip at least is counted: not known to be wide"
    assert way.round_trip_us >= 100_000
    monkeypatch.setattr(capability, "NARROW_S", 0.2)
    await measure_way(bus, MODEL)
    assert sizes[-1] == BODIES_BYTES[1]


@pytest.mark.parametrize("echoes", range(PINGS + 2))
async def test_request_that_comes_while_measuring_ends_it(bus: MemoryBus, echo: Echo, echoes: int) -> None:
    def busy() -> bool:
        return len(echo.sizes) >= echoes

    if echoes <= PINGS:
        with pytest.raises(Busy):
            await measure_way(bus, MODEL, busy)
    else:
        assert (await measure_way(bus, MODEL, busy)).kilobytes_per_second > 0
    assert len(echo.sizes) == echoes


async def test_router_that_echoes_something_else_is_not_believed(bus: MemoryBus, echo: Echo) -> None:
    echo.wrong = True
    with pytest.raises(SawyerError, match="something else"):
        await measure_way(bus, MODEL)


async def test_without_a_router_nobody_serves(bus: MemoryBus) -> None:
    with pytest.raises(NobodyServes):
        await measure_way(bus, MODEL)


async def test_keeper_keeps_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability, "WAY_EVERY_S", 0.0)
    monkeypatch.setattr(capability, "WAY_RETRY_S", 0.0)
    asked = asyncio.Queue[None]()
    outcomes: list[Way | SawyerError] = [NobodyServes("none yet"), Way(5, 6), Busy("requests wait")]

    async def measure() -> Way:
        asked.put_nowait(None)
        outcome = outcomes.pop(0) if outcomes else NobodyServes("gone")
        if isinstance(outcome, SawyerError):
            raise outcome
        return outcome

    keeper = WayKeeper(measure)
    assert keeper.way == Way(0, 0)
    running = asyncio.create_task(keeper.run())
    async with asyncio.timeout(10):
        for _ in range(5):
            await asked.get()
    running.cancel()
    assert keeper.way == Way(5, 6)
