"""The bus over NATS: connect, publish, subscribe, request, with typed errors. Knows the traps of nats-py
(docs/protocol.md lists them) and hides them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from sawyer.bus.protocol import MAX_PAYLOAD_BYTES, Handler, Message, Subscription
from sawyer.errors import NoAnswer, NobodyServes, ServerUnreachable, UsageError

CONNECT_TIMEOUT_S: Final = 2
FIRST_CONNECT_ATTEMPTS: Final = 3
FIRST_CONNECT_TIMEOUT_S: Final = 5
RECONNECT_WAIT_S: Final = 0.1
DRAIN_TIMEOUT_S: Final = 2.0
PENDING_BYTES_LIMIT: Final = 256 * 1024 * 1024
PENDING_MESSAGES_LIMIT: Final = 65_536
_NO_RESPONDERS: Final = "503"

log = logging.getLogger(__name__)


class NatsBus:
    """One connection. Made by `connect`. `dropped` counts messages lost to a full buffer (slow consumer). `closed` is
    set when the connection is gone for good (the server refused us): whoever runs on it must end."""

    def __init__(self) -> None:
        self._client = _Client()
        self._on_disconnect: list[Callable[[], None]] = []
        self._problems: list[str] = []
        self._gave_up = asyncio.Event()
        self._established = False
        self.dropped = 0
        self.closed = asyncio.Event()

    @classmethod
    async def connect(cls, url: str, *, name: str) -> NatsBus:
        """A first connect fails within seconds with ServerUnreachable, naming the address and the server's word; once
        established, the connection survives any restart of its server."""
        bus = cls()
        connecting = asyncio.create_task(bus._connect(url, name))
        giving_up = asyncio.create_task(bus._gave_up.wait())
        try:
            done, _ = await asyncio.wait(
                {connecting, giving_up}, timeout=FIRST_CONNECT_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
            )
            if connecting in done:
                connecting.result()
                bus._established = True
                return bus
            why = bus._problems[-1] if bus._problems else f"no answer within {FIRST_CONNECT_TIMEOUT_S} s"
            raise ServerUnreachable(f"no NATS server answers at {url} ({why})")
        except (OSError, ValueError, nats.errors.Error) as error:
            raise ServerUnreachable(f"cannot connect to {url} ({error})") from error
        finally:
            giving_up.cancel()
            if not bus._established:
                await bus._abandon(connecting)

    async def _connect(self, url: str, name: str) -> None:
        await self._client.connect(
            url,
            name=name,
            connect_timeout=CONNECT_TIMEOUT_S,
            reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # a float works; the hint says int
            max_reconnect_attempts=-1,
            ping_interval=5,
            max_outstanding_pings=2,
            error_cb=self._note_error,
            disconnected_cb=self._note_disconnect,
            closed_cb=self._note_closed,
        )

    async def _abandon(self, connecting: asyncio.Task[None]) -> None:
        connecting.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError, ValueError, nats.errors.Error):
            await connecting
        with contextlib.suppress(nats.errors.Error, OSError, AssertionError):  # asserts that it came as far as a socket
            await self._client.close()

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        if len(data) > MAX_PAYLOAD_BYTES:
            raise UsageError(f"a message of {len(data)} bytes is over the limit of {MAX_PAYLOAD_BYTES}")
        try:
            await self._client.publish(subject, data, reply)
        except nats.errors.MaxPayloadError as error:
            raise _over_server_limit(data) from error
        except nats.errors.Error as error:
            raise ServerUnreachable(f"cannot send: {error}") from error

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Subscription:
        async def deliver(message: Msg) -> None:
            try:
                handler(_message(message))
            except Exception:
                log.exception("handler of %s failed; the message is dropped", subject)

        try:
            made = await self._client.subscribe(
                subject,
                queue=queue,
                cb=deliver,
                pending_msgs_limit=PENDING_MESSAGES_LIMIT,
                pending_bytes_limit=PENDING_BYTES_LIMIT,
            )
        except nats.errors.ConnectionClosedError as error:
            raise ServerUnreachable("cannot subscribe: the connection is closed") from error
        return _Subscribed(made)

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        if len(data) > MAX_PAYLOAD_BYTES:
            raise UsageError(f"a message of {len(data)} bytes is over the limit of {MAX_PAYLOAD_BYTES}")
        task = asyncio.current_task()
        cancels = task.cancelling() if task is not None else 0
        try:
            reply = await self._client.request(subject, data, timeout=timeout_s)
        except nats.errors.NoRespondersError as error:
            raise NobodyServes(f"nobody listens on {subject}") from error
        except (nats.errors.TimeoutError, TimeoutError) as error:
            raise NoAnswer(f"no answer on {subject} within {timeout_s:g} s") from error
        except nats.errors.MaxPayloadError as error:
            raise _over_server_limit(data) from error
        except nats.errors.Error as error:
            raise ServerUnreachable(f"cannot ask {subject}: {error}") from error
        if task is not None and task.cancelling() > cancels:
            raise asyncio.CancelledError  # came with the answer, and was swallowed by wait_for before Python 3.12
        return reply.data

    def new_inbox(self) -> str:
        return self._client.new_inbox()

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        self._on_disconnect.append(callback)

    async def flush(self) -> None:
        if not self._client.is_connected:  # nats-py would return at once, as if all had been sent
            raise ServerUnreachable("the NATS server does not answer: the connection is lost")
        try:
            for _ in range(2):  # nats-py writes a PING past what it still holds back; the second one comes after it
                await self._client.flush(timeout=CONNECT_TIMEOUT_S)
        except (nats.errors.Error, TimeoutError) as error:
            raise ServerUnreachable(f"the NATS server does not answer: {error}") from error

    async def close(self) -> None:
        if self._client.is_closed:
            return
        with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
            if self._client.is_connected:
                await self._client.flush(timeout=CONNECT_TIMEOUT_S)
        with contextlib.suppress(nats.errors.Error, OSError):
            await self._client.close()

    async def _note_error(self, error: Exception) -> None:
        if not self._established:
            self._problems.append(str(error) or type(error).__name__)
            if len(self._problems) >= FIRST_CONNECT_ATTEMPTS:
                self._gave_up.set()
            return
        if isinstance(error, nats.errors.SlowConsumerError):
            self.dropped += 1
        log.warning("nats: %s", str(error) or type(error).__name__)

    async def _note_disconnect(self) -> None:
        for callback in self._on_disconnect:
            callback()

    async def _note_closed(self) -> None:
        self.closed.set()


class _Subscribed:
    def __init__(self, subscription: NatsSubscription) -> None:
        self._subscription = subscription

    async def unsubscribe(self) -> None:
        with contextlib.suppress(nats.errors.Error):
            await self._subscription.unsubscribe()

    async def drain(self) -> None:
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            await asyncio.wait_for(self._subscription.drain(), DRAIN_TIMEOUT_S)  # type: ignore[no-untyped-call]


class _Client(Client):
    """nats-py, which stops reading for good when a subject or reply is not UTF-8 (and anybody may send one)."""

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg | None:
        try:
            message: Msg = super()._build_message(sid, subject, reply, data, headers)
        except UnicodeDecodeError:
            log.warning("a message on %r was dropped: its subject or reply is not UTF-8", subject)
            return None
        return message


def _over_server_limit(data: bytes) -> UsageError:
    return UsageError(
        f"a message of {len(data)} bytes is over the limit of this NATS server",
        hint="Run the server with max_payload: 8MB.",
    )


def _message(message: Msg) -> Message:
    headers = message.headers
    alone = headers is not None and not message.data and headers.get("Status") == _NO_RESPONDERS
    return Message(message.subject, message.data, message.reply, alone)
