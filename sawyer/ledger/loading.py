"""Reading a book into memory: from its newest snapshot if there is one that holds, else from its first entry.

Every entry's bytes, order and place are checked, and the last checkpoint; not every signature and decision: that is
replay's work. Owns no writing but the snapshot's file.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from sawyer import durable
from sawyer.errors import BookCorrupt, SawyerError, VerificationError, ViewDiffers
from sawyer.identity.keys import Key
from sawyer.ledger import snapshot
from sawyer.ledger.chain import check_covers, read_checkpoint, read_next, verifier_of, verifiers_of
from sawyer.ledger.checkpoint import Checkpoint, vkey_of
from sawyer.ledger.decide import SNAPSHOT_STREAM
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.merkle import leaf_hash
from sawyer.ledger.past import StoredPast
from sawyer.ledger.seek import entries_from
from sawyer.ledger.state import State
from sawyer.ledger.store import Store
from sawyer.ledger.views import Views
from sawyer.projections.audit_chain import HeadRow
from sawyer.projections.fold import Entry
from sawyer.schemas.events import NO_HASH

log = logging.getLogger(__name__)


@dataclass
class Loaded:
    """Memory at the end of the book: the state, how many checkpoints there are and the newest, the entry up to which
    the
    views go, and the size of the newest snapshot."""

    state: State
    checkpoints: int = 0
    note: str = ""
    views_size: int = 0
    snapshot_size: int = 0


class Loader:
    """Reads one book, as often as its writer has to."""

    def __init__(
        self,
        store: Store,
        network: str,
        operator: str,
        ledger_key: Key,
        past: StoredPast,
        views: Views | None,
        snapshots: Path | None,
        held: str | None,
    ) -> None:
        """`held`: a checkpoint that was kept. Raises VerificationError if it is of another ledger."""
        self._store = store
        self._network = network
        self._operator = operator
        self._vkey = vkey_of(network, ledger_key)
        self._past = past
        self._views = views
        self._snapshots = snapshots
        self._held = Checkpoint.read(held) if held is not None else None
        self._held_note = held

    def load(self) -> Loaded:
        """Raises BookCorrupt, ViewDiffers, VerificationError, SawyerError."""
        viewed = self._views.head() if self._views is not None else HeadRow()
        at, after = self._start()
        if self._views is not None and viewed.seq < at.state.tree.size:
            self._views.clear()  # older than the snapshot: made anew from it
            viewed = HeadRow()
            for fold in at.state.folds:
                fold.changed = set(fold.rows)
        leaf = self._read_rows(at, after, viewed)
        _check_trust(at.state, self._held)
        self._check_signer(at.state)
        _check_views(viewed, at.state, leaf)
        at.views_size = viewed.seq
        at.state.balances.ended.clear()
        return at

    def keep_snapshot(self, raw: bytes) -> None:
        """Keep a copy that the book commits to. A disk that cannot costs time at the next start, nothing else."""
        if self._snapshots is None:
            return
        try:
            durable.replace(self._snapshots, raw)
        except OSError as error:
            log.warning("cannot keep the snapshot %s: %s", self._snapshots, error)

    def _read_rows(self, at: Loaded, after: int, viewed: HeadRow) -> str:
        """Fold every entry after these rows in; the leaf of the entry that the views are at."""
        state, last = at.state, None
        leaf = state.audit.head.leaf if viewed.seq == state.tree.size else NO_HASH
        signer, next_signer = verifier_of(state), verifier_of(state)
        for row in self._store.rows(after):
            if row.is_checkpoint:
                at.checkpoints, last = at.checkpoints + 1, row
                signer, next_signer = next_signer, verifier_of(state)
                continue
            entry = _read_known(row, state)
            _fold_in(entry, state)
            state.balances.ended.clear()
            if self._held is not None and self._held.size == entry.seq:
                check_covers(self._held, state)
            if entry.seq == viewed.seq:
                leaf = entry.leaf
                for fold in state.folds:
                    fold.changed.clear()
        if last is not None:
            read_checkpoint(last, state, signer, at.checkpoints)
            at.note = last.state.decode()
        elif state.tree.size:
            raise BookCorrupt("entries without a checkpoint", seq=state.tree.size)
        return leaf

    def _start(self) -> tuple[Loaded, int]:
        """Where to begin: memory as the newest snapshot has it, and the number of the last row before the entry that
        commits to it. Empty memory and 0 where there is no snapshot that holds."""
        if self._snapshots is not None and self._snapshots.is_file():
            try:
                return self._from_snapshot(self._snapshots.read_bytes())
            except (SawyerError, OSError) as error:
                log.warning("reading the book from its first entry: %s", error)
        return Loaded(State(self._network, self._vkey, self._operator, self._past)), 0

    def _from_snapshot(self, raw: bytes) -> tuple[Loaded, int]:
        found = snapshot.read(raw)
        row = self._store.row(SNAPSHOT_STREAM, found.version)
        state = snapshot.committed(found, row, self._network, self._vkey, self._operator)
        state.past = self._past
        if self._held is not None and self._held.size <= found.size:
            self._check_held(state, self._held)
        number = self._store.number(SNAPSHOT_STREAM, found.version)
        if self._checkpoints_before(number) != found.checkpoints:
            raise BookCorrupt(f"a snapshot after {found.checkpoints} checkpoints: the book had others", seq=found.size)
        return Loaded(state, checkpoints=found.checkpoints, snapshot_size=found.size), number - 1

    def _checkpoints_before(self, number: int) -> int:
        """How many checkpoints stand before this row: the next one says."""
        after = next((row for row in self._store.rows(number, page_rows=2) if row.is_checkpoint), None)
        return after.version - 1 if after is not None else -1

    def _check_signer(self, state: State) -> None:
        """The kept checkpoint must be this ledger's: by its first key, or by one that the book says came after."""
        if self._held_note is None:
            return
        try:
            Checkpoint.verify(self._held_note, *verifiers_of(state))
        except VerificationError as error:
            raise VerificationError(
                f"the kept checkpoint is not of this ledger: {error.message}",
                hint="Restore checkpoint.txt. Only if you cannot: delete it, and lose the proof of what the book held.",
            ) from error

    def _check_held(self, state: State, held: Checkpoint) -> None:
        """A kept checkpoint of entries that are not read again: the tree of the snapshot must have had its root."""

        def leaves(first: int, count: int) -> list[bytes]:
            return [leaf_hash(raw) for raw in entries_from(self._store, first + 1, count)]

        if state.tree.root_at(held.size, leaves) != held.root:
            raise BookCorrupt(f"the book's tree of {held.size} entries is not the one that was kept", seq=held.size)


