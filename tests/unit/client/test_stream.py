"""A running generation as the client sees it: in order, without gaps, nothing twice, and told when it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.client.stream import RESENDS, HostedStream, TextStream, TokenLogprob
from sawyer.errors import (
    AlreadyCompleted,
    BudgetTooSmall,
    Busy,
    ExpertUnavailable,
    MalformedMessage,
    NoAnswer,
    NobodyServes,
    SawyerError,
)
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.ids import ModelId
from sawyer.schemas.base import Fact
from sawyer.schemas.events import REQUEST_KIND
from sawyer.schemas.generation import GenerateParams
from sawyer.schemas.messages import InferRequest, Logprob, Trace

MODEL = ModelId("austen")
REQUEST = "0f" * 16
SHORT_S = 0.02
PATIENCE_S = 10.0

Open = Callable[..., TextStream]
Settle = Callable[[], Awaitable[None]]


@pytest.fixture
def request_(keys: dict[str, Key], event_examples: dict[str, Fact]) -> InferRequest:
    order = sign(event_examples[REQUEST_KIND], REQUEST_KIND, "alice", keys["alice"])
    return InferRequest(order=order, params=GenerateParams(prompt="Emma was", max_tokens=3), salt="5a" * 32)


@pytest.fixture
def open_stream(memory: MemoryNetwork, request_: InferRequest) -> Open:
    return lambda timeout_s=PATIENCE_S: HostedStream(MemoryBus(memory), MODEL, request_, timeout_s)


async def read(stream: TextStream) -> list[str]:
    return [piece async for piece in stream]


async def test_text_comes_in_pieces_and_the_bill_at_the_end(
    router: Any, say: Any, open_stream: Open, request_: InferRequest
) -> None:
    router.script = lambda _: [say.accepted(), say.trace(1), say.delta(2, "It "), say.delta(3, "was"), say.done(4)]
    async with open_stream() as stream:
        assert await asyncio.wait_for(read(stream), PATIENCE_S) == ["It ", "was"]
    assert (stream.ids, stream.finish, stream.usage) == ([2, 3], "length", say.usage)
    assert stream.accepted == say.accepted()
    assert stream.traces == [say.trace(1)]
    assert not stream.repeated
    assert [message.data for message in router.requests] == [request_.canonical()]


async def test_result_joins_the_text(router: Any, say: Any, open_stream: Open) -> None:
    router.script = lambda _: [
        say.accepted(repeated=True),
        say.delta(1, "It "),
        say.delta(2, "was"),
        say.done(3, "stop"),
    ]
    async with open_stream() as stream:
        answer = await asyncio.wait_for(stream.result(), PATIENCE_S)
    assert (answer.request, answer.text, answer.ids, answer.finish) == (REQUEST, "It was", (1, 2), "stop")
    assert (answer.usage, answer.repeated) == (say.usage, True)


async def test_delta_without_text_counts_its_ids_and_gives_no_piece(router: Any, say: Any, open_stream: Open) -> None:
    half = say.delta(1).model_copy(update={"text": "", "ids": (7, 8)})
    router.script = lambda _: [say.accepted(), half, say.delta(2, "é"), say.done(3)]
    async with open_stream() as stream:
        assert await asyncio.wait_for(read(stream), PATIENCE_S) == ["é"]
    assert stream.ids == [7, 8, 2]


async def test_logprobs_are_told_one_an_id_as_natural_logarithms(router: Any, say: Any, open_stream: Open) -> None:
    told = [
        Logprob(token=1, surprise_micro=0, top=()),
        Logprob(token=2, surprise_micro=1_500_000, top=((9, 500_000), (2, 1_500_000))),
    ]
    deltas = [say.delta(n).model_copy(update={"logprobs": (told[n - 1],)}) for n in (1, 2)]
    router.script = lambda _: [say.accepted(), *deltas, say.done(3)]
    async with open_stream() as stream:
        answer = await asyncio.wait_for(stream.result(), PATIENCE_S)
    assert answer.logprobs == (TokenLogprob(1, 0.0, ()), TokenLogprob(2, -1.5, ((9, -0.5), (2, -1.5))))
    assert tuple(each.token for each in answer.logprobs) == answer.ids


async def test_gap_makes_the_client_ask_again_and_nothing_is_given_twice(
    router: Any, say: Any, open_stream: Open
) -> None:
    whole = [say.accepted(), say.delta(1), say.delta(2), say.delta(3), say.done(4)]
    router.script = lambda attempt: [*whole[:2], whole[3]] if attempt == 0 else whole
    async with open_stream() as stream:
        assert await asyncio.wait_for(read(stream), PATIENCE_S) == ["<1>", "<2>", "<3>"]
    assert stream.ids == [1, 2, 3]
    first, second = router.requests
    assert first.data == second.data, "the same request, so that it is never billed twice"
    assert first.reply != second.reply, "a fresh inbox: the rest of the first answer no longer counts"


async def test_silence_makes_the_client_ask_again(router: Any, say: Any, open_stream: Open) -> None:
    whole = [say.accepted(), say.delta(1), say.done(2)]
    router.script = lambda attempt: whole[: attempt + 1] if attempt < RESENDS else whole
    async with open_stream(SHORT_S) as stream:
        assert await asyncio.wait_for(read(stream), PATIENCE_S) == ["<1>"]
    assert len(router.requests) == 1 + RESENDS


async def test_silence_to_the_end_is_no_answer_and_names_the_request(
    router: Any, say: Any, open_stream: Open, settle: Settle
) -> None:
    stream = open_stream(SHORT_S)
    with pytest.raises(NoAnswer, match=REQUEST):
        async with stream:
            await read(stream)
    assert len(router.requests) == 1 + RESENDS
    assert len({message.data for message in router.requests}) == 1


async def test_gaps_to_the_end_are_no_answer(router: Any, say: Any, open_stream: Open) -> None:
    router.script = lambda _: [say.accepted(), say.delta(2)]
    with pytest.raises(NoAnswer, match="lost"):
        async with open_stream() as stream:
            await asyncio.wait_for(read(stream), PATIENCE_S)
    assert len(router.requests) == 1 + RESENDS


async def test_duplicates_are_ignored(router: Any, say: Any, open_stream: Open) -> None:
    one, two = say.delta(1), say.delta(2)
    router.script = lambda _: [say.accepted(), say.accepted(), one, one, say.accepted(), two, one, two, say.done(3)]
    async with open_stream() as stream:
        assert await asyncio.wait_for(read(stream), PATIENCE_S) == ["<1>", "<2>"]
    assert stream.ids == [1, 2]
    assert len(router.requests) == 1


async def test_late_message_of_an_earlier_attempt_does_not_count(
    memory: MemoryNetwork, router: Any, say: Any, open_stream: Open
) -> None:
    """The first attempt's inbox is left: what still comes there must not mix into the second answer."""
    before = len(memory.listeners)
    whole = [say.accepted(), say.delta(1), say.done(2)]
    router.script = lambda attempt: [] if attempt == 0 else whole[:2]
    async with open_stream(SHORT_S) as stream:
        pieces = aiter(stream)
        assert await asyncio.wait_for(anext(pieces), PATIENCE_S) == "<1>"
        old, new = router.requests[0].reply, router.requests[-1].reply
        assert old != new
        assert len(memory.listeners) == before + 1
        await router.send(old, say.failed(2, Busy("of the first attempt")))
        await router.send(new, whole[2])
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(pieces), PATIENCE_S)
    assert stream.usage == say.usage


