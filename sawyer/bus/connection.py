"""The bus over NATS: connect, publish, subscribe, request, with typed errors. Knows the traps of nats-py
(docs/protocol.md lists them) and hides them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import logging
import math
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import nats
import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from sawyer.bus import credentials
from sawyer.bus.protocol import MAX_PAYLOAD_BYTES, SETTLE_S, Handler, Message, Subscription
from sawyer.bus.shortcut import ShortClient
from sawyer.contexts import NatsTarget
from sawyer.errors import (
    CertificateRefused,
    MissingExtra,
    NoAnswer,
    NobodyServes,
    NotAuthorised,
    SawyerError,
    ServerUnreachable,
    UsageError,
)

CONNECT_TIMEOUT_S: Final = 2
FIRST_CONNECT_ATTEMPTS: Final = 3
FIRST_CONNECT_TIMEOUT_S: Final = 5
RECONNECT_WAIT_S: Final = 0.1
DRAIN_TIMEOUT_S: Final = 2.0
PENDING_BYTES_LIMIT: Final = 256 * 1024 * 1024
PENDING_MESSAGES_LIMIT: Final = 65_536
HEADERS_LIMIT_BYTES: Final = 4096
"""No headers of ours come near it."""
SCHEMES: Final = ("nats", "tls", "ws", "wss")
_NO_RESPONDERS: Final = "503"
_EXPIRED: Final = "authentication expired"
_REVOKED: Final = "authentication revoked"
_PERMISSIONS: Final = "permissions violation"
_ASK_OPERATOR: Final = "Its operator can say why, and invite again: sawyer network invite."
_DENIED: Final = re.compile(r'permissions violation for publish to "([^"]+)"', re.IGNORECASE)
_BLANKS: Final = " \t\n\r\v\f"
_INBOX_PREFIX: Final = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")
_REFUSED: Final = re.compile(r"authoriz|authentic|nkeys|jwt|credential", re.IGNORECASE)
_FINAL: Final = re.compile(rf"{_REFUSED.pattern}|VERIFY_FAILED|offers no TLS", re.IGNORECASE)
"""Trying again would change nothing."""
_HUNG_UP: Final = re.compile(r"hung up|reset by peer|broken pipe|connection lost", re.IGNORECASE)
_UNTRUSTED: Final = re.compile(r"certificate|ssl|tls", re.IGNORECASE)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerInfo:
    """What a NATS server says of itself."""

    version: str
    max_payload_bytes: int
    jetstream: bool
    encrypted: bool


class NatsBus:
    """One connection. Made by `connect`. `dropped` counts messages lost to a full buffer (slow consumer). `closed` is
    set when the connection is gone for good (the server refused us): whoever runs on it must end."""

    def __init__(self, target: NatsTarget) -> None:
        self._target = target
        self._client = _Client(target)
        self._on_disconnect: list[Callable[[], None]] = []
        self._back_s = -math.inf
        self._problems: list[str] = []
        self._gave_up = asyncio.Event()
        self._established = False
        self._asked: dict[str, bool] = {}
        """Subjects of questions that are out, and whether the server did not let them through."""
        self.dropped = 0
        self.closed = asyncio.Event()

    @classmethod
    async def connect(cls, target: str | NatsTarget, *, name: str) -> NatsBus:
        """`target`: an address, or an address with credentials. A first connect fails within seconds: UsageError for
        an address that is none or a credentials file that cannot be read, ServerUnreachable naming the address and the
        server's word. Once established, the connection survives any restart of its server."""
        target = NatsTarget(url=target) if isinstance(target, str) else target
        options = _options(target)
        bus = cls(target)
        connecting = asyncio.create_task(bus._connect(name, options))
        giving_up = asyncio.create_task(bus._gave_up.wait())
        try:
            done, _ = await asyncio.wait(
                {connecting, giving_up}, timeout=FIRST_CONNECT_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
            )
            if connecting in done:
                connecting.result()
                if bus._client.is_connected:  # nats-py also returns when the server hung up instead of answering
                    bus._established = True
                    return bus
            raise bus._unreachable()
        except (OSError, ValueError, nats.errors.Error) as error:
            bus._problems.append(_reason(error))
            raise bus._unreachable() from error
        finally:
            giving_up.cancel()
            if not bus._established:
                await bus._abandon(connecting)

    async def _connect(self, name: str, options: dict[str, Any]) -> None:
        await self._client.connect(
            self._target.servers,
            name=name,
            **options,
            connect_timeout=CONNECT_TIMEOUT_S,
            reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # a float works; the hint says int
            max_reconnect_attempts=-1,
            ping_interval=5,
            max_outstanding_pings=2,
            error_cb=self._note_error,
            disconnected_cb=self._note_disconnect,
            reconnected_cb=self._note_reconnect,
            closed_cb=self._note_closed,
        )

    def _unreachable(self) -> ServerUnreachable:
        """The error of a first connect. A server that refuses us hangs up, and its word may be lost with that."""
        target, problems = self._target, self._problems
        why = next((each for each in problems if _FINAL.search(each)), problems[-1] if problems else "")
        why = why or ("it hung up" if self._client._server_info else f"no answer within {FIRST_CONNECT_TIMEOUT_S} s")
        if _REFUSED.search(why) or (self._client._server_info.get("auth_required") and _HUNG_UP.search(why)):
            return ServerUnreachable(
                f"{target.address} refused us, connecting with {target.credential} ({why})",
                hint="Give credentials (--creds FILE, or a context that has them), or join with the operator's token: "
                "sawyer register --join FILE.",
            )
        hint = ""
        if _UNTRUSTED.search(why):
            hint = "Check ca, cert and key in the context: the CA of the server's certificate, and ours if it asks."
        return ServerUnreachable(f"no NATS server answers at {target.address} ({why})", hint=hint)

    async def _abandon(self, connecting: asyncio.Task[None]) -> None:
        connecting.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError, ValueError, nats.errors.Error):
            await connecting
        with contextlib.suppress(nats.errors.Error, OSError, AssertionError):  # asserts that it came as far as a socket
            await self._client.close()

    @property
    def why_closed(self) -> SawyerError:
        """What ended the connection for good, once `closed` is set."""
        word, credential = self._client.last_word, self._target.credential
        if _REVOKED in word.lower():
            return CertificateRefused(f"the network revoked what we connect with ({credential})", hint=_ASK_OPERATOR)
        told = f" ({word})" if word else ""
        return ServerUnreachable(f"the NATS server closed the connection and will not have it back{told}")

    @property
    def server(self) -> ServerInfo:
        """What the server said of itself, at the last connect."""
        info = self._client._server_info
        return ServerInfo(
            version=str(info.get("version", "unknown")),
            max_payload_bytes=self._client.max_payload,
            jetstream=bool(info.get("jetstream")),
            encrypted=bool(info.get("tls_required")),
        )

    async def publish(
        self, subject: str, data: bytes, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        if len(data) > MAX_PAYLOAD_BYTES:
            raise UsageError(f"a message of {len(data)} bytes is over the limit of {MAX_PAYLOAD_BYTES}")
        if headers is None and self._client.send_now(subject, data, reply):
            return
        try:
            await self._client.publish(subject, data, reply, headers=self._sendable(data, headers))
        except nats.errors.MaxPayloadError as error:
            raise _over_server_limit(data) from error
        except nats.errors.Error as error:
            raise ServerUnreachable(f"cannot send: {error}") from error

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Subscription:
        def hear(message: Message) -> None:
            try:
                handler(message)
            except Exception:
                log.exception("handler of %s failed; the message is dropped", subject)

        async def deliver(message: Msg) -> None:
            hear(_message(message))

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
        self._client.hand_over(made, hear)
        return _Subscribed(self._client, made)

    async def request(
        self, subject: str, data: bytes, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        if len(data) > MAX_PAYLOAD_BYTES:
            raise UsageError(f"a message of {len(data)} bytes is over the limit of {MAX_PAYLOAD_BYTES}")
        self._asked[subject] = False
        try:
            sent = self._sendable(data, headers)
            with _keeping_cancels():
                reply = await self._client.request(subject, data, timeout=timeout_s, headers=sent)
        except nats.errors.NoRespondersError as error:
            raise NobodyServes(f"nobody listens on {subject}") from error
        except (nats.errors.TimeoutError, TimeoutError) as error:
            if self._asked.get(subject):
                raise NotAuthorised(
                    f"the network does not let us say anything on {subject}, connecting with {self._target.credential}",
                    hint="`sawyer identity show` tells as whom we connect; docs/trust.md what each may do.",
                ) from error
            raise NoAnswer(f"no answer on {subject} within {timeout_s:g} s") from error
        except nats.errors.MaxPayloadError as error:
            raise _over_server_limit(data) from error
        except nats.errors.Error as error:
            raise ServerUnreachable(f"cannot ask {subject}: {error}") from error
        finally:
            self._asked.pop(subject, None)
        return reply.data

    def _sendable(self, data: bytes, headers: Mapping[str, str] | None) -> dict[str, str] | None:
        """These headers, for nats-py. Raises UsageError where they could push the message over the server's limit:
        nats-py counts only the payload, and the server would close the connection for good."""
        if headers is None:
            return None
        if len(data) + HEADERS_LIMIT_BYTES > self._client.max_payload:
            raise _over_server_limit(data)
        return dict(headers)

    def new_inbox(self) -> str:
        return self._client.new_inbox()

    def on_disconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._on_disconnect.append(callback)
        return partial(self._on_disconnect.remove, callback)

    @property
    def settling(self) -> bool:
        return asyncio.get_running_loop().time() < self._back_s + SETTLE_S

    async def flush(self) -> None:
        if not self._client.is_connected:  # nats-py would return at once, as if all had been sent
            raise ServerUnreachable("the NATS server does not answer: the connection is lost")
        try:
            for _ in range(2):  # nats-py writes a PING past what it still holds back; the second one comes after it
                with _keeping_cancels():
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
            self._problems.append(_reason(error))
            attempts = FIRST_CONNECT_ATTEMPTS * len(self._target.servers)
            if len(self._problems) >= attempts or _FINAL.search(self._problems[-1]):
                self._gave_up.set()
            return
        if isinstance(error, nats.errors.SlowConsumerError):
            self.dropped += 1
        elif not self._client.is_connected:  # one word an outage, not one an attempt
            return
        elif (denied := _DENIED.search(str(error))) and denied.group(1) in self._asked:
            self._asked[denied.group(1)] = True
        log.warning("nats: %s", str(error) or type(error).__name__)

    async def _note_reconnect(self) -> None:
        self._back_s = asyncio.get_running_loop().time()
        log.warning("nats: connected again")

    async def _note_disconnect(self) -> None:
        if self._established and not self._client.is_closed:
            self._back_s = math.inf  # not only from when we are told that it is back: answers come before that
            log.warning("nats: the connection is lost; trying to reconnect")
        for callback in list(self._on_disconnect):
            callback()

    async def _note_closed(self) -> None:
        self.closed.set()


class _Subscribed:
    def __init__(self, client: _Client, subscription: NatsSubscription) -> None:
        self._client = client
        self._subscription = subscription

    async def unsubscribe(self) -> None:
        with contextlib.suppress(nats.errors.Error):
            await self._subscription.unsubscribe()

    async def drain(self) -> None:
        try:
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                async with asyncio.timeout(DRAIN_TIMEOUT_S):
                    await self._subscription.drain()  # type: ignore[no-untyped-call]
        finally:
            self._client.forget(self._subscription)  # nats-py keeps what it could not drain, and hears on for it


@contextlib.contextmanager
def _keeping_cancels() -> Iterator[None]:
    """A cancel that came with the answer, or with its absence, is raised: wait_for, which nats-py uses, swallows it
    before Python 3.12."""
    task = asyncio.current_task()
    cancels = task.cancelling() if task is not None else 0
    try:
        yield
    finally:
        if task is not None and task.cancelling() > cancels:
            raise asyncio.CancelledError


class _Client(ShortClient):
    """nats-py, which stops reading for good when a subject or reply is not UTF-8 (and anybody may send one) and when a
    PONG comes that nobody waits for any more, and tells its credentials to a server without TLS even if TLS was asked
    for (and anybody in between may be that server)."""

    def __init__(self, target: NatsTarget) -> None:
        super().__init__()
        self._encrypted = credentials.wants_tls(target) and not target.tls_first
        self.last_word = ""
        if target.nkey:
            self._public_nkey = credentials.read_nkey(target.nkey).id

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        over_tls = self._current_server is not None and self._current_server.uri.scheme == "wss"
        if self._encrypted and initial_connection and not (info.get("tls_required") or over_tls):
            raise nats.errors.Error("the server offers no TLS, and TLS was asked for")
        await super()._process_info(info, initial_connection)

    async def _process_err(self, err_msg: str) -> None:
        """As nats-py does; but a certificate that ended is no reason to close for good: there may be another by now."""
        if _EXPIRED in err_msg.lower():
            await self._process_op_err(nats.errors.Error(err_msg))
            return
        if _PERMISSIONS not in err_msg.lower():
            self.last_word = err_msg.strip("'")
        await super()._process_err(err_msg)

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():  # its flush timed out: to set its result would end the reading task
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        """As nats-py does, a word at a time and not a character: half of what reading a book's copy costs."""
        pairs = (line.partition(":") for line in raw.decode("utf-8", "replace").split("\r\n"))
        named = ((name.strip(_BLANKS), value) for name, colon, value in pairs if colon and name.isascii())
        return {name: value.strip(_BLANKS) for name, value in named if not name or name.split() == [name]}

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg | None:
        try:
            message: Msg = super()._build_message(sid, subject, reply, data, headers)
        except UnicodeDecodeError:
            log.warning("a message on %r was dropped: its subject or reply is not UTF-8", subject)
            return None
        return message


def check(target: NatsTarget) -> None:
    """Raises UsageError for an address that is none, and for a file of the target that cannot be used."""
    _options(target)


def _options(target: NatsTarget) -> dict[str, Any]:
    """What nats-py needs to connect as this target says. Raises UsageError for what no server could accept."""
    for url in target.servers:
        _check_address(url, target)
    if target.inbox_prefix and not _INBOX_PREFIX.fullmatch(target.inbox_prefix):
        raise UsageError(f"{target.inbox_prefix!r} cannot begin an inbox", hint="Write a subject, without * and >.")
    options = credentials.options(target)
    given = {
        "inbox_prefix": target.inbox_prefix,
        "tls": credentials.tls(target),
        "tls_handshake_first": target.tls_first,
    }
    return options | {name: value for name, value in given.items() if value}


def _check_address(url: str, target: NatsTarget) -> None:
    try:
        address = urlsplit(url if "://" in url else f"nats://{url}")
        bad = address.scheme not in SCHEMES or not address.hostname or address.port == 0
    except ValueError:  # no port, or no address at all
        bad, address = True, urlsplit("")
    if bad:
        raise UsageError(f"{target.address!r} is not the address of a NATS server", hint="Write nats://HOST:PORT.")
    if address.scheme in ("ws", "wss") and importlib.util.find_spec("aiohttp") is None:
        raise MissingExtra("aiohttp is not installed, and NATS over WebSocket needs it", hint="pip install aiohttp")


def _reason(error: Exception) -> str:
    """What went wrong, without the noise of asyncio."""
    text = str(error) or type(error).__name__
    if f"[Errno {errno.ECONNREFUSED}]" in text:
        return "connection refused"
    return f"no such host: {text}" if isinstance(error, socket.gaierror) else text


def _over_server_limit(data: bytes) -> UsageError:
    return UsageError(
        f"a message of {len(data)} bytes is over the limit of this NATS server",
        hint="Run the server with max_payload: 8MB.",
    )


def _message(message: Msg) -> Message:
    headers = message.headers
    alone = headers is not None and not message.data and headers.get("Status") == _NO_RESPONDERS
    return Message(message.subject, message.data, message.reply, alone, None if alone else headers)
