"""Where the time of one request went: sums, layer by layer and node by node, as it goes; and the last requests that a
router remembers. Times and counts only: no text, no token, no account. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, Literal

from sawyer.ids import NodeId, RequestId
from sawyer.schemas.traces import RequestTrace, TracedLayer, TracedNode

MAX_TRACES: Final = 128
"""Requests that a router remembers the times of: some 10 KB each for a model of 32 layers."""

State = Literal["running", "completed", "failed", "cancelled"]


@dataclass(slots=True)
class _Layer:
    passes: int = 0
    attend_us: int = 0
    experts_us: int = 0
    rows: int = 0
    messages: int = 0
    hedges: int = 0
    takeovers: int = 0
    slowest: NodeId | None = None
    slowest_us: int = 0


@dataclass(slots=True)
class _Node:
    messages: int = 0
    rows: int = 0
    round_trip_us: int = 0
    compute_us: int = 0
    slowest_us: int = 0


@dataclass(eq=False, slots=True)
class RequestTimes:
    """Of one request, all in microseconds. What many requests waited for together counts for each of them."""

    started_ms: int = 0
    state: State = "running"
    input_tokens: int = 0
    output_tokens: int = 0
    queue_us: int = 0
    check_us: int = 0
    room_us: int = 0
    reserve_us: int = 0
    prefill_us: int = 0
    decode_us: int = 0
    sample_us: int = 0
    head_us: int = 0
    receipts_us: int = 0
    posting_us: int = 0
    _layers: dict[int, _Layer] = field(default_factory=dict)
    _nodes: dict[NodeId, _Node] = field(default_factory=dict)

    def decoded(self, prefill_s: float, decode_s: float, tokens: int) -> None:
        """So many tokens are there: the first after `prefill_s`, the others `decode_s` later."""
        self.prefill_us, self.decode_us, self.output_tokens = int(prefill_s * 1e6), int(decode_s * 1e6), tokens

    def passed(self, layer: int, attend_us: int, experts_us: int) -> None:
        """One pass went through a layer: attention and gate here, then experts elsewhere."""
        counted = self._layer(layer)
        counted.passes += 1
        counted.attend_us += attend_us
        counted.experts_us += experts_us

    def answered(self, layer: int, node: NodeId, rows: int, round_trip_us: int, compute_us: int) -> None:
        """One message was answered, and so many rows of this request were in it."""
        counted = self._layer(layer)
        counted.rows += rows
        counted.messages += 1
        if round_trip_us > counted.slowest_us:
            counted.slowest, counted.slowest_us = node, round_trip_us
        asked = self._nodes.get(node)
        if asked is None:
            asked = self._nodes[node] = _Node()
        asked.messages += 1
        asked.rows += rows
        asked.round_trip_us += round_trip_us
        asked.compute_us += compute_us
        asked.slowest_us = max(asked.slowest_us, round_trip_us)

    def hedged(self, layer: int) -> None:
        """Another node was asked, too, because one is slow."""
        self._layer(layer).hedges += 1

    def taken_over(self, layer: int) -> None:
        """Another node answered for one that was lost or late."""
        self._layer(layer).takeovers += 1

    def told(self, request: RequestId, router: str, model: str) -> RequestTrace:
        """As a message."""
        return RequestTrace(
            request=request, router=router, model=model, started_ms=self.started_ms, state=self.state,
            input_tokens=self.input_tokens, output_tokens=self.output_tokens,
            queue_us=self.queue_us, check_us=self.check_us, room_us=self.room_us, reserve_us=self.reserve_us,
            prefill_us=self.prefill_us, decode_us=self.decode_us, sample_us=self.sample_us, head_us=self.head_us,
            receipts_us=self.receipts_us, posting_us=self.posting_us,
            layers=tuple(
                TracedLayer(
                    layer=layer, passes=each.passes, attend_us=each.attend_us, experts_us=each.experts_us,
                    rows=each.rows, messages=each.messages, hedges=each.hedges, takeovers=each.takeovers,
                    slowest=each.slowest, slowest_us=each.slowest_us,
                )
                for layer, each in sorted(self._layers.items())
            ),
            nodes=tuple(
                TracedNode(
                    node=node, messages=each.messages, rows=each.rows, round_trip_us=each.round_trip_us,
                    compute_us=each.compute_us, slowest_us=each.slowest_us,
                )
                for node, each in sorted(self._nodes.items())
            ),
        )  # fmt: skip

    def _layer(self, layer: int) -> _Layer:
        counted = self._layers.get(layer)
        if counted is None:
            counted = self._layers[layer] = _Layer()
        return counted


@dataclass
class Traces:
    """The times of the last MAX_TRACES requests that were admitted; the oldest are forgotten first."""

    _known: OrderedDict[RequestId, RequestTimes] = field(default_factory=OrderedDict)

    def keep(self, request: RequestId, times: RequestTimes) -> None:
        """From now on it can be asked for."""
        self._known[request] = times
        self._known.move_to_end(request)
        while len(self._known) > MAX_TRACES:
            self._known.popitem(last=False)

    def find(self, request: RequestId) -> RequestTimes | None:
        return self._known.get(request)
