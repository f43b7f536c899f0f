"""Which node belongs to which host and key, and where its chain of receipts stands. Health is no fact of the book."""

from __future__ import annotations

import hashlib
from typing import ClassVar

from sawyer.projections.fold import Entry, Fold, Row
from sawyer.schemas.events import NO_HASH, InferenceCompleted, NodeRegistered, WorkReceipted
from sawyer.schemas.signed import Signed


class NodeRow(Row):
    """`counter` and `last_receipt` (SHA-256) are those of the last receipt that the book holds of this node."""

    host: str
    key: str
    device: str
    memory_mb: int
    seq: int
    counter: int = 0
    last_receipt: str = NO_HASH


class Nodes(Fold):
    """Key: the node id."""

    name: ClassVar[str] = "nodes"

    def __init__(self) -> None:
        super().__init__()
        self.nodes: dict[str, NodeRow] = {}
        self.by_key: dict[str, str] = {}

    def apply(self, entry: Entry) -> set[str]:
        """See Fold.apply."""
        match entry.body:
            case NodeRegistered() as body:
                row = NodeRow(body.host, body.key, body.device, body.memory_mb, entry.seq)
                self.nodes[body.node] = row
                self.rows[body.node] = row
                self.by_key[body.key] = body.node
                return {body.node}
            case InferenceCompleted() as body:
                return {self._receive(receipt) for receipt in body.receipts}
        return set()

    def _receive(self, receipt: Signed[WorkReceipted]) -> str:
        row = self.nodes[receipt.body.node]
        row.counter = receipt.body.counter
        row.last_receipt = receipt_hash(receipt)
        return receipt.body.node


def receipt_hash(receipt: Signed[WorkReceipted]) -> str:
    """What a node's next receipt names as `previous`: SHA-256 of the canonical signed statement."""
    return hashlib.sha256(receipt.canonical()).hexdigest()
