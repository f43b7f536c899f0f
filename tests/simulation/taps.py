"""What the router told its clients, as it was sent: whether it arrived or not."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from simulation.plan import ROUTER

from sawyer.bus.protocol import Message
from sawyer.errors import SawyerError
from sawyer.ids import RequestId
from sawyer.schemas import subjects
from sawyer.schemas.messages import Delta, InferMessage, InferRequest
from sawyer.schemas.session_rows import SummedRows, decode_session


@dataclass
class Sent:
    """By request: the ids that were told, each by its place among the events."""

    _of_inbox: dict[str, RequestId] = field(default_factory=dict)
    _raw: dict[RequestId, list[bytes]] = field(default_factory=dict)

    _rows_of: set[str] = field(default_factory=set)
    _steps: dict[RequestId, int] = field(default_factory=dict)

    def _hear_rows(self, raw: bytes) -> None:
        with contextlib.suppress(SawyerError):
            sums = decode_session(raw, SummedRows)
            self._steps[sums.request] = max(self._steps.get(sums.request, 0), sums.step + 1)

    def hear(self, who: str, message: Message) -> None:
        """A message leaves its sender."""
        if message.subject.startswith("sawyer.v1.infer."):
            order = InferRequest.model_validate_json(message.data).order.body
            self._of_inbox[message.reply] = RequestId(order.request)
        elif message.subject == subjects.activate(ROUTER):
            self._rows_of.add(message.reply)
        elif who == ROUTER and message.subject in self._rows_of:
            self._hear_rows(message.data)
        elif who == ROUTER and message.subject in self._of_inbox:
            self._raw.setdefault(self._of_inbox[message.subject], []).append(message.data)

    def ids(self, request: RequestId) -> int:
        """How many tokens the client was sent of this request, each counted once."""
        events = {}
        for raw in self._raw.get(request, ()):
            event = InferMessage.model_validate_json(raw).e
            if isinstance(event, Delta):
                events[event.n] = len(event.ids)
        return max(sum(events.values()), self._steps.get(request, 0))
