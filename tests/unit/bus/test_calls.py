"""Asking: typed answers, typed errors, and a command that is sent again until it is answered or nobody can."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from sawyer.bus import calls
from sawyer.bus.calls import ask, read, record
from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.protocol import Message
from sawyer.errors import BudgetTooSmall, MalformedMessage, NoAnswer, NobodyServes, UnknownAccount
from sawyer.identity.keys import Key
from sawyer.ledger.commands import command
from sawyer.schemas.base import Fact
from sawyer.schemas.events import KINDS, Decided, command_word
from sawyer.schemas.messages import (
    BalanceQuery,
    BalanceReply,
    EntryRef,
    ErrorBody,
    LedgerCommand,
    LedgerReply,
    QueryError,
)

SHORT_S = 0.02
PATIENCE_S = 10.0
BALANCE = BalanceReply(account="alice", available=7, held=1, consumed=2, expired=0, granted=10, seq=5)
ENTRY = EntryRef(seq=6, leaf="ab" * 32, kind="account.opened.v1", ts_ms=1, decided=Decided())

Script = Callable[[int, bytes], bytes | None]
"""(how many came before, the question) -> the answer, or silence."""


class Bookkeeper:
    """Answers by a script, and remembers what it was asked."""

    def __init__(self, bus: MemoryBus, script: Script) -> None:
        self.questions: list[tuple[str, bytes]] = []
        self._bus = bus
        self._script = script
        self._tasks: set[asyncio.Task[None]] = set()

    def hear(self, message: Message) -> None:
        answer = self._script(len(self.questions), message.data)
        self.questions.append((message.subject, message.data))
        if answer is not None:
            self._tasks.add(asyncio.create_task(self._bus.publish(message.reply, answer)))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "RECORD_PAUSE_S", 0.0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt waits a moment only."""
    monkeypatch.setattr(calls, "RECORD_FIRST_S", SHORT_S)
    monkeypatch.setattr(calls, "RECORD_TIMEOUT_S", SHORT_S)


@pytest.fixture
async def bookkeeper(asked: MemoryBus) -> Callable[[Script], Bookkeeper]:
    bookkeepers: list[Bookkeeper] = []

    def to_the_last(message: Message) -> None:
        bookkeepers[-1].hear(message)

    await asked.subscribe("sawyer.v1.*.*", to_the_last)

    def hire(script: Script) -> Bookkeeper:
        bookkeepers.append(Bookkeeper(asked, script))
        return bookkeepers[-1]

    return hire


@pytest.fixture
def opening(keys: dict[str, Key], event_examples: dict[str, Fact]) -> LedgerCommand:
    body = event_examples["account.opened.v1"]
    return command(body, "alice", keys["alice"])  # type: ignore[arg-type]


async def test_ask_sends_the_question_and_returns_the_typed_answer(bookkeeper, asker: MemoryBus) -> None:
    desk = bookkeeper(lambda n, _: BALANCE.canonical())
    question = BalanceQuery(account="alice")
    assert await ask(asker, "balance", BalanceReply, question) == BALANCE
    assert desk.questions == [("sawyer.v1.query.balance", question.canonical())]


async def test_ask_raises_the_typed_error_it_is_answered_with(bookkeeper, asker: MemoryBus) -> None:
    refused = QueryError(error=ErrorBody.of(UnknownAccount("no account bob", details={"account": "bob"})))
    bookkeeper(lambda n, _: refused.canonical())
    with pytest.raises(UnknownAccount, match="no account bob") as error:
        await ask(asker, "balance", BalanceReply)
    assert error.value.details == {"account": "bob"}


@pytest.mark.parametrize(
    "answer", [b"", b"\xff", b"null", b"[]", b'{"account":"alice"}', BALANCE.canonical().replace(b"7", b'"7"')]
)
async def test_ask_raises_malformed_for_an_answer_of_another_shape(bookkeeper, asker: MemoryBus, answer: bytes) -> None:
    bookkeeper(lambda n, _: answer)
    with pytest.raises(MalformedMessage, match="BalanceReply"):
        await ask(asker, "balance", BalanceReply)


