"""Where the chain stands: head, tree root, stream versions, and how many entries of which kind and signer there are."""

from __future__ import annotations

from typing import ClassVar, Protocol, cast

from sawyer.projections.fold import Entry, Fold, Row
from sawyer.schemas.base import encode_canonical
from sawyer.schemas.events import (
    NO_HASH,
    InferenceCompleted,
    ReservationExpired,
    ReservationVoided,
)

HEAD: str = "head"
_ENDS = (InferenceCompleted, ReservationVoided, ReservationExpired)
"""What is the last of its request's stream."""


class Tree(Protocol):
    """The Merkle tree over the entries, as far as this fold needs it (sawyer.ledger.merkle has it)."""

    def append(self, leaf: bytes) -> None:
        """Add one 32-byte leaf hash."""

    def root(self) -> bytes:
        """The 32-byte root."""


class HeadRow(Row):
    """Of the live head `root` is empty, and filled in where the row is written down."""

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
    """Key `stream:<stream>`, while it may grow: a request's ends with it."""

    version: int


class AuditChain(Fold):
    """The chain as rows. It appends to the tree that it is given."""

    name: ClassVar[str] = "audit_chain"
    row_types: ClassVar[dict[str, type[Row]]] = {
        HEAD: HeadRow, "kind": KindRow, "signer": SignerRow, "stream": StreamRow,
    }  # fmt: skip

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self.head = HeadRow()
        self._tree = tree

    @property
    def kinds(self) -> dict[str, KindRow]:
        """How many entries there are of each kind."""
        rows = ((key, row) for key, row in self.rows.items() if isinstance(row, KindRow))
        return {key.removeprefix("kind:"): row for key, row in rows}

    def version(self, stream: str) -> int:
        """How many entries a stream has; 0 too for a request that ended."""
        row = cast("StreamRow | None", self.rows.get(f"stream:{stream}"))
        return row.version if row else 0

    def apply(self, entry: Entry) -> None:
        """See Fold.apply."""
        self._tree.append(bytes.fromhex(entry.leaf))
        head = self.head
        head.seq, head.leaf, head.ts_ms = entry.seq, entry.leaf, entry.ts_ms
        self.rows[HEAD] = head
        self.changed.add(HEAD)
        self._count(entry)
        key = f"stream:{entry.stream}"
        if not isinstance(entry.body, _ENDS):
            self.put(key, StreamRow(entry.version))
        elif key in self.rows:
            self.remove(key)

    def _count(self, entry: Entry) -> None:
        key = f"kind:{entry.kind}"
        kind = self.rows.get(key)
        if kind is None:
            kind = self.rows[key] = KindRow(0, entry.body is not None)
        kind.entries += 1  # type: ignore[attr-defined]
        self.changed.add(key)
        attestation = entry.attestations[0]
        key = f"signer:{attestation.key_id}"
        signer = self.rows.get(key)
        if signer is None:
            signer = self.rows[key] = SignerRow(0, attestation.by)
        signer.entries += 1  # type: ignore[attr-defined]
        signer.by = attestation.by  # type: ignore[attr-defined]
        self.changed.add(key)

    def restore(self, key: str, row: Row) -> None:
        """See Fold.restore."""
        super().restore(key, row)
        if isinstance(row, HeadRow):
            self.head = row

    def encoded(self, key: str) -> bytes | None:
        """See Fold.encoded. The root is costly, and asked for here only."""
        if key == HEAD and HEAD in self.rows:
            head = self.head
            return encode_canonical(HeadRow(head.seq, head.leaf, self._tree.root().hex(), head.ts_ms))
        return super().encoded(key)
