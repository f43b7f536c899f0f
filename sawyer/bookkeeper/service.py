"""Commands off the bus -> the one writer. The handler enqueues, verifiers check signatures in threads, one writer task
commits what is ready as one transaction and answers all of it (group commit). Owns no rule: those are in ledger/."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from sawyer.bus.calls import read, refuse_query
from sawyer.bus.discovery import BOOKKEEPER, About, Discovery, Endpoint
from sawyer.bus.protocol import Bus, Message, Subscription
from sawyer.bus.service import Service
from sawyer.clock import Clock
from sawyer.errors import Busy, MalformedMessage, SawyerError
from sawyer.ids import AccountId
from sawyer.ledger.book import Book
from sawyer.ledger.commands import VerifiedCommand
from sawyer.schemas import subjects
from sawyer.schemas.base import Strict
from sawyer.schemas.messages import AccountQuery, BalanceQuery, ErrorBody, LedgerCommand, LedgerReply

QUEUE_LIMIT: Final = 1024
MAX_COMMAND_BYTES: Final = 1024 * 1024
BATCH_LIMIT: Final = 256
VERIFIERS: Final = 4
QUERY_LIMIT: Final = 1024
EXPIRY_EVERY_S: Final = 1.0
BOOKKEEPER_ID: Final = "bookkeeper"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Verified:
    command: VerifiedCommand
    reply_to: str


class Bookkeeper:
    """Run it with `await run()`; it returns after `stop()`, or raises what made the book unusable."""

    def __init__(self, bus: Bus, book: Book, clock: Clock, version: str = "0.0.0") -> None:
        self._version = version
        self._bus = bus
        self._book = book
        self._clock = clock
        self._arrived: asyncio.Queue[Message] = asyncio.Queue(QUEUE_LIMIT)
        self._ready: asyncio.Queue[_Verified] = asyncio.Queue(QUEUE_LIMIT)
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
        tasks = [asyncio.create_task(self._verify()) for _ in range(VERIFIERS)]
        tasks += [asyncio.create_task(self._write()), asyncio.create_task(self._expire())]
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
        done, _ = await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
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
        await self._ready.join()

    def _enqueue(self, message: Message) -> None:
        if len(message.data) > MAX_COMMAND_BYTES:
            self._refuse_soon(message, MalformedMessage(f"a command is at most {MAX_COMMAND_BYTES} bytes"))
            return
        try:
            self._arrived.put_nowait(message)
        except asyncio.QueueFull:
            self._refuse_soon(message, Busy(f"{QUEUE_LIMIT} commands are waiting already"))

    def _refuse_soon(self, message: Message, error: SawyerError) -> None:
        task = asyncio.get_running_loop().create_task(self._reply(message.reply, _refusal(error)))
        self._refusals.add(task)
        task.add_done_callback(self._refusals.discard)

    async def _verify(self) -> None:
        while True:
            message = await self._arrived.get()
            try:
                verified = await asyncio.to_thread(self._read, message.data)
                await self._ready.put(_Verified(verified, message.reply))
            except SawyerError as error:
                await self._reply(message.reply, _refusal(error))
            finally:
                self._arrived.task_done()

    def _read(self, raw: bytes) -> VerifiedCommand:
        return self._book.verify(read(LedgerCommand, raw))

    async def _write(self) -> None:
        while True:
            batch = [await self._ready.get()]
            while len(batch) < BATCH_LIMIT and not self._ready.empty():
                batch.append(self._ready.get_nowait())
            try:
                await self._commit(batch)
            finally:
                for _ in batch:
                    self._ready.task_done()

    async def _commit(self, batch: list[_Verified]) -> None:
        commands = [item.command for item in batch]
        try:
            replies = await asyncio.to_thread(self._book.commit, commands, self._clock.now_ms())
        except SawyerError as error:
            for item in batch:
                await self._reply(item.reply_to, _refusal(error))
            raise
        for item, reply in zip(batch, replies, strict=True):
            await self._reply(item.reply_to, reply)

    async def _expire(self) -> None:
        while True:
            for command in await asyncio.to_thread(self._book.expire, self._clock.now_ms()):
                await self._ready.put(_Verified(command, ""))
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
            "balance": lambda raw: self._book.balance(AccountId(read(BalanceQuery, raw).account), self._clock.now_ms()),
        }

    def _answering(self, answer: Callable[[bytes], Strict]) -> Callable[[Message], Awaitable[bytes]]:
        async def serve(message: Message) -> bytes:
            reply = await asyncio.to_thread(answer, message.data)  # waits for a commit under way, off the event loop
            return reply.canonical()

        return serve


def _refusal(error: SawyerError) -> LedgerReply:
    return LedgerReply(error=ErrorBody.of(error))
