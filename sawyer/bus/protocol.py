"""What every bus can do. NATS (connection.py) and the in-process bus (memory.py) both keep this contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

MAX_PAYLOAD_BYTES: Final = 8 * 1024 * 1024 - 4096
SETTLE_S: Final = 3.0
"""So long after a server came back its clients may still be coming back, one after the other."""
"""Our servers take 8 MiB; 4 KiB stay free for headers. A payload over the server's limit costs the connection."""


@dataclass(frozen=True, slots=True)
class Message:
    """What arrived. `no_responders`: the server's word that nobody listens on the subject we published to. `headers`:
    only JetStream's messages have any."""

    subject: str
    data: bytes
    reply: str = ""
    no_responders: bool = False
    headers: Mapping[str, str] | None = None


Handler = Callable[[Message], None]
"""Runs on the event loop, one message after another: it may only check and enqueue."""


class Subscription(Protocol):
    """A standing interest in a subject."""

    async def unsubscribe(self) -> None:
        """Stop at once; what is queued in the bus is dropped."""

    async def drain(self) -> None:
        """Stop, and return when everything that was sent before is handed over."""


class Bus(Protocol):
    """One participant's connection."""

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        """Raises UsageError over MAX_PAYLOAD_BYTES, ServerUnreachable on a closed connection."""

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Subscription:
        """Messages to `subject` (may hold `*` and `>`). With a queue group, one member gets each."""

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """One answer. Raises NobodyServes at once if nobody listens, NoAnswer after the timeout."""

    def new_inbox(self) -> str:
        """A subject prefix for replies that only this participant listens on."""

    def on_disconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Called on the event loop whenever the connection is lost: requests in flight will not be answered. Until what
        this returns is called, once."""

    @property
    def settling(self) -> bool:
        """Whether the connection is lost, or came back within SETTLE_S: others may not be back yet, and that nobody
        listens means little."""

    async def flush(self) -> None:
        """Returns when the server has processed all that was sent."""

    async def close(self) -> None:
        """Idempotent. Sends what is queued first."""
