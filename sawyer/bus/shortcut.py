"""nats-py on a shorter way. Its own way hands every message from task to task: a flusher writes what `publish` queued,
and each subscription's task takes what the reader queued. Here a message is written at once where nothing waits before
it, and handed to its handler by the reader itself: every task left out is a turn of the loop (docs/performance.md).

These are private names of nats-py, so every shortcut falls back: a nats-py that lacks the names, or is not in the state
that the shortcut knows, takes its own way. Both ways keep tests/contract/test_bus.py (ADR 0016).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from sawyer.bus.protocol import Handler, Message

_WORD: Final = re.compile(r"\S+")
"""What may stand in a PUB line: white space would let a subject carry commands."""
_CRLF: Final = b"\r\n"
_PROCESS_PARAMETERS: Final = ["self", "sid", "subject", "reply", "data", "headers"]
_REMOVE_PARAMETERS: Final = ["self", "sid", "max_msgs"]
_OF_SUBSCRIPTION: Final = ("_id", "_received", "pending_msgs")

CANCELS: Final = 50
CANCEL_PAUSE_S: Final = 0.05

log = logging.getLogger(__name__)


class ShortClient(Client):
    """A client of nats-py with two shortcuts: `send_now`, and `hand_over` for handlers that only enqueue."""

    def __init__(self) -> None:
        super().__init__()
        self._handlers: dict[int, Handler] = {}
        self._reconnecting: set[asyncio.Task[None]] = set()
        self._hands_over = reads_as_known(Client, self)
        if self._hands_over:  # not by overriding: a nats-py that calls them otherwise must find its own
            self._process_msg = self._hand_or_queue  # type: ignore[method-assign]
            self._remove_sub = self._forget_sub  # type: ignore[method-assign]

    async def close(self) -> None:
        """As nats-py does, and to the end: where its last words meet a socket that is gone, or its cancel a refused
        connection, it leaves behind a task that reconnects for ever."""
        try:
            await super().close()
        finally:
            others = self._reconnecting - {asyncio.current_task()}
            for _ in range(CANCELS):
                if not others:
                    break
                for task in others:
                    task.cancel()
                _, others = await asyncio.wait(others, timeout=CANCEL_PAUSE_S)

    async def _attempt_reconnect(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._reconnecting.add(task)
        try:
            await super()._attempt_reconnect()
        finally:
            self._reconnecting.discard(task)

    def send_now(self, subject: str, data: bytes, reply: str) -> bool:
        """Write this message to the socket. False, and nothing is done, unless we are connected over TCP and nothing
        waits to be written: then `publish` must do it, which knows about order, limits and full buffers."""
        try:
            transport = self._transport
            if not isinstance(transport, TcpTransport) or not self.is_connected or self.is_draining_pubs:
                return False
            if self._pending or len(data) > self._max_payload or not _WORD.fullmatch(subject):
                return False
            writer = transport._io_writer
            if (reply and not _WORD.fullmatch(reply)) or writer is None or writer.transport.get_write_buffer_size():
                return False
            if writer.transport.is_closing():  # lost, and nats-py has not been told
                return False
            counts = self.stats
        except AttributeError:  # another nats-py
            return False
        line = f"PUB {subject} {reply} {len(data)}\r\n" if reply else f"PUB {subject} {len(data)}\r\n"
        try:
            transport.write(b"".join((line.encode(), data, _CRLF)))  # type: ignore[no-untyped-call]
        except RuntimeError:  # uvloop's word for a socket that was closed a moment ago, closing or not
            return False
        counts["out_msgs"] += 1
        counts["out_bytes"] += len(data)
        return True

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        """As nats-py does; but where its flusher has ended on a socket that is gone, and it has not been told that we
        are disconnected, it writes to that socket itself. What waits stays waiting: it is sent after the reconnect."""
        try:
            return await super()._flush_pending(force_flush)
        except (RuntimeError, OSError) as error:  # uvloop's word for a closed socket, and that of others
            log.debug("what waits to be written waits on: %s", error)
            done = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        """After what waits to be written: nats-py writes its PING past that, and the PONG would answer for nothing."""
        try:
            if self._pending and self._transport is not None:
                waiting, self._pending, self._pending_data_size = self._pending, [], 0
                self._transport.writelines(waiting)
        except AttributeError:  # another nats-py
            log.debug("this nats-py keeps what waits elsewhere")
        await super()._send_ping(future)

    def hand_over(self, subscription: Subscription, handler: Handler) -> None:
        """From now on the reader calls `handler` itself for every message of this subscription without headers that
        finds no other waiting: those are before it. The handler must not raise."""
        if self._hands_over and all(hasattr(subscription, name) for name in _OF_SUBSCRIPTION):
            self._handlers[subscription._id] = handler

    def forget(self, subscription: Subscription) -> None:
        """Nothing of this subscription is heard or kept any more, whatever became of its end. May be repeated."""
        try:
            subscription._stop_processing()
            self._remove_sub(subscription._id)
        except AttributeError:  # another nats-py
            log.warning("nats-py keeps the subscription of %s, which could not be ended in order", subscription.subject)

    async def _hand_or_queue(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> None:
        handler, subscription = self._handlers.get(sid), self._subs.get(sid)
        if handler is None or subscription is None or headers or subscription.pending_msgs:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        subscription._received += 1
        try:
            message = Message(subject.decode(), data, reply.decode())
        except UnicodeDecodeError:
            log.warning("a message on %r was dropped: its subject or reply is not UTF-8", subject)
            return
        handler(message)

    def _forget_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._handlers.pop(sid, None)
        super()._remove_sub(sid, max_msgs)


def reads_as_known(kind: type[Client], made: Client) -> bool:
    """Whether this nats-py hands a message it read to where the shortcut stands, and keeps its books as we do."""
    try:
        process, remove = kind._process_msg, kind._remove_sub
        known = (
            list(inspect.signature(process).parameters) == _PROCESS_PARAMETERS
            and inspect.iscoroutinefunction(process)
            and list(inspect.signature(remove).parameters) == _REMOVE_PARAMETERS
            and not inspect.iscoroutinefunction(remove)
            and isinstance(made._subs, dict)
            and {"in_msgs", "in_bytes"} <= made.stats.keys()
        )
    except AttributeError:
        return False
    return known
