"""Answering: a bounded queue between the bus and the work. The handler only enqueues; a full queue is a refusal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from sawyer.bus.protocol import Bus, Message, Subscription
from sawyer.errors import Busy, MalformedMessage, SawyerError

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES: Final = 1024 * 1024

Answer = Callable[[Message], Awaitable[bytes | None]]
"""The work: the bytes of the reply, or None if it replies itself (or nobody asked)."""
Refuse = Callable[[SawyerError], bytes]
"""A typed error as the bytes of this subject's reply."""


class Service:
    """Serves one subject with `workers` tasks over a queue of at most `limit` messages of at most `max_bytes`."""

    def __init__(
        self,
        bus: Bus,
        subject: str,
        answer: Answer,
        refuse: Refuse,
        *,
        limit: int,
        workers: int = 1,
        queue: str = "",
        max_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._bus = bus
        self._subject = subject
        self._answer = answer
        self._refuse = refuse
        self._queue_group = queue
        self._waiting: asyncio.Queue[Message] = asyncio.Queue(maxsize=limit)
        self._worker_count = workers
        self._max_bytes = max_bytes
        self._tasks: list[asyncio.Task[None]] = []
        self._refusals: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._worker_count)]
        self._subscription = await self._bus.subscribe(self._subject, self._enqueue, self._queue_group)

    async def stop(self, patience_s: float | None = None) -> None:
        """Takes no more, finishes what is queued (for so long at most, then cancels it), ends."""
        if self._subscription is not None:
            await self._subscription.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._waiting.join()
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
        try:
            if len(message.data) > self._max_bytes:
                raise MalformedMessage(f"a message of {len(message.data)} bytes, at most {self._max_bytes} are taken")
            self._waiting.put_nowait(message)
        except asyncio.QueueFull:
            self._refuse_soon(message, Busy(f"{self._waiting.maxsize} messages are waiting already"))
        except MalformedMessage as error:
            self._refuse_soon(message, error)

    def _refuse_soon(self, message: Message, error: SawyerError) -> None:
        task = asyncio.get_running_loop().create_task(self._reply(message, self._refuse(error)))
        self._refusals.add(task)
        task.add_done_callback(self._refusals.discard)

    async def _work(self) -> None:
        while True:
            message = await self._waiting.get()
            try:
                await self._serve(message)
            finally:
                self._waiting.task_done()

    async def _serve(self, message: Message) -> None:
        try:
            reply = await self._answer(message)
        except SawyerError as error:
            reply = self._refuse(error)
        except Exception as error:
            log.exception("answering %s failed", message.subject)
            reply = self._refuse(SawyerError(f"internal error ({type(error).__name__}); the log has more"))
        if reply is not None:
            await self._reply(message, reply)

    async def _reply(self, message: Message, data: bytes) -> None:
        if not message.reply:
            return
        try:
            await self._bus.publish(message.reply, data)
        except SawyerError as error:
            log.warning("cannot answer %s: %s", message.subject, error)
