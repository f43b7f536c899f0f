"""The bus in one process, for tests: the same contract as NATS, no sockets. A `MemoryNetwork` is the server, each
`MemoryBus` one participant. Order per sender is kept, delivery happens on later turns of the event loop on which the
listener subscribed; participants may live in several threads, each with its own loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from sawyer.bus.protocol import MAX_PAYLOAD_BYTES, Handler, Message, Subscription
from sawyer.errors import NoAnswer, NobodyServes, ServerUnreachable, UsageError

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Listener:
    network: MemoryNetwork
    pattern: tuple[str, ...]
    handler: Handler
    queue: str
    loop: asyncio.AbstractEventLoop

    async def drain(self) -> None:
        await asyncio.sleep(0)
        await self.unsubscribe()

    async def unsubscribe(self) -> None:
        with self.network.lock:
            if self in self.network.listeners:
                self.network.listeners.remove(self)


@dataclass
class MemoryNetwork:
    """Routes by subject, with `*`, `>` and queue groups (members take turns)."""

    listeners: list[_Listener] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while `listeners` is read or changed."""
    _turns: Iterator[int] = field(default_factory=itertools.count)

    def route(self, message: Message) -> None:
        """Hand the message to everyone who listens; tell the sender if that is nobody."""
        with self.lock:
            listening = [each for each in self.listeners if not each.loop.is_closed()]
        matching = [each for each in listening if matches(each.pattern, message.subject)]
        chosen = [each for each in matching if not each.queue]
        for group in sorted({each.queue for each in matching if each.queue}):
            members = [each for each in matching if each.queue == group]
            chosen.append(members[next(self._turns) % len(members)])
        here = asyncio.get_running_loop()
        for each in chosen:
            soon = here.call_soon if each.loop is here else each.loop.call_soon_threadsafe
            with contextlib.suppress(RuntimeError):  # its loop was closed just now: it is gone
                soon(self._deliver, each, message)
        if not chosen and message.reply:
            self.route(Message(message.reply, b"", "", no_responders=True))

    def _deliver(self, listener: _Listener, message: Message) -> None:
        with self.lock:
            if listener not in self.listeners:
                return
        try:
            listener.handler(message)
        except Exception:
            log.exception("handler of %s failed; the message is dropped", ".".join(listener.pattern))


class MemoryBus:
    """One participant of a MemoryNetwork."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network
        self._mine: list[_Listener] = []
        self._inboxes = itertools.count()
        self._on_disconnect: list[Callable[[], None]] = []
        self._closed = False
        self.settling = False

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        if self._closed:
            raise ServerUnreachable("cannot send: the connection is closed")
        if len(data) > MAX_PAYLOAD_BYTES:
            raise UsageError(f"a message of {len(data)} bytes is over the limit of {MAX_PAYLOAD_BYTES}")
        self._network.route(Message(subject, bytes(data), reply))

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Subscription:
        if self._closed:
            raise ServerUnreachable("cannot subscribe: the connection is closed")
        loop = asyncio.get_running_loop()
        listener = _Listener(self._network, tuple(subject.split(".")), handler, queue, loop)
        with self._network.lock:
            self._network.listeners.append(listener)
        self._mine.append(listener)
        return listener

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        inbox = self.new_inbox()
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def take(message: Message) -> None:
            if not answer.done():
                answer.set_result(message)

        listener = await self.subscribe(inbox, take)
        try:
            await self.publish(subject, data, inbox)
            async with asyncio.timeout(timeout_s):  # wait_for loses a cancel that comes with the answer (3.11)
                message = await answer
        except TimeoutError as error:
            raise NoAnswer(f"no answer on {subject} within {timeout_s:g} s") from error
        finally:
            await listener.unsubscribe()
        if message.no_responders:
            raise NobodyServes(f"nobody listens on {subject}")
        return message.data

    def new_inbox(self) -> str:
        return f"_INBOX.{id(self):x}.{next(self._inboxes)}"

    def on_disconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._on_disconnect.append(callback)
        return partial(self._on_disconnect.remove, callback)

    async def flush(self) -> None:
        await asyncio.sleep(0)

    async def close(self) -> None:
        """Also stands for a lost connection: whoever asked to be told is told."""
        if self._closed:
            return
        self._closed = True
        for listener in self._mine:
            await listener.unsubscribe()
        for callback in list(self._on_disconnect):
            callback()


def matches(pattern: tuple[str, ...], subject: str) -> bool:
    """NATS subject matching: `*` is one token, `>` one or more at the end."""
    tokens = subject.split(".")
    for at, want in enumerate(pattern):
        if want == ">":
            return len(tokens) > at
        if at >= len(tokens) or want not in ("*", tokens[at]):
            return False
    return len(tokens) == len(pattern)
