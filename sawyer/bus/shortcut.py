"""nats-py on a shorter way. Its own way hands every message from task to task: a flusher writes what `publish` queued,
and each subscription's task takes what the reader queued. Here a message is written at once where nothing waits before
it, and handed to its handler by the reader itself: every task left out is a turn of the loop (docs/performance.md).

These are private names of nats-py, so every shortcut falls back: a nats-py that lacks the names, or is not in the state
that the shortcut knows, takes its own way. Both ways keep tests/contract/test_bus.py (ADR 0016).
"""

from __future__ import annotations

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

log = logging.getLogger(__name__)


class ShortClient(Client):
    """A client of nats-py with two shortcuts: `send_now`, and `hand_over` for handlers that only enqueue."""

    def __init__(self) -> None:
        super().__init__()
        self._handlers: dict[int, Handler] = {}

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
            counts = self.stats
        except AttributeError:  # another nats-py
            return False
        line = f"PUB {subject} {reply} {len(data)}\r\n" if reply else f"PUB {subject} {len(data)}\r\n"
        counts["out_msgs"] += 1
        counts["out_bytes"] += len(data)
        transport.write(b"".join((line.encode(), data, _CRLF)))  # type: ignore[no-untyped-call]
        return True

    def hand_over(self, subscription: Subscription, handler: Handler) -> None:
        """From now on the reader calls `handler` itself for every message of this subscription without headers. The
        handler must not raise. Nothing is done if messages wait already: they are before the next ones."""
        sid = getattr(subscription, "_id", None)
        if sid is not None and subscription.pending_msgs == 0:
            self._handlers[sid] = handler

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> None:
        handler = self._handlers.get(sid)
        if handler is None or headers or sid not in self._subs:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        self._subs[sid]._received += 1
        try:
            message = Message(subject.decode(), data, reply.decode())
        except UnicodeDecodeError:
            log.warning("a message on %r was dropped: its subject or reply is not UTF-8", subject)
            return
        handler(message)

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._handlers.pop(sid, None)
        super()._remove_sub(sid, max_msgs)
