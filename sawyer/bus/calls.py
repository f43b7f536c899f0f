"""Asking: one typed question, one typed answer or a typed error."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, TypeVar

from pydantic import ValidationError

from sawyer.bus.protocol import Bus, Message
from sawyer.errors import MalformedMessage, NoAnswer, NobodyServes, SawyerError, UnreachableError
from sawyer.schemas import subjects
from sawyer.schemas.base import UNREADABLE, Strict, first_problem
from sawyer.schemas.events import command_word
from sawyer.schemas.messages import EntryRef, ErrorBody, LedgerCommand, LedgerReply, QueryError
from sawyer.schemas.texts import decoder_of

ASK_TIMEOUT_S: Final = 5.0
RECORD_FIRST_S: Final = 1.0
"""A writer that was killed took the command along: it is sent again soon, then after twice as long, and so on."""
RECORD_TIMEOUT_S: Final = 5.0
RECORD_PATIENCE_S: Final = 10.0
RECORD_PAUSE_S: Final = 0.2
SURVEY_WINDOW_S: Final = 0.25
SURVEY_LIMIT: Final = 256

ReplyT = TypeVar("ReplyT", bound=Strict | LedgerReply)
StrictT = TypeVar("StrictT", bound=Strict)


def read(kind: type[ReplyT], raw: bytes) -> ReplyT:
    """A message of this kind. Raises MalformedMessage naming the first field that is wrong."""
    try:
        if issubclass(kind, Strict):
            return kind.model_validate_json(raw)
        found: ReplyT = decoder_of(kind).decode(raw)
        return found
    except UNREADABLE as error:
        raise MalformedMessage(f"not a valid {kind.__name__}: {error}") from error
    except ValidationError as error:
        raise MalformedMessage(f"not a valid {kind.__name__}: {first_problem(error)}") from error


async def ask(
    bus: Bus, what: str, reply: type[ReplyT], question: Strict | None = None, *, timeout_s: float = ASK_TIMEOUT_S
) -> ReplyT:
    """A query to the bookkeeper. Raises the typed error it answers with, NobodyServes, NoAnswer."""
    return await ask_at(bus, subjects.query(what), reply, question, timeout_s)


async def ask_at(bus: Bus, subject: str, reply: type[ReplyT], question: Strict | None, timeout_s: float) -> ReplyT:
    """A question that is answered with `reply`, or with a typed error, which is raised. Also NobodyServes, NoAnswer."""
    raw = await bus.request(subject, question.canonical() if question else b"", timeout_s)
    try:
        refused = QueryError.model_validate_json(raw)
    except ValidationError:
        return read(reply, raw)
    raise refused.error.to_error()


async def survey(
    bus: Bus, what: str, reply: type[StrictT], question: Strict | None = None, *, window_s: float = SURVEY_WINDOW_S
) -> list[StrictT]:
    """A query that several programs answer: what came until nothing more came for `window_s`; at most SURVEY_LIMIT.
    Answers that are not of this kind are left out. Raises NobodyServes if nobody listens, NoAnswer if nobody answers
    within ASK_TIMEOUT_S."""
    arrived: asyncio.Queue[Message] = asyncio.Queue(SURVEY_LIMIT)
    inbox, subject = bus.new_inbox(), subjects.query(what)

    def take(message: Message) -> None:
        if not arrived.full():
            arrived.put_nowait(message)

    subscription = await bus.subscribe(inbox, take)
    found: list[StrictT] = []
    answers = 0
    try:
        await bus.publish(subject, question.canonical() if question else b"", inbox)
        while answers < SURVEY_LIMIT:
            async with asyncio.timeout(window_s if answers else ASK_TIMEOUT_S):
                message = await arrived.get()
            if message.no_responders:
                raise NobodyServes(f"nobody listens on {subject}")
            answers += 1
            with contextlib.suppress(ValidationError):
                found.append(reply.model_validate_json(message.data))
    except TimeoutError:
        if not answers:
            raise NoAnswer(f"no answer on {subject} within {ASK_TIMEOUT_S:g} s") from None
    finally:
        await subscription.unsubscribe()
    return found


def refuse_query(error: SawyerError) -> bytes:
    """A typed error as the answer to a query."""
    return QueryError(error=ErrorBody.of(error)).canonical()


async def record(bus: Bus, command: LedgerCommand, *, patience_s: float | None = None) -> EntryRef:
    """Have the ledger record a signed fact; returns after the durable commit. While no answer comes it is sent again,
    for `patience_s` (RECORD_PATIENCE_S); that is safe: the same command is answered with the same entry. Raises the
    typed refusal, or NoAnswer, NobodyServes."""
    subject, data = subjects.ledger(command_word(command.kind)), command.canonical()
    now_s = asyncio.get_running_loop().time
    until_s = now_s() + (RECORD_PATIENCE_S if patience_s is None else patience_s)
    timeout_s = RECORD_FIRST_S
    while True:
        try:
            return _entry(read(LedgerReply, await bus.request(subject, data, timeout_s)))
        except UnreachableError:
            timeout_s = min(RECORD_TIMEOUT_S, 2 * timeout_s)
            if now_s() + RECORD_PAUSE_S >= until_s:
                raise
            await asyncio.sleep(RECORD_PAUSE_S)


def _entry(reply: LedgerReply) -> EntryRef:
    if reply.error is not None:
        raise reply.error.to_error()
    if reply.entry is None:
        raise MalformedMessage("the bookkeeper answered with neither an entry nor an error")
    return reply.entry
