"""A state as bytes, so that a writer need not fold a long book from its first entry. Owns the form and the checking.

Believed only where the book commits to it: an entry `snapshot.taken.v1`, signed by the ledger key and a leaf of the
tree, names its digest, and the tree in the copy must lead to the root that the newest checkpoint signs. A copy that
does not fit is no harm: the book is read from the start."""

from __future__ import annotations

from typing import Final

import msgspec

from sawyer.errors import BookCorrupt, NotCanonical
from sawyer.ledger.commands import claims
from sawyer.ledger.entry import StoredRow, check_columns, decode_entry
from sawyer.ledger.membership import authorise_ledger
from sawyer.ledger.merkle import Tree
from sawyer.ledger.state import State
from sawyer.projections.fold import ROWS_VERSION
from sawyer.schemas.base import UNREADABLE, Count, Positive
from sawyer.schemas.events import SnapshotTaken

SNAPSHOT_ENTRIES: Final = 50_000
"""How many entries there are between two snapshots: about two seconds of folding."""


class Snapshot(msgspec.Struct):
    """`size` entries and `checkpoints` checkpoints come to these rows and this tree; the `version`-th entry of the
    stream
    of snapshots says so."""

    rows_version: Count
    version: Positive
    size: Positive
    checkpoints: Positive
    tree: bytes
    views: dict[str, list[tuple[str, bytes]]]


def commitment(state: State) -> SnapshotTaken:
    """What the ledger says of this state."""
    return SnapshotTaken(network=state.network, size=state.tree.size, rows=ROWS_VERSION, digest=state.digest())


def committed(snapshot: Snapshot, row: StoredRow, network: str, ledger_vkey: str, operator: str) -> State:
    """The state in a snapshot, if this row is the entry after it in which the ledger commits to it. Raises BookCorrupt,
    NotAuthorised, VerificationError."""
    entry = decode_entry(row.state)
    check_columns(row, entry)
    state = restore(snapshot, network, ledger_vkey, operator)
    if entry.body != commitment(state) or entry.prev != state.audit.head.leaf:
        raise BookCorrupt(f"entry {entry.seq} commits to another state than the snapshot's", seq=entry.seq)
    authorise_ledger(state, entry.signer)
    for claim in claims(entry.kind, entry.body, entry.statement, entry.attestations):
        claim.check()
    return state


def dump(state: State, version: int, checkpoints: int) -> bytes:
    """The state as bytes; `version` is that of the entry that commits to it."""
    views = {fold.name: list(fold.encoded_rows()) for fold in state.folds}
    return msgspec.msgpack.encode(
        Snapshot(ROWS_VERSION, version, state.tree.size, checkpoints, state.tree.dump(), views)
    )


def read(raw: bytes) -> Snapshot:
    """Raises BookCorrupt for bytes that are no snapshot, or one of another version of the rows."""
    try:
        snapshot = msgspec.msgpack.decode(raw, type=Snapshot)
    except UNREADABLE as error:
        raise BookCorrupt(f"not a snapshot: {error}") from error
    if snapshot.rows_version != ROWS_VERSION:
        raise BookCorrupt(f"a snapshot of rows of version {snapshot.rows_version}, this Sawyer makes {ROWS_VERSION}")
    return snapshot


def restore(snapshot: Snapshot, network: str, ledger_vkey: str, operator: str) -> State:
    """The state in a snapshot. Its digest is computed from what was restored: compare it. Raises BookCorrupt."""
    try:
        tree = Tree.load(snapshot.tree)
        state = State(network, ledger_vkey, operator, tree=tree)
        for fold in state.folds:
            fold.load(snapshot.views[fold.name])
    except (*UNREADABLE, NotCanonical, KeyError, ValueError, TypeError) as error:
        raise BookCorrupt(f"a snapshot that cannot be restored: {error}") from error
    if (tree.size, state.audit.head.seq) != (snapshot.size, snapshot.size):
        raise BookCorrupt(f"a snapshot of {snapshot.size} entries with a tree of {tree.size}")
    return state
