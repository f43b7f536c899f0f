"""Which node belongs to which host and key, and where its chain of receipts stands. Health is no fact of the book.

A node signs its receipts one after another; requests run side by side, so their entries may come in another order. A
counter that was skipped stays open as a gap until its receipt comes, and the chain of hashes is checked on both sides
of it. A gap that stays is a receipt that was never delivered: it shows.
Beyond MAX_GAPS the oldest is given up, for good.
"""

from __future__ import annotations

import hashlib
from typing import ClassVar, Final

import msgspec

from sawyer.projections.fold import Entry, Fold, Row
from sawyer.schemas.events import NO_HASH, InferenceCompleted, NodeRegistered, WorkReceipted
from sawyer.schemas.signed import Signed

MAX_GAPS: Final = 256
"""Receipts of one node that the book waits for, and the most that one receipt may skip."""


class Gap(msgspec.Struct, array_like=True):
    """A receipt that the book does not hold, below one that it does. What its neighbours say, or "": `digest` is its
    hash (as named by its successor), `previous` the hash of its predecessor."""

    counter: int
    digest: str
    previous: str


class NodeRow(Row):
    """`counter` is the highest of this node's receipts in the book, `last_receipt` its SHA-256, `gaps` those below it
    that are missing, ascending. `given_up` is the highest counter that is waited for no more."""

    host: str
    key: str
    device: str
    memory_mb: int
    seq: int
    counter: int = 0
    last_receipt: str = NO_HASH
    gaps: list[Gap] = msgspec.field(default_factory=list)
    given_up: int = 0

    def refuses(self, body: WorkReceipted, digest: str) -> str:
        """Why this receipt does not fit the chain, or "". Source: ledger.md, receipts."""
        if body.counter == self.counter + 1:
            return "" if body.previous == self.last_receipt else f"does not follow receipt {self.counter} of its node"
        if body.counter > self.counter:
            skipped = body.counter - self.counter - 1
            return f"skips {skipped} receipts, and at most {MAX_GAPS} may be missing" if skipped > MAX_GAPS else ""
        gap = self._gap(body.counter)
        if gap is None and body.counter <= self.given_up:
            return f"has counter {body.counter}: what had not come up to counter {self.given_up} was given up"
        if gap is None:
            return f"has counter {body.counter}, which was used before"
        if gap.digest not in ("", digest):
            return f"is not the receipt {body.counter} that the next one follows"
        if gap.previous not in ("", body.previous):
            return f"does not follow receipt {body.counter - 1} of its node"
        return ""

    def receive(self, body: WorkReceipted, digest: str) -> None:
        """Take a receipt in that `refuses` has nothing against."""
        if body.counter > self.counter:
            skipped = [Gap(counter, "", "") for counter in range(self.counter + 1, body.counter)]
            if skipped:
                skipped[0].previous, skipped[-1].digest = self.last_receipt, body.previous
            waiting = [*self.gaps, *skipped]
            if len(waiting) > MAX_GAPS:
                self.given_up = waiting[-MAX_GAPS - 1].counter
            self.gaps = waiting[-MAX_GAPS:]
            self.counter, self.last_receipt = body.counter, digest
            return
        before, after = self._gap(body.counter - 1), self._gap(body.counter + 1)
        if before is not None:
            before.digest = body.previous
        if after is not None:
            after.previous = digest
        self.gaps = [gap for gap in self.gaps if gap.counter != body.counter]

    def _gap(self, counter: int) -> Gap | None:
        return next((gap for gap in self.gaps if gap.counter == counter), None)


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
        row.receive(receipt.body, receipt_hash(receipt))
        return receipt.body.node


def receipt_hash(receipt: Signed[WorkReceipted]) -> str:
    """What a node's next receipt names as `previous`: SHA-256 of the canonical signed statement."""
    return hashlib.sha256(receipt.canonical()).hexdigest()
