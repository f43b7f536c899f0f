"""Answering: every question gets one answer or one typed refusal, and no question stops the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.protocol import Message
from sawyer.bus.service import Service
from sawyer.errors import NoAnswer, NobodyServes, SawyerError, UnknownModel
from sawyer.schemas.messages import ErrorBody

SUBJECT = "questions"
PATIENCE_S = 10.0

Start = Callable[..., Awaitable[Service]]


def refuse(error: SawyerError) -> bytes:
    return ErrorBody.of(error).canonical()


def refusal(raw: bytes) -> tuple[str, str]:
    body = ErrorBody.parse(raw)
    return body.code, body.message


class Desk:
    """Answers when the test lets it, by the first word of the question."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.at_work: asyncio.Queue[bytes] = asyncio.Queue()

    async def answer(self, message: Message) -> bytes | None:
        self.at_work.put_nowait(message.data)
        await self.open.wait()
        match message.data.split()[0]:
            case b"unknown":
                raise UnknownModel("no such model", hint="Look again.")
            case b"crash":
                raise ZeroDivisionError("secret internals")
            case b"self":
                return None
        return b"answer to " + message.data


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
async def start(asked: MemoryBus, desk: Desk) -> AsyncIterator[Start]:
    running: list[Service] = []

    async def started(limit: int = 8, workers: int = 1, **more: Any) -> Service:
        service = Service(asked, SUBJECT, desk.answer, refuse, limit=limit, workers=workers, **more)
        await service.start()
        running.append(service)
        return service

    yield started
    desk.open.set()
    for service in running:
        await service.stop()


async def ask(bus: MemoryBus, question: bytes) -> bytes:
    return await bus.request(SUBJECT, question, PATIENCE_S)


async def test_question_is_answered(start: Start, asker: MemoryBus) -> None:
    await start()
    assert await ask(asker, b"one") == b"answer to one"


async def test_typed_error_is_answered_with_its_code_and_hint(start: Start, asker: MemoryBus) -> None:
    await start()
    body = ErrorBody.parse(await ask(asker, b"unknown"))
    assert (body.code, body.message, body.hint) == ("unknown_model", "no such model", "Look again.")


async def test_crash_is_answered_without_its_secrets_and_the_next_is_served(
    start: Start, asker: MemoryBus, caplog: pytest.LogCaptureFixture
) -> None:
    await start()
    code, message = refusal(await ask(asker, b"crash"))
    assert code == "failed"
    assert "ZeroDivisionError" in message
    assert "secret" not in message
    assert "secret internals" in caplog.text
    assert await ask(asker, b"next") == b"answer to next"


async def test_full_queue_refuses_at_once_and_keeps_what_it_took(start: Start, asker: MemoryBus, desk: Desk) -> None:
    await start(limit=2)
    desk.open.clear()
    first = asyncio.create_task(ask(asker, b"0"))
    assert await asyncio.wait_for(desk.at_work.get(), PATIENCE_S) == b"0"
    others = [asyncio.create_task(ask(asker, b"%d" % number)) for number in range(1, 5)]
    done, waiting = await asyncio.wait(others[2:], timeout=PATIENCE_S)
    assert not waiting
    assert [refusal(task.result())[0] for task in done] == ["busy", "busy"]
    desk.open.set()
    kept = await asyncio.wait_for(asyncio.gather(first, *others[:2]), PATIENCE_S)
    assert kept == [b"answer to %d" % number for number in range(3)]


async def test_workers_answer_side_by_side(start: Start, asker: MemoryBus, desk: Desk) -> None:
    await start(workers=3)
    desk.open.clear()
    tasks = [asyncio.create_task(ask(asker, b"%d" % number)) for number in range(4)]
    at_work = [await asyncio.wait_for(desk.at_work.get(), PATIENCE_S) for _ in range(3)]
    assert at_work == [b"0", b"1", b"2"]
    assert desk.at_work.empty()
    desk.open.set()
    assert await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S) == [b"answer to %d" % n for n in range(4)]


async def test_stop_answers_what_it_took_and_takes_no_more(start: Start, asker: MemoryBus, desk: Desk) -> None:
    service = await start()
    desk.open.clear()
    taken = [asyncio.create_task(ask(asker, b"%d" % number)) for number in range(3)]
    await asyncio.wait_for(desk.at_work.get(), PATIENCE_S)
    stopping = asyncio.create_task(service.stop())
    for _ in range(5):
        await asyncio.sleep(0)
    with pytest.raises(NobodyServes):
        await ask(asker, b"after the end")
    assert not stopping.done()
    desk.open.set()
    assert await asyncio.wait_for(asyncio.gather(*taken), PATIENCE_S) == [b"answer to %d" % n for n in range(3)]
    await asyncio.wait_for(stopping, PATIENCE_S)