async def test_ask_says_when_nobody_serves_and_when_nobody_answers(bookkeeper, asker: MemoryBus) -> None:
    with pytest.raises(NobodyServes):
        await ask(MemoryBus(MemoryNetwork()), "balance", BalanceReply)
    bookkeeper(lambda n, _: None)
    with pytest.raises(NoAnswer):
        await ask(asker, "balance", BalanceReply, timeout_s=SHORT_S)


async def test_record_returns_the_entry(bookkeeper, asker: MemoryBus, opening: LedgerCommand) -> None:
    desk = bookkeeper(lambda n, _: LedgerReply(entry=ENTRY, repeated=False).canonical())
    assert await record(asker, opening) == ENTRY
    assert desk.questions == [("sawyer.v1.ledger.account-opened", opening.canonical())]


async def test_record_sends_the_same_bytes_again_until_it_is_answered(
    bookkeeper, asker: MemoryBus, opening: LedgerCommand, impatient: None
) -> None:
    desk = bookkeeper(lambda n, _: LedgerReply(entry=ENTRY, repeated=True).canonical() if n == 2 else None)
    assert await record(asker, opening, patience_s=PATIENCE_S) == ENTRY
    assert [data for _, data in desk.questions] == [opening.canonical()] * 3


async def test_record_gives_up_when_its_patience_ends(
    bookkeeper, asker: MemoryBus, opening: LedgerCommand, impatient: None
) -> None:
    desk = bookkeeper(lambda n, _: None)
    with pytest.raises(NoAnswer):
        await record(asker, opening, patience_s=3 * SHORT_S)
    assert 1 < len(desk.questions) <= 4
    with pytest.raises(NoAnswer):
        await record(asker, opening, patience_s=0)


async def test_record_says_when_no_bookkeeper_runs(opening: LedgerCommand) -> None:
    with pytest.raises(NobodyServes):
        await record(MemoryBus(MemoryNetwork()), opening, patience_s=0)


async def test_record_waits_for_a_bookkeeper_that_starts_late(
    asker: MemoryBus, asked: MemoryBus, opening: LedgerCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt finds nobody; during the pause a bookkeeper comes."""

    async def pause(_: float) -> None:
        desk = Bookkeeper(asked, lambda n, _: LedgerReply(entry=ENTRY, repeated=False).canonical())
        await asked.subscribe("sawyer.v1.ledger.*", desk.hear)

    monkeypatch.setattr(calls.asyncio, "sleep", pause)
    assert await asyncio.wait_for(record(asker, opening), PATIENCE_S) == ENTRY


async def test_record_does_not_repeat_what_was_refused(bookkeeper, asker: MemoryBus, opening: LedgerCommand) -> None:
    refused = LedgerReply.refused(BudgetTooSmall("8 tokens asked, 7 left"))
    desk = bookkeeper(lambda n, _: refused.canonical())
    with pytest.raises(BudgetTooSmall, match="7 left"):
        await record(asker, opening)
    assert len(desk.questions) == 1


@pytest.mark.parametrize("answer", [LedgerReply(repeated=False).canonical(), b"", b"{", b'{"entry":{}}'])
async def test_record_raises_malformed_for_an_answer_that_says_nothing(
    bookkeeper, asker: MemoryBus, opening: LedgerCommand, answer: bytes
) -> None:
    desk = bookkeeper(lambda n, _: answer)
    with pytest.raises(MalformedMessage):
        await record(asker, opening)
    assert len(desk.questions) == 1


def test_read_names_the_field_that_is_wrong() -> None:
    with pytest.raises(MalformedMessage, match=r"BalanceReply: held: .*greater than or equal to 0"):
        read(BalanceReply, BALANCE.canonical().replace(b'"held":1', b'"held":-1'))


def test_command_words_are_distinct_subject_tokens() -> None:
    words = {kind: command_word(kind) for kind in KINDS}
    assert words["tokens.reserved.v1"] == "tokens-reserved"
    assert len(set(words.values())) == len(KINDS)
    assert all("." not in word for word in words.values())
