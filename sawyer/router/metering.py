"""What one request used of each node: counted as answers are used, checked against the nodes' receipts. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from sawyer.errors import VerificationError
from sawyer.identity.envelope import check_signed
from sawyer.ids import NodeId
from sawyer.ledger.merkle import tree_root
from sawyer.schemas.events import RECEIPT_KIND, NodeLatency, NodeRows, WorkReceipted
from sawyer.schemas.messages import Finish
from sawyer.schemas.signed import Signed

CALLS_TIMED: Final = 65_536
"""Calls whose times are kept of one node in one request."""


@dataclass
class CallTimes:
    """How long the calls to one node took: all of them, and beyond CALLS_TIMED evenly spaced ones."""

    _kept: array[int] = field(default_factory=lambda: array("Q"))
    _calls: int = 0
    _every: int = 1

    def add(self, took_us: int) -> None:
        """One call, from send to reply."""
        if self._calls % self._every == 0:
            self._kept.append(max(1, took_us))
        self._calls += 1
        if len(self._kept) >= CALLS_TIMED:
            self._kept = self._kept[::2]
            self._every *= 2

    def p95_us(self) -> int:
        """The 95th percentile by nearest rank: the shortest time that 95 % of the calls did not exceed."""
        ordered = sorted(self._kept)
        return ordered[-(-95 * len(ordered) // 100) - 1]


@dataclass
class NodeMeter:
    """One node's used answers: sequence number -> leaf hashes of its blocks, in expert order."""

    rows: int = 0
    answers: dict[int, tuple[bytes, ...]] = field(default_factory=dict)

    def root(self) -> str:
        """The Merkle root (hex) that an honest receipt over these answers holds."""
        return tree_root([leaf for sequence in sorted(self.answers) for leaf in self.answers[sequence]]).hex()


@dataclass
class Meter:
    """One request's use of all nodes."""

    request: str
    model: str
    nodes: dict[NodeId, NodeMeter] = field(default_factory=dict)
    times: dict[NodeId, CallTimes] = field(default_factory=dict)

    def used(self, node: NodeId, sequence: int, leaves: tuple[bytes, ...], rows: int) -> None:
        """An answer went into the result."""
        meter = self.nodes.setdefault(node, NodeMeter())
        meter.answers[sequence] = leaves
        meter.rows += rows

    def timed(self, node: NodeId, took_us: int) -> None:
        """An answer came so long after its call was sent, whether it was used or another had come first."""
        self.times.setdefault(node, CallTimes()).add(took_us)

    def trial(self) -> Meter:
        """A meter for rows that may turn out to be of no use. The times of calls are the same for both."""
        return Meter(self.request, self.model, times=self.times)

    def add(self, trial: Meter) -> None:
        """Its rows are of use."""
        for node, theirs in trial.nodes.items():
            ours = self.nodes.setdefault(node, NodeMeter())
            ours.rows += theirs.rows
            ours.answers |= theirs.answers

    def latencies(self, nodes: Iterable[NodeId]) -> tuple[NodeLatency, ...]:
        """The p95 of the calls of each of these nodes, in their order. Each has answered."""
        return tuple(NodeLatency(node=node, p95_us=self.times[node].p95_us()) for node in nodes)

    def finish(self, node: NodeId) -> Finish:
        """What to tell a node at the end: the answers that were used (none, for a node that was only asked)."""
        meter = self.nodes.get(node, NodeMeter())
        return Finish(request=self.request, model=self.model, used=tuple(runs(sorted(meter.answers))))

    def check(self, receipt: Signed[WorkReceipted], node: NodeId, key: str, manifest: str) -> None:
        """Raises VerificationError unless this is the node's word for exactly what we used."""
        meter, body = self.nodes[node], receipt.body
        if receipt.signature.key_id != key:
            raise VerificationError(f"receipt of {node} is signed by {receipt.signature.key_id}, expected {key}")
        check_signed(receipt, RECEIPT_KIND)
        expected = (node, self.request, self.model, manifest, meter.rows, meter.root())
        got = (body.node, body.request, body.model, body.manifest, body.rows, body.root)
        if got != expected:
            raise VerificationError(f"receipt of {node} does not match what was used: expected {expected}, got {got}")

    def unreceipted(self, receipted: Iterable[NodeId]) -> tuple[NodeRows, ...]:
        """Rows that were used and have no valid receipt."""
        missing = sorted(set(self.nodes) - set(receipted))
        return tuple(NodeRows(node=node, rows=self.nodes[node].rows) for node in missing)


def runs(ascending: list[int]) -> list[tuple[int, int]]:
    """[1, 2, 3, 7] -> [(1, 3), (7, 7)]."""
    made: list[tuple[int, int]] = []
    for number in ascending:
        if made and made[-1][1] == number - 1:
            made[-1] = (made[-1][0], number)
        else:
            made.append((number, number))
    return made
