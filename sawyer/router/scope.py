"""Whose rows travel: what one request carries through all its layers. Sends nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from sawyer.ids import NodeId, RequestId
from sawyer.router.metering import Meter
from sawyer.router.times import RequestTimes
from sawyer.schemas.messages import Takeover


@dataclass
class RequestScope:
    """What one request carries through all its layers: meter, sequence numbers a node, takeovers. `traced`: what its
    layers asked of nodes is told."""

    request: RequestId
    meter: Meter
    asked: set[NodeId] = field(default_factory=set)
    sequences: Counter[NodeId] = field(default_factory=Counter)
    takeovers: dict[tuple[NodeId, NodeId], Takeover] = field(default_factory=dict)
    step: int = 0
    traced: bool = False
    times: RequestTimes = field(default_factory=RequestTimes)

    def trial(self, ahead: int) -> RequestScope:
        """For rows so many steps ahead, which may turn out to be of no use: with a meter of its own."""
        return replace(self, meter=self.meter.trial(), step=self.step + ahead)


class Share(NamedTuple):
    """Whose rows these are: as many of a layer's rows as this says, after those of the shares before it. They are used
    together, or none of them; a request may have several shares."""

    scope: RequestScope
    rows: int
