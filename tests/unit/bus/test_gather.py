"""One inbox, one future a call: every answer, every reason that none will come, and nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sawyer.bus.gather import Arrival, Gatherer, Loss
from sawyer.bus.memory import MemoryBus
from sawyer.bus.protocol import Message
from sawyer.errors import ServerUnreachable

FOREVER_S = 3600.0
SHORT_S = 0.02
PATIENCE_S = 10.0


@pytest.fixture
async def gatherer(asker: MemoryBus) -> AsyncIterator[Gatherer]:
    """Answers that begin with `!` are urgent."""
    made = Gatherer(asker, urgent=lambda data: data.startswith(b"!"))
    await made.start()
    yield made
    await made.stop()


class Peer:
    """Somebody who listens on `peer.*` and answers when the test says so."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus
        self.asked: asyncio.Queue[Message] = asyncio.Queue()

    async def hear(self) -> Message:
        return await asyncio.wait_for(self.asked.get(), PATIENCE_S)

    async def answer(self, message: Message, data: bytes) -> None:
        await self._bus.publish(message.reply, data)


@pytest.fixture
async def peer(asked: MemoryBus) -> Peer:
    made = Peer(asked)
    await asked.subscribe("peer.*", made.asked.put_nowait)
    return made


def seen(arrivals: list[Arrival]) -> list[tuple[int, bytes, Loss | None]]:
    return [(each.tag, each.data, each.loss) for each in arrivals]


async def test_wait_returns_all_answers_with_their_tags(gatherer: Gatherer, peer: Peer) -> None:
    with gatherer.call() as call:
        for tag in (1, 2, 3):
            await call.send(tag, f"peer.{tag}", b"q")
        waiting = asyncio.create_task(call.wait(FOREVER_S))
        messages = [await peer.hear() for _ in range(3)]
        for message in reversed(messages):
            await peer.answer(message, message.subject.encode())
        arrivals = await asyncio.wait_for(waiting, PATIENCE_S)
        assert seen(arrivals) == [(3, b"peer.3", None), (2, b"peer.2", None), (1, b"peer.1", None)]
        assert call.outstanding == set()
        assert await call.wait(FOREVER_S) == []


async def test_wait_returns_at_once_when_nobody_listens(gatherer: Gatherer, peer: Peer) -> None:
    with gatherer.call() as call:
        await call.send(1, "peer.1", b"q")
        await call.send(2, "nobody.here", b"q")
        assert seen(await asyncio.wait_for(call.wait(FOREVER_S), PATIENCE_S)) == [(2, b"", Loss.NO_RESPONDERS)]
        assert call.outstanding == {1}


async def test_urgent_answer_wakes_while_others_are_still_out(gatherer: Gatherer, peer: Peer) -> None:
    with gatherer.call() as call:
        for tag in (1, 2, 3):
            await call.send(tag, f"peer.{tag}", b"q")
        first, second, _ = [await peer.hear() for _ in range(3)]
        waiting = asyncio.create_task(call.wait(FOREVER_S))
        await peer.answer(first, b"calm")
        await peer.answer(second, b"!refused")
        arrivals = await asyncio.wait_for(waiting, PATIENCE_S)
        assert seen(arrivals) == [(1, b"calm", None), (2, b"!refused", None)]
        assert call.outstanding == {3}


@pytest.mark.parametrize("urgent", [b"!refused", None])
async def test_urgent_word_that_came_between_two_waits_is_not_slept_over(
    gatherer: Gatherer, peer: Peer, urgent: bytes | None
) -> None:
    with gatherer.call() as call:
        await call.send(1, "peer.1", b"q")
        await call.send(2, "peer.2" if urgent else "nobody.here", b"q")
        heard = [await peer.hear() for _ in range(2 if urgent else 1)]
        if urgent:
            await peer.answer(heard[1], urgent)
        for _ in range(5):
            await asyncio.sleep(0)
        assert call.outstanding == {1}
        arrivals = await asyncio.wait_for(call.wait(FOREVER_S), PATIENCE_S)
        assert [each.tag for each in arrivals] == [2]
        assert await call.wait(SHORT_S) == [], "what was told once must not wake again"


async def test_wait_for_the_first_returns_with_any_answer(gatherer: Gatherer, peer: Peer) -> None:
    with gatherer.call() as call:
        for tag in (1, 2, 3):
            await call.send(tag, f"peer.{tag}", b"q")
        messages = [await peer.hear() for _ in range(3)]
        waiting = asyncio.create_task(call.wait(FOREVER_S, first=True))
        await asyncio.sleep(0)
        await peer.answer(messages[1], b"second is first")
        assert seen(await asyncio.wait_for(waiting, PATIENCE_S)) == [(2, b"second is first", None)]
        await peer.answer(messages[0], b"came before the wait")
        for _ in range(5):
            await asyncio.sleep(0)
        early = await asyncio.wait_for(call.wait(FOREVER_S, first=True), PATIENCE_S)
        assert seen(early) == [(1, b"came before the wait", None)]
        assert call.outstanding == {3}