FAILURES = [
    BudgetTooSmall("8 tokens asked, 7 left"),
    ExpertUnavailable("layer 2: no answer", experts=((2, 1), (2, 3))),
    AlreadyCompleted("before", details={"entry": "9", "billed_tokens": "5", "note": "not a number"}),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.code)
async def test_failed_raises_the_typed_error_after_the_text_so_far(
    router: Any, say: Any, open_stream: Open, failure: SawyerError
) -> None:
    router.script = lambda _: [say.accepted(), say.delta(1), say.failed(2, failure)]
    async with open_stream() as stream:
        pieces = aiter(stream)
        assert await asyncio.wait_for(anext(pieces), PATIENCE_S) == "<1>"
        with pytest.raises(type(failure)) as error:
            await asyncio.wait_for(anext(pieces), PATIENCE_S)
    assert (error.value.message, error.value.details) == (failure.message, failure.details)
    if isinstance(error.value, ExpertUnavailable):
        assert error.value.experts == ((2, 1), (2, 3))


async def test_refusal_at_any_number_is_heard(router: Any, say: Any, open_stream: Open) -> None:
    """A router that never took the request (its queue is full) numbers its refusal 0, also on a resend."""
    router.script = lambda attempt: [say.accepted(), say.delta(1)] if attempt == 0 else [say.failed(0, Busy("full"))]
    with pytest.raises(Busy):
        async with open_stream(SHORT_S) as stream:
            await asyncio.wait_for(read(stream), PATIENCE_S)


