"""Where the chain stands: head, tree root, stream versions, and how many entries of which kind and signer there are."""

from __future__ import annotations

from typing import ClassVar, Protocol

from sawyer.projections.fold import Entry, Fold, Row
from sawyer.schemas.events import NO_HASH

HEAD: str = "head"


class Tree(Protocol):
    """The Merkle tree over the entries, as far as this fold needs it (sawyer.ledger.merkle has it)."""

    def append(self, leaf: bytes) -> None:
        """Add one 32-byte leaf hash."""

    def root(self) -> bytes:
        """The 32-byte root."""


class HeadRow(Row):
    seq: int = 0
    leaf: str = NO_HASH
    root: str = NO_HASH
    ts_ms: int = 0


class KindRow(Row):
    """Key `kind:<kind>`. `known` is false for kinds of a newer Sawyer, which folds skip."""

    entries: int
    known: bool


class SignerRow(Row):
    """Key `signer:<public key>`. `by` is the name it last signed with."""

    entries: int
    by: str


class StreamRow(Row):
    """Key `stream:<stream>`."""

    version: int


class AuditChain(Fold):
    """The chain as rows. It appends to the tree that it is given."""

    name: ClassVar[str] = "audit_chain"

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self.head = HeadRow()
        self.kinds: dict[str, KindRow] = {}
        self.signers: dict[str, SignerRow] = {}
        self.streams: dict[str, StreamRow] = {}
        self._tree = tree

    def version(self, stream: str) -> int:
        """How many entries a stream has."""
        row = self.streams.get(stream)
        return row.version if row else 0

    def apply(self, entry: Entry) -> set[str]:
        """See Fold.apply."""
        self._tree.append(bytes.fromhex(entry.leaf))
        self.head = HeadRow(entry.seq, entry.leaf, self._tree.root().hex(), entry.ts_ms)
        kind = self.kinds.setdefault(entry.kind, KindRow(0, entry.body is not None))
        kind.entries += 1
        signer = self.signers.setdefault(entry.signer.key_id, SignerRow(0, entry.signer.by))
        signer.entries += 1
        signer.by = entry.signer.by
        stream = self.streams.setdefault(entry.stream, StreamRow(0))
        stream.version = entry.version
        changed: dict[str, Row] = {
            HEAD: self.head,
            f"kind:{entry.kind}": kind,
            f"signer:{entry.signer.key_id}": signer,
            f"stream:{entry.stream}": stream,
        }
        self.rows.update(changed)
        return set(changed)
