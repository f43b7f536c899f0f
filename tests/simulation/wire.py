"""The bus in memory, with everything that may befall messages: late, lost, doubled, overtaken; and with connections
that break and come back, as NATS does it. All of it is drawn from one seed, and what arrives is in the transcript."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.protocol import SETTLE_S, Handler, Message, Subscription
from sawyer.errors import ServerUnreachable

DETOUR_S: Final = (0.001, 0.3)
"""What one takes more that others overtake."""
BACK_S: Final = (0.01, 0.8)
"""So long after the server its clients are back, one after the other."""
MOST_HELD: Final = 4096
"""Messages that a participant keeps while its connection is lost."""

log = logging.getLogger("sawyer.simulation")

Lie = Callable[[str, bytes], bytes]
"""What a participant says instead of its answer: inbox, answer -> bytes."""


@dataclass(frozen=True)
class Weather:
    """How likely it is that something befalls a message on its way to one listener."""

    lost: float = 0.0
    doubled: float = 0.0
    overtaken: float = 0.0

    @property
    def is_calm(self) -> bool:
        return not (self.lost or self.doubled or self.overtaken)


CALM: Final = Weather()


@dataclass
class Wire:
    """What joins the participants of one simulation. `way_s`: what a message takes that nothing befalls, from and to;
    `hears` is told every message that is sent: by whom, what."""

    drawn: random.Random
    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    weather: Weather = CALM
    way_s: tuple[float, float] = (0.0, 0.001)
    buses: list[FaultyBus] = field(default_factory=list)
    up: asyncio.Event = field(default_factory=asyncio.Event)
    lines: list[str] | None = None
    """The transcript in words, where somebody wants to read it."""
    hears: Callable[[str, Message], None] = lambda *_: None
    count: int = 0
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        self.up.set()

    @property
    def digest(self) -> str:
        """The SHA-256 of all that happened so far: equal for equal runs."""
        return self._digest.hexdigest()

    def tell(self, what: str, data: bytes = b"") -> None:
        """One more line of the transcript."""
        self.count += 1
        line = f"{asyncio.get_running_loop().time():.6f} {what} {hashlib.sha256(data).hexdigest()[:12]}"
        self._digest.update(line.encode())
        if self.lines is not None:
            self.lines.append(line)

    async def join(self, name: str) -> FaultyBus:
        """A connection of this participant, when the server is there."""
        await self.up.wait()
        made = FaultyBus(name, len(self.buses), self)
        self.buses.append(made)
        return made

    def fate(self) -> list[float]:
        """How long each copy of a message takes more than the usual way: none if it is lost."""
        weather, drawn = self.weather, self.drawn
        if weather.is_calm:
            return [0.0]
        if drawn.random() < weather.lost:
            return []
        copies = 2 if drawn.random() < weather.doubled else 1
        return [drawn.uniform(*DETOUR_S) if drawn.random() < weather.overtaken else 0.0 for _ in range(copies)]

    async def server_goes(self) -> None:
        """Every connection is lost, and nobody can connect."""
        self.up.clear()
        for bus in list(self.buses):
            await bus.lose()

    async def server_comes(self) -> None:
        """All come back, one after the other."""
        self.up.set()
        lost = [bus for bus in self.buses if not bus.connected]
        self.drawn.shuffle(lost)
        for bus in lost:
            await bus.come_back_in(self.drawn.uniform(*BACK_S))


class FaultyBus(MemoryBus):
    """One participant's connection. `mute`: nothing that it sends arrives; `slow_s`: it answers so much later; `lie`:
    it answers something else; `frozen`: it hears nothing until it thaws, and then all of it."""

    def __init__(self, name: str, number: int, wire: Wire) -> None:
        super().__init__(wire.network)
        self.name = name
        self._number = number
        self._inbox_count = 0
        self._wire = wire
        self._loop = asyncio.get_running_loop()
        self._standing: dict[_Standing, None] = {}
        self._held: list[tuple[str, bytes, str]] = []
        self._connection = 0
        self._last_s = 0.0
        self._returning: asyncio.TimerHandle | None = None
        self.connected = True
        self.mute = False
        self.slow_s = 0.0
        self.frozen_until_s = 0.0
        self.lie: Lie | None = None

    def new_inbox(self) -> str:
        self._inbox_count += 1
        return f"_INBOX.{self.name}.{self._number}.{self._inbox_count}"

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        if self._closed:
            raise ServerUnreachable("cannot send: the connection is closed")
        if not self.connected:
            if len(self._held) < MOST_HELD:
                self._held.append((subject, data, reply))
            return
        if self.mute:
            self._wire.tell(f"{self.name} mute {subject}", data)
            return
        if self.lie is not None and subject.startswith("_INBOX."):
            data = self.lie(subject, data)
        self._wire.hears(self.name, Message(subject, data, reply))
        if self.slow_s:
            connection = self._connection
            self._loop.call_later(self.slow_s, self._send_late, connection, Message(subject, bytes(data), reply))
            return
        await super().publish(subject, data, reply)

    def _send_late(self, connection: int, message: Message) -> None:
        if not self._closed and connection == self._connection:
            self._wire.network.route(message)

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Subscription:
        made = _Standing(self, subject, handler, queue)
        if self.connected:
            await made.listen()
        elif self._closed:
            raise ServerUnreachable("cannot subscribe: the connection is closed")
        self._standing[made] = None
        return made

    async def listen(self, subject: str, handler: Handler, queue: str) -> Subscription:
        """As a bus in memory does it."""
        return await super().subscribe(subject, handler, queue)

    def forget(self, standing: _Standing) -> None:
        self._standing.pop(standing, None)

    async def flush(self) -> None:
        if not self.connected:
            raise ServerUnreachable("the server does not answer: the connection is lost")
        await super().flush()

    async def close(self) -> None:
        self.connected = False
        self._connection += 1
        if self._returning is not None:
            self._returning.cancel()
        if self in self._wire.buses:
            self._wire.buses.remove(self)
        await super().close()

    async def lose(self) -> None:
        """The connection breaks: what is on its way here is lost, what is sent is kept."""
        if self._closed or not self.connected:
            return
        self._wire.tell(f"{self.name} loses its connection")
        self.connected, self.settling = False, True
        self._connection += 1
        for standing in self._standing:
            await standing.end()
        for callback in self._on_disconnect:
            callback()

    async def come_back_in(self, after_s: float) -> None:
        """The connection is there again then, unless it is ended before."""
        self._returning = self._loop.call_later(after_s, self._come_back)

    def _come_back(self) -> None:
        if self._closed or self.connected or not self._wire.up.is_set():
            return
        self._wire.tell(f"{self.name} is back")
        self.connected = True
        for standing in self._standing:
            _at_once(standing.listen())
        held, self._held = self._held, []
        for subject, data, reply in held:
            _at_once(self.publish(subject, data, reply))
        self._loop.call_later(SETTLE_S, self._settle, self._connection)

    def _settle(self, connection: int) -> None:
        if connection == self._connection:
            self.settling = False

    def arrive(self, standing: _Standing, message: Message) -> None:
        """A message that is for this participant sets out."""
        found = self._wire.fate()
        if not found:
            self._wire.tell(f"{self.name} misses {message.subject}", message.data)
        for detour_s in found:
            at_s = self._loop.time() + self._wire.drawn.uniform(*self._wire.way_s)
            if detour_s:
                at_s += detour_s
            else:  # one after the other, as they were sent
                at_s = self._last_s = max(at_s, math.nextafter(self._last_s, math.inf))
            standing.under_way += 1
            self._loop.call_at(at_s, self._hand_over, standing, message, self._connection)

    def _hand_over(self, standing: _Standing, message: Message, connection: int) -> None:
        if self._loop.time() < self.frozen_until_s and connection == self._connection:
            self._loop.call_at(self.frozen_until_s, self._hand_over, standing, message, connection)
            return
        standing.has_arrived()
        if not standing.ended and connection == self._connection:
            self._wire.tell(f"{self.name} hears {message.subject} {message.reply}", message.data)
            try:
                standing.handler(message)
            except Exception:
                log.exception("handler of %s failed; the message is dropped", message.subject)


class _Standing:
    """A subscription, through all connections of its participant."""

    def __init__(self, bus: FaultyBus, subject: str, handler: Handler, queue: str) -> None:
        self._bus = bus
        self._subject = subject
        self._queue = queue
        self._inner: Subscription | None = None
        self._none_left = asyncio.Event()
        self.handler = handler
        self.under_way = 0
        self.ended = False

    async def listen(self) -> None:
        self._inner = await self._bus.listen(
            self._subject, lambda message: self._bus.arrive(self, message), self._queue
        )

    def _hear(self, message: Message) -> None:
        self._bus.arrive(self, message)

    async def end(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            await inner.unsubscribe()

    def has_arrived(self) -> None:
        self.under_way -= 1
        if not self.under_way:
            self._none_left.set()

    async def unsubscribe(self) -> None:
        self.ended = True
        self._bus.forget(self)
        await self.end()

    async def drain(self) -> None:
        await asyncio.sleep(0)  # what was sent just now sets out
        await self.end()
        while self.under_way:
            self._none_left.clear()
            await self._none_left.wait()
        await self.unsubscribe()


def _at_once(coroutine: object) -> None:
    """Run what never waits: the bus in memory does not, whatever its methods are called."""
    with contextlib.suppress(StopIteration):
        coroutine.send(None)  # type: ignore[attr-defined]
        raise AssertionError("it waited")
