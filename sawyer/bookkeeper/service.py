"""Commands off the bus -> the one writer. The handler enqueues, verifiers check signatures beside the loop
(verifying.py), one writer task commits what is ready as one transaction and answers all of it (group_commit.py). Owns
no rule: those are in ledger/."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from sawyer.bookkeeper.group_commit import QUEUE_LIMIT, GroupCommit
from sawyer.bookkeeper.verifying import JOB_COMMANDS, Verifiers
from sawyer.bookkeeper.witnessing import Witnessing
from sawyer.bus.calls import read, refuse_query
from sawyer.bus.discovery import BOOKKEEPER, About, Discovery, Endpoint
from sawyer.bus.protocol import Bus, Message, Subscription
from sawyer.bus.service import NEVER_ANSWERED, Service
from sawyer.clock import Clock
from sawyer.errors import Busy, MalformedMessage, SawyerError
from sawyer.ids import AccountId
from sawyer.ledger.book import Book
from sawyer.ledger.commands import VerifiedCommand
from sawyer.schemas import subjects
from sawyer.schemas.base import Strict
from sawyer.schemas.events import Body
from sawyer.schemas.messages import AccountQuery, BalanceQuery, LedgerReply, PublicationQuery, PublicationReply

MAX_COMMAND_BYTES: Final = 1024 * 1024
MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
JOBS: Final = 4
"""Jobs of verifying under way at once."""
QUERY_LIMIT: Final = 1024
EXPIRY_EVERY_S: Final = 1.0
BOOKKEEPER_ID: Final = "bookkeeper"

log = logging.getLogger(__name__)


class Bookkeeper:
    """Run it with `await run()`; it returns after `stop()`, or raises what made the book unusable. `committed` is
    called after each commit, when it is answered; `witnessing` keeps cosignatures (in memory by default)."""

    def __init__(
        self,
        bus: Bus,
        book: Book,
        clock: Clock,
        version: str = "0.0.0",
        committed: Callable[[], None] = lambda: None,
        witnessing: Witnessing | None = None,
        verifiers: Verifiers | None = None,
    ) -> None:
        self._verifiers = verifiers or Verifiers()
        self._witnessing = witnessing or Witnessing(book, clock)
        self._version = version
        self._bus = bus
        self._book = book
        self._clock = clock
        self._arrived: asyncio.Queue[Message] = asyncio.Queue(QUEUE_LIMIT)
        self._writer = GroupCommit(book, clock, committed)
        self._waiting_bytes = 0
        self._stopping = asyncio.Event()
        self._refusals: set[asyncio.Task[None]] = set()

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`. `started` is called when everything listens."""
        queries = {
            what: Service(self._bus, subjects.query(what), self._answering(answer), refuse_query, limit=QUERY_LIMIT)
            for what, answer in self._questions().items()
        }
        about = About(BOOKKEEPER, BOOKKEEPER_ID, self._version, self._clock.now_ms(), "the one writer of the book")
        found = Discovery(self._bus, about, [Endpoint.of(what, service) for what, service in queries.items()])
        services: list[Service | Discovery] = [*queries.values(), found]
        subscription = await self._bus.subscribe(subjects.all_ledger(), self._enqueue)
        for service in services:
            await service.start()
        await self._bus.flush()
        started()
        tasks = [asyncio.create_task(self._verify()) for _ in range(JOBS)]
        tasks += [asyncio.create_task(self._writer.run()), asyncio.create_task(self._expire())]
        try:
            await self._until_stopped(tasks, subscription)
        finally:
            for service in services:
                await service.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def stop(self) -> None:
        """Take no more commands, commit and answer what has arrived, end."""
        self._stopping.set()

    async def _until_stopped(self, tasks: list[asyncio.Task[None]], subscription: Subscription) -> None:
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            done, _ = await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        await subscription.drain()
        for task in done - {stopping}:
            task.result()  # a writer that ended has an error to tell
        settled = asyncio.ensure_future(self._settled())
        await asyncio.wait({settled, *(task for task in tasks if not task.done())}, return_when=asyncio.FIRST_COMPLETED)
        settled.cancel()

    async def _settled(self) -> None:
        """Returns when every command that arrived is answered."""
        await self._arrived.join()
        await self._writer.settled()

    def _enqueue(self, message: Message) -> None:
        if message.reply.startswith(NEVER_ANSWERED):
            return
        if len(message.data) > MAX_COMMAND_BYTES:
            self._refuse_soon(message, MalformedMessage(f"a command is at most {MAX_COMMAND_BYTES} bytes"))
            return
        try:
            if self._waiting_bytes > MAX_WAITING_BYTES:
                raise asyncio.QueueFull
            self._arrived.put_nowait(message)
            self._waiting_bytes += len(message.data)
        except asyncio.QueueFull:
            self._refuse_soon(message, Busy("so many commands are waiting already that this one has no room"))

    def _refuse_soon(self, message: Message, error: SawyerError) -> None:
        task = asyncio.get_running_loop().create_task(self._reply(message.reply, LedgerReply.refused(error)))
        self._refusals.add(task)
        task.add_done_callback(self._refusals.discard)

    async def _verify(self) -> None:
        while True:
            job = [await self._arrived.get()]
            while len(job) < JOB_COMMANDS and not self._arrived.empty():
                job.append(self._arrived.get_nowait())
            try:
                await self._hand_over(job)
            finally:
                for message in job:
                    self._waiting_bytes -= len(message.data)
                    self._arrived.task_done()

    async def _hand_over(self, job: list[Message]) -> None:
        """What verifies goes to the writer, what does not is answered."""
        try:
            found = await self._verifiers.verify([message.data for message in job])
        except SawyerError as error:
            found = [error for _ in job]
        for message, verified in zip(job, found, strict=True):
            if isinstance(verified, SawyerError):
                await self._reply(message.reply, LedgerReply.refused(verified))
            else:
                await self._writer.put(verified, functools.partial(self._told, verified, message.reply))

    async def _told(self, verified: VerifiedCommand, to: str, reply: LedgerReply) -> None:
        if log.isEnabledFor(logging.INFO):
            what = f"entry {reply.entry.seq}" if reply.entry is not None else f"refused: {reply.error}"
            log.info("%s: %s", verified.kind, what, extra={"request": _request_of(verified.body)})
        await self._reply(to, reply)

    async def _expire(self) -> None:
        """What is due is ended once a second, and the views catch up."""
        while True:
            for command in await asyncio.to_thread(self._book.expire, self._clock.now_ms()):
                await self._writer.put(command, functools.partial(self._reply, ""))
            await asyncio.to_thread(self._book.catch_up)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXPIRY_EVERY_S):
                    await self._stopping.wait()
                return

    async def _reply(self, to: str, reply: LedgerReply) -> None:
        if not to:
            return
        try:
            await self._bus.publish(to, reply.canonical())
        except SawyerError as error:
            log.warning("cannot answer %s: %s", to, error)

    def _questions(self) -> dict[str, Callable[[bytes], Strict]]:
        return {
            "network": lambda _: self._book.network(self._clock.now_ms()),
            "members": lambda _: self._book.members(),
            "account": lambda raw: self._book.account(AccountId(read(AccountQuery, raw).account), self._clock.now_ms()),
            "tree": self._witnessing.tree,
            "cosign": self._witnessing.cosign,
            "publication": self._publication,
            "balance": lambda raw: self._book.balance(AccountId(read(BalanceQuery, raw).account), self._clock.now_ms()),
        }

    def _publication(self, raw: bytes) -> PublicationReply:
        query = read(PublicationQuery, raw)
        return self._book.publication(query.model, query.manifest)

    def _answering(self, answer: Callable[[bytes], Strict]) -> Callable[[Message], Awaitable[bytes]]:
        async def serve(message: Message) -> bytes:
            reply = await asyncio.to_thread(answer, message.data)  # waits for a commit under way, off the event loop
            return reply.canonical()

        return serve


def _request_of(body: Body) -> str:
    """The id of the request that this fact is about; "" if it is about none."""
    request = getattr(body, "request", "")
    return request if isinstance(request, str) else str(request.body.request)
