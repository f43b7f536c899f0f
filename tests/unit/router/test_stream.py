"""A request's answer is numbered, kept, and the same for whoever asks again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.protocol import Message
from sawyer.errors import RequestConflict, ServerUnreachable, UnknownModel
from sawyer.ids import RequestId
from sawyer.router import stream
from sawyer.router.stream import AnswerStream, AnswerStreams, Event
from sawyer.schemas.messages import Accepted, Delta, Done, ErrorBody, Failed, InferMessage, Usage

CONTENT = ("alice", "austen", "ab" * 32)
USAGE = Usage(
    input_tokens=1, output_tokens=1, billed_tokens=2, entry=9, nodes=(), takeovers=(), prefill_us=1, decode_us=1
)

Listen = Callable[[str], Awaitable[list[Event]]]


def request(number: int) -> RequestId:
    return RequestId(f"{number:032x}")


def accepted(n: int = 0) -> Accepted:
    return Accepted(n=n, router="router-1", input_tokens=1, held_tokens=2)


def delta(n: int) -> Delta:
    return Delta(n=n, text=f"piece {n}", ids=(n,))


def done(n: int) -> Done:
    return Done(n=n, finish="length", usage=USAGE)


def failed(n: int) -> Failed:
    return Failed(n=n, error=ErrorBody.of(UnknownModel("no")))


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus(MemoryNetwork())


@pytest.fixture
def listen(bus: MemoryBus) -> Listen:
    """The events that arrive on an inbox."""

    async def start(inbox: str) -> list[Event]:
        heard: list[Event] = []

        def take(message: Message) -> None:
            heard.append(InferMessage.parse(message.data).e)

        await bus.subscribe(inbox, take)
        return heard

    return start


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def answer() -> AnswerStream:
    return AnswerStream(request(1), CONTENT, ["first"])


async def test_events_are_numbered_and_go_to_all_listeners(
    answer: AnswerStream, bus: MemoryBus, listen: Listen
) -> None:
    first, second = await listen("first"), await listen("second")
    await answer.send(bus, accepted(answer.next_n))
    await answer.attach(bus, "second")
    await answer.send(bus, delta(answer.next_n))
    await settle()
    assert first == [accepted(), delta(1)]
    assert second == [accepted().model_copy(update={"repeated": True}), delta(1)]


async def test_attach_replays_and_then_continues_in_order_while_events_come(
    answer: AnswerStream, bus: MemoryBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The late listener's replay is slow; meanwhile the router goes on. It must miss nothing and hear nothing twice."""
    for event in (accepted(), delta(1)):
        await answer.send(bus, event)
    heard: list[int] = []

    class SlowBus:
        async def publish(self, inbox: str, data: bytes, reply: str = "") -> None:
            await asyncio.sleep(0)
            if inbox == "late":
                heard.append(InferMessage.parse(data).e.n)

    slow = SlowBus()
    attaching = asyncio.create_task(answer.attach(slow, "late"))  # type: ignore[arg-type]
    for n in range(2, 8):
        await answer.send(slow, delta(n))  # type: ignore[arg-type]
    await attaching
    await answer.send(slow, done(8))  # type: ignore[arg-type]
    assert heard == list(range(9))


async def test_attach_to_an_ended_stream_replays_it_whole_and_listens_no_more(
    answer: AnswerStream, bus: MemoryBus, listen: Listen
) -> None:
    heard = await listen("second")
    for event in (accepted(), delta(1), done(2)):
        await answer.send(bus, event)
    assert answer.ended
    await answer.attach(bus, "second")
    await settle()
    assert heard == [accepted().model_copy(update={"repeated": True}), delta(1), done(2)]
    assert answer.listeners == ["first"]


@pytest.mark.parametrize(
    ("event", "ended"), [(accepted(), False), (delta(0), False), (done(0), True), (failed(0), True)]
)
async def test_stream_ends_with_done_or_failed(answer: AnswerStream, bus: MemoryBus, event: Event, ended: bool) -> None:
    await answer.send(bus, event)
    assert answer.ended is ended


async def test_listener_that_cannot_be_reached_is_dropped_and_the_others_hear(answer: AnswerStream) -> None:
    heard: list[str] = []

    class HalfBroken:
        async def publish(self, inbox: str, data: bytes, reply: str = "") -> None:
            if inbox == "first":
                raise ServerUnreachable("gone")
            heard.append(inbox)

    answer.listeners.append("second")
    for event in (accepted(), delta(1)):
        await answer.send(HalfBroken(), event)  # type: ignore[arg-type]
    assert (heard, answer.listeners) == (["second", "second"], ["second"])
    assert answer.next_n == 2, "kept for a resend"


def test_streams_find_what_was_opened_and_nothing_else() -> None:
    streams = AnswerStreams()
    opened = streams.open(request(1), CONTENT, "inbox")
    assert opened.listeners == ["inbox"]
    assert streams.find(request(1), CONTENT) is opened
    assert streams.find(request(2), CONTENT) is None


@pytest.mark.parametrize("at", range(3))
def test_same_request_with_other_content_is_a_conflict(at: int) -> None:
    streams = AnswerStreams()
    streams.open(request(1), CONTENT, "inbox")
    other = (*CONTENT[:at], "other", *CONTENT[at + 1 :])
    with pytest.raises(RequestConflict, match=request(1)):
        streams.find(request(1), other)


def test_forgotten_request_may_be_sent_again_with_other_content() -> None:
    streams = AnswerStreams()
    streams.open(request(1), CONTENT, "inbox")
    streams.forget(request(1))
    streams.forget(request(1))
    assert streams.find(request(1), ("bob", "austen", "cd" * 32)) is None


def test_oldest_ended_requests_are_forgotten_first_and_running_ones_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_KEPT_REQUESTS", 3)
    streams = AnswerStreams()
    made = [streams.open(request(number), CONTENT, "inbox") for number in range(3)]
    made[1].ended = made[2].ended = True
    streams.open(request(3), CONTENT, "inbox")
    kept = [number for number in range(4) if streams.find(request(number), CONTENT)]
    assert kept == [0, 2, 3]
    streams.open(request(4), CONTENT, "inbox")
    streams.open(request(5), CONTENT, "inbox")
    assert [number for number in range(6) if streams.find(request(number), CONTENT)] == [0, 3, 4, 5], "all run"


async def test_ended_answers_are_forgotten_over_their_bytes_the_oldest_first(
    bus: MemoryBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = AnswerStreams()
    made = [streams.open(request(number), CONTENT, "inbox") for number in range(4)]
    for each in made:
        await each.send(bus, delta(0))
    size = made[0].kept_bytes
    assert size == len(made[0].messages[0])
    monkeypatch.setattr(stream, "MAX_KEPT_BYTES", 2 * size)
    streams.trim()
    assert [number for number in range(4) if streams.find(request(number), CONTENT)] == [0, 1, 2, 3], "all run"
    made[1].ended = made[2].ended = made[3].ended = True
    streams.trim()
    assert [number for number in range(4) if streams.find(request(number), CONTENT)] == [0, 2, 3]
    monkeypatch.setattr(stream, "MAX_KEPT_BYTES", size - 1)
    streams.trim()
    assert [number for number in range(4) if streams.find(request(number), CONTENT)] == [0]
