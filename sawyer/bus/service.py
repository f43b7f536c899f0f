"""Answering: a bounded queue between the bus and the work. The handler only enqueues; a full queue is a refusal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Final

from sawyer.bus.protocol import Bus, Message, Subscription
from sawyer.errors import Busy, MalformedMessage, SawyerError

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES: Final = 1024 * 1024
NEVER_ANSWERED: Final = ("sawyer.", "$")
"""A question that wants its answer there would speak with our permissions: to other programs, or to the server."""

WAITED_US: Final[ContextVar[int]] = ContextVar("waited_us", default=0)
"""While a message is answered: how long it had waited in its service's queue."""

Answer = Callable[[Message], Awaitable[bytes | None]]
"""The work: the bytes of the reply, or None if it replies itself (or nobody asked)."""
Refuse = Callable[[SawyerError], bytes]
"""A typed error as the bytes of this subject's reply."""


@dataclass(slots=True)
class Counts:
    """What came of the messages of a subject. `busy_ns` is the time that answering took, `last_error` the last
    refusal."""

    requests: int = 0
    errors: int = 0
    busy_ns: int = 0
    last_error: str = ""


class Service:
    """Serves a subject (or some) with `workers` tasks over a queue of at most `limit` messages of at most
    `max_bytes`; beyond the limit the answer is `busy()`. What `hears` does not want, and a question that must not be
    answered (NEVER_ANSWERED), is dropped without a word."""

    def __init__(
        self,
        bus: Bus,
        subject: str | Sequence[str],
        answer: Answer,
        refuse: Refuse,
        *,
        limit: int,
        workers: int = 1,
        queue: str = "",
        max_bytes: int = MAX_MESSAGE_BYTES,
        hears: Callable[[Message], bool] = lambda _: True,
        busy: Callable[[], SawyerError] | None = None,
    ) -> None:
        self._bus = bus
        self.subjects = (subject,) if isinstance(subject, str) else tuple(subject)
        self._answer = answer
        self._refuse = refuse
        self.queue_group = queue
        self.counts = Counts()
        self._waiting: asyncio.Queue[tuple[Message, int]] = asyncio.Queue(maxsize=limit)
        self._worker_count = workers
        self._max_bytes = max_bytes
        self._hears = hears
        self._busy = busy or self._full
        self._tasks: list[asyncio.Task[None]] = []
        self._refusals: set[asyncio.Task[None]] = set()
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Serve from now on."""
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._worker_count)]
        for subject in self.subjects:
            self._subscriptions.append(await self._bus.subscribe(subject, self._enqueue, self.queue_group))

    async def stop(self, patience_s: float | None = None) -> None:
        """Takes no more, finishes what is queued (for so long at most, then cancels it), ends. Cancelled meanwhile, it
        finishes nothing more."""
        try:
            await asyncio.gather(*(each.drain() for each in self._subscriptions))
            if self._subscriptions:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience_s):
                        await self._waiting.join()
        finally:
            for task in self._tasks:
                task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @property
    def waiting(self) -> int:
        """Messages that no worker has taken yet."""
        return self._waiting.qsize()

    def _enqueue(self, message: Message) -> None:
        if message.reply.startswith(NEVER_ANSWERED) or not self._hears(message):
            return
        try:
            if len(message.data) > self._max_bytes:
                raise MalformedMessage(f"a message of {len(message.data)} bytes, at most {self._max_bytes} are taken")
            self._waiting.put_nowait((message, perf_counter_ns()))
        except asyncio.QueueFull:
            self._refuse_soon(message, self._busy())
        except MalformedMessage as error:
            self._refuse_soon(message, error)

    def _full(self) -> SawyerError:
        return Busy(f"{self._waiting.maxsize} messages are waiting already")

    def _refuse_soon(self, message: Message, error: SawyerError) -> None:
        self.counts.requests += 1
        self._count_error(error)
        task = asyncio.get_running_loop().create_task(self._reply(message, self._refuse(error)))
        self._refusals.add(task)
        task.add_done_callback(self._refusals.discard)

    async def _work(self) -> None:
        while True:
            message, arrived_ns = await self._waiting.get()
            WAITED_US.set((perf_counter_ns() - arrived_ns) // 1000)
            try:
                await self._serve(message)
            finally:
                self._waiting.task_done()

    async def _serve(self, message: Message) -> None:
        started_ns = perf_counter_ns()
        try:
            reply = await self._answer(message)
        except SawyerError as error:
            reply = self._refuse(error)
            self._count_error(error)
        except Exception as error:
            log.exception("answering %s failed", message.subject)
            internal = SawyerError(f"internal error ({type(error).__name__}); the log has more")
            reply = self._refuse(internal)
            self._count_error(internal)
        self.counts.requests += 1
        self.counts.busy_ns += perf_counter_ns() - started_ns
        if reply is not None:
            await self._reply(message, reply)

    def _count_error(self, error: SawyerError) -> None:
        self.counts.errors += 1
        self.counts.last_error = str(error)

    async def _reply(self, message: Message, data: bytes) -> None:
        if not message.reply:
            return
        try:
            await self._bus.publish(message.reply, data)
        except SawyerError as error:
            log.warning("cannot answer %s: %s", message.subject, error)