async def test_router_that_is_away_for_a_moment_is_asked_again_after_pauses_that_grow(
    router: Any, say: Any, open_stream: Open, settle: Settle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the NATS server comes back, the client is often there before the router."""
    whole = [say.accepted(), say.delta(1), say.delta(2), say.delta(3), say.done(4)]
    router.script = lambda attempt: [] if attempt == 0 else whole
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            await router.start()

    async with open_stream() as stream:
        await settle()
        monkeypatch.setattr("sawyer.client.stream.asyncio.sleep", pause)
        pieces = aiter(stream)
        await router.listening.unsubscribe()
        await router.send(router.requests[0].reply, *whole[:2], whole[3])  # one was lost
        assert [await asyncio.wait_for(anext(pieces), PATIENCE_S) for _ in range(3)] == ["<1>", "<2>", "<3>"]
    assert pauses == [0.05, 0.1, 0.2]


@pytest.mark.parametrize("heard", [0, 2, 3])
async def test_what_was_lost_with_the_connection_is_asked_again_at_once_not_after_the_usual_silence(
    router: Any, say: Any, open_stream: Open, monkeypatch: pytest.MonkeyPatch, heard: int
) -> None:
    """The request itself, a piece of text, or the bill."""
    whole = [say.accepted(), say.delta(1), say.delta(2), say.done(3)]
    router.script = lambda attempt: whole if attempt else whole[:heard]
    monkeypatch.setattr("sawyer.client.stream.FIRST_HUSH_S", SHORT_S)
    async with open_stream() as stream:
        stream._bus.settling = True
        assert (await asyncio.wait_for(stream.result(), PATIENCE_S)).text == "<1><2>"
    assert len(router.requests) == 2


async def test_router_that_is_silent_while_connections_come_back_is_asked_less_and_less_often(
    router: Any, open_stream: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    router.script = lambda _: []
    monkeypatch.setattr("sawyer.client.stream.FIRST_HUSH_S", SHORT_S)
    async with open_stream(16 * SHORT_S) as stream:
        stream._bus.settling = True
        with pytest.raises(NoAnswer):
            await asyncio.wait_for(stream.result(), PATIENCE_S)
    assert len(router.requests) == 1 + 4 + RESENDS, "after 1, 2, 4, 8 silences, and then as ever"


async def test_nobody_serving_is_told_at_once_and_names_the_model(memory: MemoryNetwork, open_stream: Open) -> None:
    with pytest.raises(NobodyServes, match="austen"):
        async with open_stream() as stream:
            await asyncio.wait_for(read(stream), PATIENCE_S)


async def test_router_that_is_not_back_yet_after_the_server_is_waited_for_by_a_new_request_too(
    router: Any, say: Any, open_stream: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    router.script = lambda _: [say.accepted(), say.delta(1), say.done(2)]
    await router.listening.unsubscribe()

    async def pause(_: float) -> None:
        await router.start()

    async with open_stream() as stream:
        stream._bus.settling = True
        monkeypatch.setattr("sawyer.client.stream.asyncio.sleep", pause)
        assert (await asyncio.wait_for(stream.result(), PATIENCE_S)).text == "<1>"


@pytest.mark.parametrize(
    "raw", [b"", b"garbage", b'{"e":{"event":"unknown","n":0}}', b'{"e":{"event":"delta","n":-1}}']
)
async def test_message_that_is_no_event_is_a_typed_error(router: Any, open_stream: Open, raw: bytes) -> None:
    router.script = lambda _: [raw]
    with pytest.raises(MalformedMessage, match="InferMessage"):
        async with open_stream() as stream:
            await asyncio.wait_for(read(stream), PATIENCE_S)


async def test_leaving_early_cancels(router: Any, say: Any, open_stream: Open, settle: Settle) -> None:
    router.script = lambda _: [say.accepted(), say.delta(1), say.delta(2)]
    async with open_stream() as stream:
        async for _ in stream:
            break
    await settle()
    assert router.cancelled == [REQUEST]


async def test_leaving_by_an_error_of_the_caller_cancels(
    router: Any, say: Any, open_stream: Open, settle: Settle
) -> None:
    router.script = lambda _: [say.accepted(), say.delta(1)]

    async def fail_while_reading() -> None:
        async with open_stream() as stream:
            async for _ in stream:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_while_reading()
    await settle()
    assert router.cancelled == [REQUEST]


@pytest.mark.parametrize("ending", ["done", "failed"])
async def test_stream_that_ended_is_not_cancelled(
    router: Any, say: Any, open_stream: Open, settle: Settle, ending: str
) -> None:
    last = say.done(1) if ending == "done" else say.failed(1, Busy("full"))
    router.script = lambda _: [say.accepted(), last]
    try:
        async with open_stream() as stream:
            await asyncio.wait_for(read(stream), PATIENCE_S)
    except Busy:
        assert ending == "failed"
    await settle()
    assert router.cancelled == []


async def test_cancel_goes_on_to_the_bill(router: Any, say: Any, open_stream: Open, settle: Settle) -> None:
    router.script = lambda _: [say.accepted(), say.delta(1)]
    async with open_stream() as stream:
        pieces = aiter(stream)
        await asyncio.wait_for(anext(pieces), PATIENCE_S)
        await stream.cancel()
        await settle()
        assert router.cancelled == [REQUEST]
        await router.send(router.requests[0].reply, say.delta(2), say.done(3, "cancelled"))
        assert await asyncio.wait_for(stream.result(), PATIENCE_S) is not None
    assert (stream.finish, stream.ids) == ("cancelled", [1, 2])
    assert router.cancelled == [REQUEST], "the end of the block says nothing more"


async def test_inbox_is_left_at_the_end(memory: MemoryNetwork, router: Any, say: Any, open_stream: Open) -> None:
    router.script = lambda _: [say.accepted(), say.done(1)]
    before = len(memory.listeners)
    async with open_stream() as stream:
        await asyncio.wait_for(read(stream), PATIENCE_S)
        assert len(memory.listeners) == before + 1
    assert len(memory.listeners) == before


async def test_leaving_when_the_connection_is_gone_is_quiet(router: Any, open_stream: Open) -> None:
    async with open_stream() as stream:
        await stream._bus.close()


async def test_traces_can_be_told_as_they_come(router: Any, say: Any, open_stream: Open) -> None:
    router.script = lambda _: [say.accepted(), say.trace(1), say.done(2)]
    told: list[Trace] = []
    async with open_stream() as stream:
        stream.on_trace = told.append
        await asyncio.wait_for(read(stream), PATIENCE_S)
    assert (told, stream.traces) == ([say.trace(1)], [])