async def test_stop_answers_what_was_sent_before_it(start: Start, asker: MemoryBus) -> None:
    service = await start()
    sent = asyncio.create_task(ask(asker, b"just before"))
    await asyncio.sleep(0)
    await asyncio.wait_for(service.stop(), PATIENCE_S)
    assert await asyncio.wait_for(sent, PATIENCE_S) == b"answer to just before"


async def test_stop_with_little_patience_ends_what_does_not(start: Start, asker: MemoryBus, desk: Desk) -> None:
    service = await start()
    desk.open.clear()
    stuck = asyncio.create_task(asker.request(SUBJECT, b"stuck", 0.1))
    await asyncio.wait_for(desk.at_work.get(), PATIENCE_S)
    await asyncio.wait_for(service.stop(patience_s=0.02), PATIENCE_S)
    with pytest.raises(NoAnswer):
        await stuck


async def test_message_over_the_limit_is_refused_and_the_next_is_served(
    asked: MemoryBus, asker: MemoryBus, desk: Desk
) -> None:
    service = Service(asked, SUBJECT, desk.answer, refuse, limit=8, max_bytes=10)
    await service.start()
    assert refusal(await ask(asker, b"x" * 11))[0] == "malformed_message"
    assert await ask(asker, b"x" * 10) == b"answer to xxxxxxxxxx"
    assert desk.at_work.qsize() == 1
    await service.stop()


async def test_stop_before_start_and_twice_is_quiet(start: Start, asked: MemoryBus, desk: Desk) -> None:
    await Service(asked, "never.started", desk.answer, refuse, limit=1).stop()
    service = await start()
    await service.stop()
    await service.stop()


async def test_message_that_wants_no_answer_gets_none(start: Start, asker: MemoryBus, desk: Desk) -> None:
    await start()
    heard: list[Message] = []
    await asker.subscribe(">", heard.append)
    for question in (b"plain", b"unknown", b"crash", b"self"):
        await asker.publish(SUBJECT, question)
    assert await ask(asker, b"last") == b"answer to last"
    assert [message.data for message in heard if message.subject != SUBJECT] == [b"answer to last"]


async def test_answer_that_replies_itself_is_not_replied_to_again(start: Start, asker: MemoryBus) -> None:
    await start()
    replies: list[Message] = []
    await asker.subscribe("inbox", replies.append)
    await asker.publish(SUBJECT, b"self", "inbox")
    assert await ask(asker, b"fence") == b"answer to fence"
    assert replies == []


async def test_asker_who_cannot_be_reached_stops_nothing(start: Start, asker: MemoryBus, asked: MemoryBus) -> None:
    service = await start()
    await asker.publish(SUBJECT, b"one", "inbox")
    await asked.close()
    await asyncio.wait_for(service.stop(), PATIENCE_S)


@pytest.mark.parametrize("reply", ["sawyer.v1.rollcall", "sawyer.v1.cancel.x", "$JS.API.STREAM.DELETE.X"])
async def test_question_that_wants_its_answer_at_a_program_or_the_server_gets_none(
    start: Start, network: MemoryNetwork, asker: MemoryBus, reply: str
) -> None:
    service = await start(limit=1)
    heard: asyncio.Queue[Message] = asyncio.Queue()
    await asker.subscribe(reply, heard.put_nowait)
    for body in (b"unknown", b"fine", bytes(2 * 1024 * 1024), b"one too many"):
        await asker.publish(SUBJECT, body, reply)
    assert await asker.request(SUBJECT, b"fine", PATIENCE_S) == b"answer to fine"
    assert heard.empty()
    assert service.counts.requests == 1


async def test_message_that_the_service_does_not_hear_is_dropped(start: Start, asker: MemoryBus) -> None:
    service = await start(hears=lambda message: message.data != b"deaf")
    await asker.publish(SUBJECT, b"deaf", "somewhere")
    assert await asker.request(SUBJECT, b"fine", PATIENCE_S) == b"answer to fine"
    assert (service.counts.requests, service.waiting) == (1, 0)


async def test_stop_that_is_cancelled_leaves_no_worker(start: Start, asker: MemoryBus, desk: Desk) -> None:
    before = asyncio.all_tasks()
    service = await start(workers=3)
    desk.open.clear()
    asking = asyncio.create_task(ask(asker, b"0"))
    await desk.at_work.get()
    joining, join = asyncio.Event(), service._waiting.join

    async def join_and_tell() -> None:
        joining.set()
        await join()

    service._waiting.join = join_and_tell  # type: ignore[method-assign]
    stopping = asyncio.create_task(service.stop())
    await joining.wait()
    stopping.cancel()
    asking.cancel()
    await asyncio.wait({stopping, asking})
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
