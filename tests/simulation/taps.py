"""What the router told its clients, as it was sent: whether it arrived or not."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulation.plan import ROUTER

from sawyer.bus.protocol import Message
from sawyer.ids import RequestId
from sawyer.schemas.messages import Delta, InferMessage, InferRequest


@dataclass
class Sent:
    """By request: the ids that were told, each by its place among the events."""

    _of_inbox: dict[str, RequestId] = field(default_factory=dict)
    _raw: dict[RequestId, list[bytes]] = field(default_factory=dict)

    def hear(self, who: str, message: Message) -> None:
        """A message leaves its sender."""
        if message.subject.startswith("sawyer.v1.infer."):
            order = InferRequest.model_validate_json(message.data).order.body
            self._of_inbox[message.reply] = RequestId(order.request)
        elif who == ROUTER and message.subject in self._of_inbox:
            self._raw.setdefault(self._of_inbox[message.subject], []).append(message.data)

    def ids(self, request: RequestId) -> int:
        """How many tokens the client was sent of this request, each counted once."""
        events = {}
        for raw in self._raw.get(request, ()):
            event = InferMessage.model_validate_json(raw).e
            if isinstance(event, Delta):
                events[event.n] = len(event.ids)
        return sum(events.values())
