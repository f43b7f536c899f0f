"""One admitted request ends in one bill and Done, or in one void and Failed, whenever it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.engine.answer import Sampled
from sawyer.errors import SawyerError, ServerUnreachable
from sawyer.ids import RequestId
from sawyer.router import run
from sawyer.router.generation import TokenStep
from sawyer.router.run import Run
from sawyer.router.stream import AnswerStream
from sawyer.router.tally import Tally
from sawyer.schemas.generation import GenerateParams
from sawyer.schemas.messages import InferMessage, Usage

PATIENCE_S = 10.0
USAGE = Usage(
    input_tokens=1, output_tokens=1, billed_tokens=2, entry=9, nodes=(), takeovers=(), prefill_us=1, decode_us=1
)
ADMITTED = SimpleNamespace(input_tokens=1, ids=[1], reservation=SimpleNamespace(tokens=2))


class Bookings:
    """The bookkeeper's side: what was written, and a door that the test may hold shut."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.asked = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()
        self.refusal: SawyerError | None = None

    async def post(self, *_: object) -> Usage:
        self.asked.set()
        await self.open.wait()
        if self.refusal is not None:
            raise self.refusal
        self.written.append("posted")
        return USAGE

    async def void(self, order: object, scope: object, reason: str) -> int:
        self.written.append(f"voided: {reason}")
        return 1


class OneToken:
    """A generation of one token."""

    cancelled = speculate = False
    drafted = accepted = 0

    async def tokens(self, prompt: Sequence[int]) -> AsyncIterator[TokenStep]:
        yield TokenStep(0, Sampled(7, "text", "length", billed=True), ())


class HeldBus(MemoryBus):
    """Publishes nothing until it may."""

    def __init__(self, network: MemoryNetwork) -> None:
        super().__init__(network)
        self.asked = asyncio.Event()
        self.open = asyncio.Event()
        self.holds: Callable[[bytes], bool] = lambda _: False

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        if self.holds(data):
            self.asked.set()
            await self.open.wait()
        await super().publish(subject, data, reply)


class Case:
    """A run, and what came of it."""

    def __init__(self) -> None:
        self.bus = HeldBus(MemoryNetwork())
        self.bookings = Bookings()
        self.stream = AnswerStream(RequestId("a" * 32), ("alice",), ["inbox"])
        self.tally = Tally()
        params = GenerateParams(prompt="", max_tokens=1)
        order = SimpleNamespace(body=SimpleNamespace(model="m"))
        request: Any = SimpleNamespace(params=params, trace=False, speculate=True, order=order)
        engine, decoding = SimpleNamespace(generation=None), None
        parts: list[Any] = [engine, decoding, self.bookings, request, ADMITTED]
        self.run = Run(self.bus, *parts, self.stream, self.tally)
        self.run._generation = OneToken()  # type: ignore[assignment]

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.run.to_the_end("router-1"))

    def events(self) -> list[str]:
        return [type(InferMessage.parse(raw).e).__name__ for raw in self.stream.messages]

    def counted(self) -> tuple[int, int]:
        return self.tally.completed, self.tally.failed


@pytest.fixture
async def case() -> Case:
    return Case()


async def heard(event: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await event.wait()


async def ended(task: asyncio.Task[None]) -> bool:
    """Whether it was cancelled."""
    await asyncio.wait({task}, timeout=PATIENCE_S)
    return task.cancelled()


async def test_finished_request_is_posted_once_and_counted_once(case: Case) -> None:
    await case.start()
    assert (case.bookings.written, case.events(), case.counted()) == (["posted"], ["Accepted", "Delta", "Done"], (1, 0))


async def test_request_cancelled_before_it_began_is_voided_and_bills_nothing(case: Case) -> None:
    case.run.cancel()
    await case.start()
    assert (case.bookings.written, case.events(), case.counted()) == (["voided: cancelled"], ["Failed"], (0, 1))


async def test_refused_bill_is_voided(case: Case) -> None:
    case.bookings.refusal = ServerUnreachable("gone")
    await case.start()
    assert case.bookings.written == ["voided: server_unreachable"]
    assert (case.events()[-1], case.counted()) == ("Failed", (0, 1))


async def test_work_that_is_being_booked_when_the_router_stops_is_booked_and_told(case: Case) -> None:
    case.bookings.open.clear()
    running = case.start()
    await heard(case.bookings.asked)
    running.cancel()
    asyncio.get_running_loop().call_soon(case.bookings.open.set)
    assert await ended(running)
    assert (case.bookings.written, case.events()[-1], case.counted()) == (["posted"], "Done", (1, 0))


async def test_bill_that_does_not_come_in_time_when_the_router_stops_is_voided(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "BOOK_PATIENCE_S", 0.01)
    case.bookings.open.clear()
    running = case.start()
    await heard(case.bookings.asked)
    running.cancel()
    assert await ended(running)
    assert len(case.bookings.written) == 1
    assert case.bookings.written[0].startswith("voided")
    assert (case.events()[-1], case.counted()) == ("Failed", (0, 1))


async def test_nothing_is_said_after_the_bill_when_the_router_stops_while_telling_it(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "BOOK_PATIENCE_S", 0.01)
    case.bus.holds = lambda data: b'"Done"' in data or b'"done"' in data
    running = case.start()
    await heard(case.bus.asked)
    running.cancel()
    assert await ended(running)
    assert (case.bookings.written, case.events()[-1], case.counted()) == (["posted"], "Done", (1, 0))
