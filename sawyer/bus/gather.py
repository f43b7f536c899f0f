"""Many messages out, all answers in: one reply inbox for a program, one future for a call.

Against a request a message this saves a third of the cost of a layer (docs/adr, wire measurements), and it sees at
once when nobody listens, when an urgent answer (a typed refusal) comes, and when the connection is lost.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from time import perf_counter

from sawyer.bus.protocol import Bus, Message, Subscription


class Loss(Enum):
    """Why an answer will not come."""

    NO_RESPONDERS = "nobody listens"
    DISCONNECTED = "connection lost"


@dataclass(frozen=True, slots=True)
class Arrival:
    """What became of one message: its answer, or the reason that none will come. `at_s` is loop time, which uvloop
    counts in whole milliseconds; `stamp_s` is of perf_counter."""

    tag: int
    at_s: float
    stamp_s: float
    data: bytes = b""
    loss: Loss | None = None


class Gatherer:
    """Owns the inbox. `urgent(data)` says which answers must wake a waiting call at once. `late` counts answers that
    came after their call had ended."""

    def __init__(self, bus: Bus, urgent: Callable[[bytes], bool]) -> None:
        self._bus = bus
        self._urgent = urgent
        self._prefix = bus.new_inbox()
        self._calls: dict[int, Call] = {}
        self._ids = itertools.count(1)
        self._subscription: Subscription | None = None
        self._deaf: Callable[[], None] = lambda: None
        self.late = 0

    async def start(self) -> None:
        self._subscription = await self._bus.subscribe(f"{self._prefix}.*.*", self._receive)
        self._deaf = self._bus.on_disconnect(self._lose_all)

    async def stop(self) -> None:
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None
            self._deaf()
        self._lose_all()

    @property
    def settling(self) -> bool:
        """See Bus.settling."""
        return self._bus.settling

    def call(self) -> Call:
        """A new call; close it (or use it as a context manager) when its answers no longer matter."""
        made = Call(self._bus, f"{self._prefix}.{next(self._ids)}", self._forget)
        self._calls[made.id] = made
        return made

    def _forget(self, call: Call) -> None:
        self._calls.pop(call.id, None)

    def _receive(self, message: Message) -> None:
        _, call_id, tag = message.subject.rsplit(".", 2)
        call = self._calls.get(int(call_id))
        if call is None:
            self.late += 1
            return
        loss = Loss.NO_RESPONDERS if message.no_responders else None
        call.arrive(int(tag), message.data, loss, wake=loss is not None or self._urgent(message.data))

    def _lose_all(self) -> None:
        for call in list(self._calls.values()):
            call.lose_rest()


class Call:
    """One round: send some messages under tags of your own, wait for what becomes of them, send more if need be."""

    def __init__(self, bus: Bus, inbox: str, forget: Callable[[Call], None]) -> None:
        self._bus = bus
        self._inbox = inbox
        self.id = int(inbox.rsplit(".", 1)[1])
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._arrived: list[Arrival] = []
        self._urgent = False
        self._first = False
        self._wake: asyncio.Future[None] | None = None
        self.outstanding: set[int] = set()

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def send(self, tag: int, subject: str, data: bytes) -> None:
        """Publish under a tag that this call has not used before."""
        self.outstanding.add(tag)
        await self._bus.publish(subject, data, f"{self._inbox}.{tag}")

    async def wait(self, timeout_s: float, *, first: bool = False) -> list[Arrival]:
        """Returns what arrived since the last wait: as soon as nothing is outstanding, something urgent or a loss came,
        or the time is up (then perhaps nothing). With `first`, as soon as anything came."""
        self._first = first
        if self.outstanding and not self._urgent and not (first and self._arrived):
            self._wake = self._loop.create_future()
            timer = self._loop.call_later(timeout_s, self._wake_up)
            try:
                await self._wake
            finally:
                timer.cancel()
                self._wake = None
        taken, self._arrived, self._urgent = self._arrived, [], False
        return taken

    def arrive(self, tag: int, data: bytes, loss: Loss | None, *, wake: bool) -> None:
        """The first word on a tag counts; later ones are dropped."""
        if tag not in self.outstanding:
            return
        self.outstanding.discard(tag)
        self._arrived.append(Arrival(tag, self._loop.time(), perf_counter(), data, loss))
        self._urgent = self._urgent or wake  # it may come between two waits, while more is being sent
        if wake or self._first or not self.outstanding:
            self._wake_up()

    def lose_rest(self) -> None:
        """The connection is gone: no answer that is still out will come."""
        for tag in sorted(self.outstanding):
            self.arrive(tag, b"", Loss.DISCONNECTED, wake=True)

    def close(self) -> None:
        self._forget(self)

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
