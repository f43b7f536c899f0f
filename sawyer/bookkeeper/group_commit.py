"""Verified commands -> one transaction for all that wait, then all their answers. Owns the one writer's queue and
turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from sawyer.clock import Clock
from sawyer.errors import SawyerError, UnreachableError
from sawyer.ledger.book import Book
from sawyer.ledger.commands import VerifiedCommand
from sawyer.schemas.messages import LedgerReply

QUEUE_LIMIT: Final = 1024
BATCH_LIMIT: Final = 256
Answer = Callable[[LedgerReply], Awaitable[None]]


class _Waiting(NamedTuple):
    command: VerifiedCommand
    answer: Answer


class GroupCommit:
    """Run it with `await run()`, which raises what made the book unusable, and is ended by cancelling it."""

    def __init__(self, book: Book, clock: Clock, committed: Callable[[], None] = lambda: None) -> None:
        """`committed` is called after each commit that was answered."""
        self._book = book
        self._clock = clock
        self._committed = committed
        self._waiting: deque[_Waiting] = deque()
        self._unanswered = 0
        self._arrived, self._room, self._settled = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._room.set()
        self._settled.set()

    async def put(self, command: VerifiedCommand, answer: Answer) -> None:
        """Have it committed; `answer` is awaited with the reply once that is durable. Waits while the queue is full."""
        while len(self._waiting) >= QUEUE_LIMIT:
            self._room.clear()
            await self._room.wait()
        self._waiting.append(_Waiting(command, answer))
        self._unanswered += 1
        self._settled.clear()
        self._arrived.set()

    async def run(self) -> None:
        """Commit for ever, as much at once as waits."""
        waiting = self._waiting
        while True:
            await self._arrived.wait()
            batch = [waiting.popleft() for _ in range(min(BATCH_LIMIT, len(waiting)))]
            if not waiting:
                self._arrived.clear()
            self._room.set()
            try:
                await self._commit(batch)
            finally:
                self._unanswered -= len(batch)
                if not self._unanswered:
                    self._settled.set()

    async def settled(self) -> None:
        """Returns when all that was put is answered."""
        await self._settled.wait()

    async def _commit(self, batch: list[_Waiting]) -> None:
        commands = [each.command for each in batch]
        try:
            replies = await asyncio.to_thread(self._book.commit, commands, self._clock.now_ms())
        except SawyerError as error:
            unknown = UnreachableError(
                f"the book could not be written: {error.message}",
                hint="It is not known whether this was recorded. Send it again: the same command is recorded once.",
            )
            for each in batch:
                await each.answer(LedgerReply.refused(unknown))
            raise
        for each, reply in zip(batch, replies, strict=True):
            await each.answer(reply)
        self._committed()