async def test_timeout_returns_what_came_and_the_rest_may_still_come(gatherer: Gatherer, peer: Peer) -> None:
    with gatherer.call() as call:
        await call.send(1, "peer.1", b"q")
        await call.send(2, "peer.2", b"q")
        first, second = await peer.hear(), await peer.hear()
        await peer.answer(first, b"here")
        assert seen(await call.wait(SHORT_S)) == [(1, b"here", None)]
        assert await call.wait(SHORT_S) == []
        await peer.answer(second, b"late but counted")
        assert seen(await asyncio.wait_for(call.wait(FOREVER_S), PATIENCE_S)) == [(2, b"late but counted", None)]
    assert gatherer.late == 0


async def test_answer_after_the_call_ended_is_counted_and_dropped(gatherer: Gatherer, peer: Peer) -> None:
    with gatherer.call() as call:
        await call.send(1, "peer.1", b"q")
        message = await peer.hear()
    await peer.answer(message, b"too late")
    with gatherer.call() as after:
        await after.send(1, "peer.1", b"q")
        await peer.answer(await peer.hear(), b"mine")
        assert seen(await asyncio.wait_for(after.wait(FOREVER_S), PATIENCE_S)) == [(1, b"mine", None)]
    assert gatherer.late == 1


async def test_second_answer_to_one_message_is_dropped(gatherer: Gatherer, peer: Peer) -> None:
    with gatherer.call() as call:
        await call.send(1, "peer.1", b"q")
        await call.send(2, "peer.2", b"q")
        first, second = await peer.hear(), await peer.hear()
        for data in (b"first word", b"!second word"):
            await peer.answer(first, data)
        await peer.answer(second, b"other")
        arrivals = await asyncio.wait_for(call.wait(FOREVER_S), PATIENCE_S)
    assert seen(arrivals) == [(1, b"first word", None), (2, b"other", None)]


async def test_lost_connection_ends_everything_that_is_out(gatherer: Gatherer, peer: Peer, asker: MemoryBus) -> None:
    with gatherer.call() as call, gatherer.call() as other:
        for tag in (3, 1, 2):
            await call.send(tag, f"peer.{tag}", b"q")
        await other.send(9, "peer.9", b"q")
        await peer.answer(await peer.hear(), b"in time")
        waiting = asyncio.create_task(call.wait(FOREVER_S))
        for _ in range(5):
            await asyncio.sleep(0)
        await asker.close()
        arrivals = await asyncio.wait_for(waiting, PATIENCE_S)
        assert seen(arrivals) == [(3, b"in time", None), (1, b"", Loss.DISCONNECTED), (2, b"", Loss.DISCONNECTED)]
        assert seen(await other.wait(FOREVER_S)) == [(9, b"", Loss.DISCONNECTED)]
        with pytest.raises(ServerUnreachable):
            await call.send(4, "peer.4", b"q")


async def test_stop_ends_calls_that_wait(gatherer: Gatherer, peer: Peer) -> None:
    with gatherer.call() as call:
        await call.send(1, "peer.1", b"q")
        waiting = asyncio.create_task(call.wait(FOREVER_S))
        await peer.hear()
        await gatherer.stop()
        assert seen(await asyncio.wait_for(waiting, PATIENCE_S)) == [(1, b"", Loss.DISCONNECTED)]


async def test_message_on_a_tag_that_is_no_number_hurts_nobody(
    gatherer: Gatherer, peer: Peer, asked: MemoryBus
) -> None:
    with gatherer.call() as call:
        await call.send(1, "peer.1", b"q")
        message = await peer.hear()
        await asked.publish(message.reply.rsplit(".", 1)[0] + ".evil", b"!x")
        await asked.publish(message.reply.rsplit(".", 2)[0] + ".evil.1", b"!x")
        await peer.answer(message, b"fine")
        assert seen(await asyncio.wait_for(call.wait(FOREVER_S), PATIENCE_S)) == [(1, b"fine", None)]


async def test_calls_side_by_side_get_their_own_answers(gatherer: Gatherer, peer: Peer) -> None:
    calls = [gatherer.call() for _ in range(20)]
    for number, call in enumerate(calls):
        await call.send(1, "peer.x", b"%d" % number)
    messages = [await peer.hear() for _ in calls]
    for message in reversed(messages):
        await peer.answer(message, message.data)
    answers = [seen(await asyncio.wait_for(call.wait(FOREVER_S), PATIENCE_S)) for call in calls]
    assert answers == [[(1, b"%d" % number, None)] for number in range(20)]
    for call in calls:
        call.close()