def _read_known(row: StoredRow, state: State) -> Entry:
    entry = read_next(row, state)
    if entry.body is None:
        raise SawyerError(
            f"entry {entry.seq} is of kind {entry.kind}, which this version does not know",
            hint="This book was written by a newer Sawyer: upgrade before writing to it. Replay can read it.",
        )
    return entry


def _fold_in(entry: Entry, state: State) -> None:
    """Fold an entry that nobody has judged yet: one that names what is not there is corrupt, not our error."""
    try:
        state.apply(entry)
    except (KeyError, ValueError) as error:
        raise BookCorrupt(f"entry {entry.seq} does not follow from those before it: {error}", seq=entry.seq) from error


def _check_trust(state: State, held: Checkpoint | None) -> None:
    """The book is founded by the pinned operator, and reaches the checkpoint that was kept. Raises BookCorrupt."""
    network, size = state.registry.network, state.tree.size
    if network is not None and network.operator != state.operator:
        raise BookCorrupt(f"the operator is {network.operator}, expected the pinned {state.operator}", seq=1)
    if held is not None and held.size > size:
        raise BookCorrupt(
            f"the book ends at entry {size}, and a checkpoint of {held.size} entries was kept: it was cut",
            seq=size,
            hint="Bring back the newer copy of the book. Only if there is none: delete checkpoint.txt, and know that "
            "whoever holds a later checkpoint will see the loss.",
        )


def _check_views(viewed: HeadRow, state: State, leaf: str) -> None:
    """Views may lag behind the book, never lead it, and never be of another one. `leaf`: the book's at their head."""
    if viewed.seq > state.tree.size:
        raise ViewDiffers(
            f"the views are at entry {viewed.seq}, the book ends at {state.tree.size}: it was cut, or is another one",
            hint="Bring back the newer copy of the book. Only if there is none: delete views.sqlite.",
        )
    if viewed.leaf != leaf:
        raise ViewDiffers(f"the views were made from another book: entry {viewed.seq} is not the same")
