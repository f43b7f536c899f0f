"""The bookkeeper's time on a node: never ahead of it, never back, whatever this machine's clock says."""

from __future__ import annotations

import asyncio

import pytest

from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.protocol import Message
from sawyer.node.network_time import NetworkTime
from sawyer.schemas import subjects
from sawyer.schemas.base import encode_canonical

TOLD_MS = 1_700_000_000_000
ANSWERED_AFTER_S = 0.4
TRIP_S = 1.5


class Seconds:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


async def test_time_counts_on_from_an_answer_and_never_goes_back(seconds: Seconds) -> None:
    time = NetworkTime(seconds)
    time.take(TOLD_MS)
    assert time.now_ms() == TOLD_MS
    seconds.now += 2.5
    assert time.now_ms() == TOLD_MS + 2500
    time.take(TOLD_MS)
    assert time.now_ms() == TOLD_MS + 2500
    seconds.now += 3
    assert time.now_ms() == TOLD_MS + 3000


async def test_what_was_said_before_we_asked_is_earlier_than_our_start_however_slow_the_way(seconds: Seconds) -> None:
    network, tasks = MemoryNetwork(), set[asyncio.Task[None]]()
    book = MemoryBus(network)
    asked_s = seconds.now

    def answer(message: Message) -> None:
        told = {
            "network": "sawyer-net/3f9a1c22", "ledger_vkey": "sawyer-net/3f9a1c22+00000000+" + "A" * 44, "mode": "test",
            "operator": "O" + "A" * 55, "successors": [], "models": [], "size": 1, "checkpoint": "x",
            "now_ms": TOLD_MS + int(ANSWERED_AFTER_S * 1000),
        }  # fmt: skip
        seconds.now = asked_s + TRIP_S
        tasks.add(asyncio.create_task(book.publish(message.reply, encode_canonical(told))))

    await book.subscribe(subjects.query("network"), answer)
    time = NetworkTime(seconds)
    reply, started_ms = await time.ask(MemoryBus(network))
    time.take(reply.now_ms)
    true_ms = TOLD_MS + TRIP_S * 1000
    assert started_ms >= TOLD_MS, "what was said before is not later"
    assert started_ms >= true_ms
    assert time.now_ms() <= true_ms, "what we say is not from the future"
