"""What the writer knows: the projections of the book, in memory, and nothing beside them. Owns their set and order."""

from __future__ import annotations

from sawyer.ledger.merkle import Tree
from sawyer.projections.audit_chain import AuditChain
from sawyer.projections.balances import Balances
from sawyer.projections.entries import Entries
from sawyer.projections.fold import Entry, Fold
from sawyer.projections.nodes import Nodes
from sawyer.projections.payouts import Payouts
from sawyer.projections.registry import Registry


class State:
    """All folds at one position of one network's book. `ledger_vkey` is the key this book's checkpoints verify with,
    `operator` the only key that may found it; "" where the caller trusts none, then any operator key may."""

    def __init__(self, network: str, ledger_vkey: str, operator: str) -> None:
        self.network = network
        self.ledger_vkey = ledger_vkey
        self.operator = operator
        self.tree = Tree()
        self.registry = Registry()
        self.nodes = Nodes()
        self.balances = Balances()
        self.payouts = Payouts()
        self.entries = Entries()
        self.audit = AuditChain(self.tree)

    @property
    def folds(self) -> tuple[Fold, ...]:
        return (self.registry, self.nodes, self.balances, self.payouts, self.entries, self.audit)

    def apply(self, entry: Entry) -> dict[str, set[str]]:
        """Fold one entry in. View name -> keys of the rows that changed."""
        return {fold.name: fold.apply(entry) for fold in self.folds}
