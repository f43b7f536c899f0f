"""A request's answer as messages: numbered, kept while the router remembers the request, replayed to whoever sends the
same request again."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from sawyer.bus.protocol import Bus
from sawyer.errors import RequestConflict, SawyerError
from sawyer.ids import RequestId
from sawyer.schemas.messages import Accepted, Delta, Done, Failed, InferMessage, Trace

MAX_KEPT_REQUESTS: Final = 256
MAX_KEPT_BYTES: Final = 64 * 1024 * 1024
"""Of all ended answers together: with log probabilities and traces a single one may take megabytes."""

log = logging.getLogger(__name__)

Event = Accepted | Delta | Trace | Done | Failed


@dataclass
class AnswerStream:
    """One request's events, to all who asked for it. `content` tells a resend from another request under its id."""

    request: RequestId
    content: tuple[str, ...]
    listeners: list[str] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    kept_bytes: int = 0
    ended: bool = False

    @property
    def next_n(self) -> int:
        return len(self.messages)

    async def send(self, bus: Bus, event: Event) -> None:
        """Keep and publish. A listener that cannot be reached loses nothing: it may ask again."""
        raw = InferMessage(e=event).canonical()
        self.messages.append(raw)
        self.kept_bytes += len(raw)
        self.ended = isinstance(event, Done | Failed)
        for inbox in list(self.listeners):
            try:
                await bus.publish(inbox, raw)
            except SawyerError as error:
                log.warning("cannot stream to %s: %s", inbox, error)
                self.listeners.remove(inbox)

    async def attach(self, bus: Bus, inbox: str) -> None:
        """Send all there is so far, and from now on what comes."""
        sent = 0
        while sent < len(self.messages):
            await bus.publish(inbox, _repeated(self.messages[sent]))
            sent += 1
        if not self.ended:
            self.listeners.append(inbox)


@dataclass
class AnswerStreams:
    """The requests that this router remembers. The oldest ended ones are forgotten first."""

    _known: OrderedDict[RequestId, AnswerStream] = field(default_factory=OrderedDict)

    def find(self, request: RequestId, content: tuple[str, ...]) -> AnswerStream | None:
        """The stream of a request that was sent before. Raises RequestConflict if the id carried other content."""
        known = self._known.get(request)
        if known is not None and known.content != content:
            raise RequestConflict(f"request {request} was sent before with other content")
        return known

    def open(self, request: RequestId, content: tuple[str, ...], inbox: str) -> AnswerStream:
        """A new stream, with its first listener."""
        made = AnswerStream(request, content, [inbox])
        self._known[request] = made
        self.trim()
        return made

    def trim(self) -> None:
        """Forget ended ones, the oldest first, until the rest is within both bounds."""
        ended = [(request, stream.kept_bytes) for request, stream in self._known.items() if stream.ended]
        kept_bytes = sum(size for _, size in ended)
        for request, size in ended:
            if len(self._known) <= MAX_KEPT_REQUESTS and kept_bytes <= MAX_KEPT_BYTES:
                return
            del self._known[request]
            kept_bytes -= size

    def forget(self, request: RequestId) -> None:
        """A request that failed before anything was billed may be sent again under its id."""
        self._known.pop(request, None)


def _repeated(raw: bytes) -> bytes:
    message = InferMessage.model_validate_json(raw)
    if isinstance(message.e, Accepted):
        return InferMessage(e=message.e.model_copy(update={"repeated": True})).canonical()
    return raw
