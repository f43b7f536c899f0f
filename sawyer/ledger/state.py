"""What the writer knows: the projections of the book, in memory, and nothing beside them. Owns their set and order.

It grows with members, accounts and grants, not with requests: about those that ended it asks `past`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from sawyer.ledger.merkle import Tree
from sawyer.projections.audit_chain import AuditChain
from sawyer.projections.balances import Balances, RequestRow
from sawyer.projections.entries import Entries
from sawyer.projections.fold import Entry, Fold
from sawyer.projections.nodes import Nodes
from sawyer.projections.payouts import Payouts
from sawyer.projections.registry import Registry
from sawyer.projections.usage import Usage

Past = Callable[[str], RequestRow | None]
"""A request's id -> what it came to, if it ended before what the state remembers; None if there was no such request."""


def no_past(_: str) -> RequestRow | None:
    """Of a book that is all in memory."""
    return None


class State:
    """All folds at one position of one network's book. `ledger_vkey` is the key that its first checkpoints verify with,
    `operator` the only key that may found it; "" where the caller trusts none, then any operator key may."""

    def __init__(self, network: str, ledger_vkey: str, operator: str, past: Past = no_past, tree: Tree | None = None):
        self.network = network
        self.ledger_vkey = ledger_vkey
        self.operator = operator
        self.past = past
        self.tree = tree or Tree()
        self._digest: str | None = None
        self.registry = Registry()
        self.nodes = Nodes()
        self.balances = Balances()
        self.payouts = Payouts()
        self.usage = Usage()
        self.entries = Entries()
        self.audit = AuditChain(self.tree)
        self.folds: tuple[Fold, ...] = (
            self.registry, self.nodes, self.balances, self.payouts, self.usage, self.entries, self.audit,
        )  # fmt: skip

    def apply(self, entry: Entry) -> None:
        """Fold one entry in."""
        self._digest = None
        for fold in self.folds:
            fold.apply(entry)

    def request(self, request: str) -> RequestRow | None:
        """What is known of a request: held, ended, or None if it was never reserved for."""
        balances = self.balances
        return balances.open_requests.get(request) or balances.ended.get(request) or self.past(request)

    def digest(self) -> str:
        """SHA-256 over `<view> <digest of its rows>`, a line each, in order of the views' names: what a snapshot
        commits to. The head row of audit_chain holds the size and the root of the tree. Computed once at each size."""
        if self._digest is None:
            lines = (f"{fold.name} {fold.digest()}\n" for fold in sorted(self.folds, key=lambda fold: fold.name))
            self._digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        return self._digest
