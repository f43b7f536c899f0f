"""The writer's queue: what waits is committed together, nothing is lost, and who finds it full waits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from sawyer.bookkeeper import group_commit
from sawyer.bookkeeper.group_commit import GroupCommit
from sawyer.clock import ManualClock
from sawyer.errors import SawyerError
from sawyer.ledger.commands import VerifiedCommand
from sawyer.schemas.messages import LedgerReply


class Writer:
    """In place of a book: remembers what was committed at once, and may be told to fail."""

    def __init__(self) -> None:
        self.batches: list[list[object]] = []
        self.fails = False

    def commit(self, commands: Sequence[object], now_ms: int) -> list[LedgerReply]:
        del now_ms
        if self.fails:
            raise SawyerError("the disk is full")
        self.batches.append(list(commands))
        return [LedgerReply(repeated=True) for _ in commands]


class Answers:
    """Who asked, and what they were told, in the order of the answers."""

    def __init__(self) -> None:
        self.told: list[tuple[int, LedgerReply]] = []

    async def put(self, queue: GroupCommit, number: int) -> None:
        async def answer(reply: LedgerReply) -> None:
            self.told.append((number, reply))

        await queue.put(command(number), answer)


def command(number: int) -> VerifiedCommand:
    return number  # type: ignore[return-value]


@pytest.fixture
def book() -> Writer:
    return Writer()


@pytest.fixture
def queue(book: Writer) -> GroupCommit:
    return GroupCommit(book, ManualClock(0))  # type: ignore[arg-type]


async def test_what_waits_is_committed_at_once_and_answered_in_order_up_to_the_limit_of_a_batch(
    book: Writer, queue: GroupCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "BATCH_LIMIT", 4)
    answers = Answers()
    for number in range(10):
        await answers.put(queue, number)
    running = asyncio.create_task(queue.run())
    await queue.settled()
    running.cancel()
    assert book.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [number for number, _ in answers.told] == list(range(10))


async def test_command_that_finds_the_queue_full_waits_and_is_committed_when_there_is_room(
    book: Writer, queue: GroupCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "QUEUE_LIMIT", 2)
    answers = Answers()
    putting = [asyncio.create_task(answers.put(queue, number)) for number in range(7)]
    done, waiting = await asyncio.wait(putting, timeout=0)
    while len(done) < 2:
        done, waiting = await asyncio.wait(putting, timeout=0)
    assert len(waiting) == 5
    running = asyncio.create_task(queue.run())
    await asyncio.gather(*putting)
    await queue.settled()
    running.cancel()
    assert sorted(number for batch in book.batches for number in batch) == list(range(7))
    assert max(map(len, book.batches)) <= 2


async def test_nothing_to_settle_is_settled(queue: GroupCommit) -> None:
    await queue.settled()


async def test_failed_commit_is_told_to_everybody_in_it_and_ends_the_writer(book: Writer, queue: GroupCommit) -> None:
    book.fails = True
    answers = Answers()
    for number in range(3):
        await answers.put(queue, number)
    with pytest.raises(SawyerError, match="the disk is full"):
        await queue.run()
    assert [number for number, _ in answers.told] == [0, 1, 2]
    assert all(reply.error and "could not be written" in reply.error.message for _, reply in answers.told)
    await queue.settled()
