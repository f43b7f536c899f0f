"""Which node belongs to which host and key, and where its chain of receipts stands. Health is no fact of the book.

A node signs its receipts one after another; requests run side by side, so their entries may come in another order. A
counter that was skipped stays open as a gap until its receipt comes, and the chain of hashes is checked on both sides
of it. A gap that stays is a receipt that was never delivered: it shows.
Beyond MAX_GAPS the oldest is given up, for good.
"""

from __future__ import annotations

from hashlib import sha256
from typing import ClassVar, Final, cast

import msgspec

from sawyer.projections.fold import Entry, Fold, Row
from sawyer.schemas.events import NO_HASH, InferenceCompleted, KeyRotated, NodeRegistered, WorkReceipted
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
    that are missing, ascending. `given_up` is the highest counter that is waited for no more. `former` are the keys
    that it had before this one: nobody else may take them."""

    host: str
    key: str
    device: str
    memory_mb: int
    promised_us: int
    seq: int
    counter: int = 0
    last_receipt: str = NO_HASH
    gaps: list[Gap] = msgspec.field(default_factory=list)
    given_up: int = 0
    former: list[str] = msgspec.field(default_factory=list)

    def refuses(self, receipt: Signed[WorkReceipted]) -> str:
        """Why this receipt does not fit the chain, or "". Source: ledger.md, receipts."""
        body = receipt.body
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
        if gap.digest not in ("", receipt_hash(receipt)):
            return f"is not the receipt {body.counter} that the next one follows"
        if gap.previous not in ("", body.previous):
            return f"does not follow receipt {body.counter - 1} of its node"
        return ""

    def receive(self, body: WorkReceipted, digest: str) -> None:
        """Take a receipt in that `refuses` has nothing against."""
        if body.counter == self.counter + 1:
            self.counter, self.last_receipt = body.counter, digest
            return
        if body.counter > self.counter:
            self._skip_to(body)
            self.counter, self.last_receipt = body.counter, digest
            return
        before, after = self._gap(body.counter - 1), self._gap(body.counter + 1)
        if before is not None:
            before.digest = body.previous
        if after is not None:
            after.previous = digest
        self.gaps = [gap for gap in self.gaps if gap.counter != body.counter]

    def _skip_to(self, body: WorkReceipted) -> None:
        """Wait for what is between the highest receipt and this one; only for the last of it where it skips more than
        may be waited for, however far ahead it claims to be."""
        first = max(self.counter + 1, body.counter - MAX_GAPS)
        skipped = [Gap(counter, "", "") for counter in range(first, body.counter)]
        if first == self.counter + 1:
            skipped[0].previous = self.last_receipt
        skipped[-1].digest = body.previous
        waiting = [*self.gaps, *skipped]
        if first > self.counter + 1:
            self.given_up = first - 1
        elif len(waiting) > MAX_GAPS:
            self.given_up = waiting[-MAX_GAPS - 1].counter
        self.gaps = waiting[-MAX_GAPS:]

    def _gap(self, counter: int) -> Gap | None:
        return next((gap for gap in self.gaps if gap.counter == counter), None)


class Nodes(Fold):
    """Key: the node id."""

    name: ClassVar[str] = "nodes"
    row_types: ClassVar[dict[str, type[Row]]] = {"": NodeRow}

    def __init__(self) -> None:
        super().__init__()
        self.by_key: dict[str, str] = {}

    @property
    def nodes(self) -> dict[str, NodeRow]:
        """Every registered node."""
        return cast("dict[str, NodeRow]", self.rows)

    def apply(self, entry: Entry) -> None:
        """See Fold.apply."""
        match entry.body:
            case InferenceCompleted() as body:
                nodes = self.nodes
                for receipt, signed in zip(body.receipts, entry.inner, strict=False):
                    nodes[receipt.body.node].receive(receipt.body, sha256(signed).hexdigest())
                    self.changed.add(receipt.body.node)
            case NodeRegistered() as body:
                row = NodeRow(body.host, body.key, body.device, body.memory_mb, body.promised_us, entry.seq)
                self.put(body.node, row)
                self.by_key[body.key] = body.node
            case KeyRotated() as body if body.role == "node":
                row = self.nodes[body.name]
                row.former.append(row.key)
                row.key = body.key
                self.by_key[body.key] = body.name
                self.changed.add(body.name)

    def restore(self, key: str, row: Row) -> None:
        """See Fold.restore."""
        super().restore(key, row)
        node = cast("NodeRow", row)
        self.by_key.update(dict.fromkeys((*node.former, node.key), key))


def receipt_hash(receipt: Signed[WorkReceipted]) -> str:
    """What a node's next receipt names as `previous`: SHA-256 of the canonical signed statement."""
    return sha256(receipt.canonical()).hexdigest()
