"""The bus over NATS: connect, publish, subscribe, request, with typed errors. Knows the traps of nats-py
(docs/protocol.md lists them) and hides them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import ssl
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from sawyer.bus.protocol import MAX_PAYLOAD_BYTES, Handler, Message, Subscription
from sawyer.contexts import NatsTarget
from sawyer.errors import NoAnswer, NobodyServes, ServerUnreachable, UsageError

CONNECT_TIMEOUT_S: Final = 2
FIRST_CONNECT_ATTEMPTS: Final = 3
FIRST_CONNECT_TIMEOUT_S: Final = 5
RECONNECT_WAIT_S: Final = 0.1
DRAIN_TIMEOUT_S: Final = 2.0
PENDING_BYTES_LIMIT: Final = 256 * 1024 * 1024
PENDING_MESSAGES_LIMIT: Final = 65_536
SCHEMES: Final = ("nats", "tls", "ws", "wss")
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
    async def connect(cls, target: str | NatsTarget, *, name: str) -> NatsBus:
        """`target`: an address, or an address with credentials. A first connect fails within seconds: UsageError for
        an address that is none or a credentials file that cannot be read, ServerUnreachable naming the address and the
        server's word. Once established, the connection survives any restart of its server."""
        bus = cls()
        target = NatsTarget(url=target) if isinstance(target, str) else target
        options = _options(target)
        connecting = asyncio.create_task(bus._connect(target.url, name, options))
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
            raise _unreachable(target, why)
        except (OSError, ValueError, nats.errors.Error) as error:
            raise _unreachable(target, str(error) or type(error).__name__) from error
        finally:
            giving_up.cancel()
            if not bus._established:
                await bus._abandon(connecting)

    async def _connect(self, url: str, name: str, options: dict[str, Any]) -> None:
        await self._client.connect(
            url,
            name=name,
            **options,
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


def _options(target: NatsTarget) -> dict[str, Any]:
    """What nats-py needs to connect as this target says. Raises UsageError for what no server could accept."""
    try:
        address = urlsplit(target.url if "://" in target.url else f"nats://{target.url}")
        bad = address.scheme not in SCHEMES or not address.hostname or address.port == 0
    except ValueError:  # no port, or no address at all
        bad = True
    if bad:
        raise UsageError(f"{target.url!r} is not the address of a NATS server", hint="Write nats://HOST:PORT.")
    for file in (target.creds, target.nkey, target.ca, target.cert, target.key):
        if file is not None and not os.access(file, os.R_OK):
            raise UsageError(f"cannot read {file}", hint="Check the path and its owner.")
    given: dict[str, Any] = {
        "user_credentials": str(target.creds) if target.creds else None,
        "nkeys_seed": str(target.nkey) if target.nkey else None,
        "user": target.user or None,
        "password": target.password or None,
        "token": target.token or None,
        "inbox_prefix": target.inbox_prefix or None,
        "tls": _tls(target),
    }
    return {name: value for name, value in given.items() if value is not None}


def _tls(target: NatsTarget) -> ssl.SSLContext | None:
    if not (target.ca or target.cert or target.url.startswith(("tls://", "wss://"))):
        return None
    try:
        context = ssl.create_default_context(cafile=target.ca)
        if target.cert:
            context.load_cert_chain(target.cert, target.key)
    except (ssl.SSLError, OSError) as error:
        raise UsageError(f"the TLS files cannot be used: {error}", hint="ca, cert and key are PEM files.") from error
    return context


def _unreachable(target: NatsTarget, why: str) -> ServerUnreachable:
    refused = re.search(r"authoriz|authentic|nkeys|jwt|credential", why, re.IGNORECASE)
    if refused:
        return ServerUnreachable(
            f"{target.url} refused us, connecting with {target.credential} ({why})",
            hint="Give credentials: --creds FILE, or a context that has them (sawyer context add).",
        )
    return ServerUnreachable(f"no NATS server answers at {target.url} ({why})")


def _over_server_limit(data: bytes) -> UsageError:
    return UsageError(
        f"a message of {len(data)} bytes is over the limit of this NATS server",
        hint="Run the server with max_payload: 8MB.",
    )


def _message(message: Msg) -> Message:
    headers = message.headers
    alone = headers is not None and not message.data and headers.get("Status") == _NO_RESPONDERS
    return Message(message.subject, message.data, message.reply, alone)
