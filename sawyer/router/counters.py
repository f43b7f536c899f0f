"""What one router asked of nodes and experts since it started, counted while layers are out. Additions of integers
only: it lies on the path of every layer. No IO, and no bill is made from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from sawyer.ids import NodeId
from sawyer.schemas.histogram import Histogram
from sawyer.schemas.metrics import AskedLayer, AskedNode

MAX_REASONS: Final = 32
"""Kinds of errors told apart of one node: it names them, and what is beyond is counted as OTHER."""
OTHER: Final = "other"


@dataclass(slots=True)
class _Node:
    messages: int = 0
    rows: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    hedges: int = 0
    takeovers: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)


@dataclass(slots=True)
class _Expert:
    rows: int = 0
    messages: int = 0
    sum_us: int = 0
    takeovers: int = 0


@dataclass
class Counters:
    """For one event loop. Layers, experts and nodes are counted from their first message on."""

    _nodes: dict[NodeId, _Node] = field(default_factory=dict)
    _experts: dict[tuple[int, int], _Expert] = field(default_factory=dict)

    def sent(self, node: NodeId, size_bytes: int, *, hedge: bool) -> None:
        """One message to a node. `hedge`: because another is slow."""
        counted = self._node(node)
        counted.messages += 1
        counted.bytes_out += size_bytes
        counted.hedges += hedge

    def received(self, node: NodeId, size_bytes: int, took_us: int) -> None:
        """One answer that is whole, used or not."""
        counted = self._node(node)
        counted.bytes_in += size_bytes
        counted.latency.add(took_us)

    def used(self, node: NodeId, layer: int, work: Iterable[tuple[int, int]], took_us: int) -> None:
        """Rows of an answer that enter the result: (expert, rows) each."""
        total = 0
        for expert, rows in work:
            counted = self._experts.get((layer, expert))
            if counted is None:
                counted = self._experts[layer, expert] = _Expert()
            counted.rows += rows
            counted.messages += 1
            counted.sum_us += took_us
            total += rows
        self._node(node).rows += total

    def lost(self, node: NodeId, reason: str) -> None:
        """One message that this node did not answer, or answered wrong."""
        errors = self._node(node).errors
        errors[reason if reason in errors or len(errors) < MAX_REASONS else OTHER] += 1

    def taken_over(self, node: NodeId, layer: int, expert: int) -> None:
        """What this node had been asked of an expert was answered by another."""
        self._node(node).takeovers += 1
        self._experts.setdefault((layer, expert), _Expert()).takeovers += 1

    def nodes(self) -> tuple[AskedNode, ...]:
        """By name."""
        return tuple(
            AskedNode(
                node=name,
                messages=each.messages,
                rows=each.rows,
                bytes_out=each.bytes_out,
                bytes_in=each.bytes_in,
                hedges=each.hedges,
                takeovers=each.takeovers,
                errors=dict(sorted(each.errors.items())),
                latency=each.latency.told(),
            )
            for name, each in sorted(self._nodes.items())
        )

    def layers(self, layers: Sequence[int], experts: int) -> tuple[AskedLayer, ...]:
        """Of these layers, each with so many experts."""
        never = _Expert()
        told = []
        for layer in layers:
            found = [self._experts.get((layer, expert), never) for expert in range(experts)]
            told.append(
                AskedLayer(
                    layer=layer,
                    rows=tuple([each.rows for each in found]),
                    messages=tuple([each.messages for each in found]),
                    sum_us=tuple([each.sum_us for each in found]),
                    takeovers=tuple([each.takeovers for each in found]),
                )
            )
        return tuple(told)

    def _node(self, node: NodeId) -> _Node:
        counted = self._nodes.get(node)
        if counted is None:
            counted = self._nodes[node] = _Node()
        return counted
