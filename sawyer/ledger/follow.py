"""A book followed row by row into views of one's own, by a process that is not its writer. Owns what is checked on the
way and when the views are written; where rows come from is the caller's.

The same folds as the writer's. Chain, tree and checkpoints are verified, and that the ledger's snapshots commit to what
was folded here; signatures of entries and decisions are replay's work. Views are written only where a checkpoint has
just been verified: rows and position change in one transaction, so that an entry counts once, whoever is killed when.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sawyer import durable
from sawyer.errors import BookCorrupt, SawyerError, ViewDiffers
from sawyer.ledger import snapshot
from sawyer.ledger.chain import read_checkpoint, read_next, verifier_of
from sawyer.ledger.checkpoint import Verifier
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.state import State
from sawyer.ledger.views import Views
from sawyer.projections.audit_chain import HeadRow
from sawyer.projections.fold import ROWS_VERSION, Entry
from sawyer.schemas.events import SnapshotTaken

SNAPSHOT_SUFFIX: Final = ".snapshot"
"""The state as of the ledger's newest snapshot lies beside the views, so that a new start need not fold it all."""

log = logging.getLogger(__name__)


class Follower:
    """Follows the book of one network, whose checkpoints verify with `ledger_vkey` or the keys that came after it.
    `operator`: the key that founded it; "" trusts whom the ledger trusted."""

    def __init__(self, path: Path, ledger_vkey: str, operator: str = "") -> None:
        """Open or create the views in this file. Raises VerificationError for a key that is none, ViewDiffers,
        SawyerError."""
        self.network = Verifier.parse(ledger_vkey).name
        self._trust = (self.network, ledger_vkey, operator)
        self._views = Views(path)
        self._snapshots = path.with_name(path.name + SNAPSHOT_SUFFIX)
        self._held: snapshot.Snapshot | None = None
        self._dumped = b""
        self._start(State(*self._trust), 0)

    @property
    def rows(self) -> int:
        """How many rows of the book were taken: the next one is number `rows + 1`."""
        return self._state.tree.size + self._checkpoints

    @property
    def entries(self) -> int:
        """How many entries were folded."""
        return self._state.tree.size

    @property
    def viewed(self) -> int:
        """How many entries the views are of. More than `entries`: they were read before, and are read again."""
        return self._viewed.seq

    def commitment(self) -> int:
        """The number of the row that commits to the state that was kept; 0 where none was. Give it to `begin`."""
        try:
            self._held = snapshot.read(self._snapshots.read_bytes())
        except FileNotFoundError:
            return 0
        except (SawyerError, OSError) as error:
            self._distrust(error)
            return 0
        return self._held.size + self._held.checkpoints + 1

    def begin(self, row: StoredRow | None) -> None:
        """Start from the state that was kept, if this row commits to it; else from the first row."""
        if self._held is None or row is None:
            return
        try:
            state = snapshot.committed(self._held, row, *self._trust)
        except SawyerError as error:
            self._distrust(error)
        else:
            self._start(state, self._held.checkpoints)
        self._held = None

    def take(self, rows: Sequence[StoredRow]) -> None:
        """The rows from number `rows + 1` on. Raises BookCorrupt naming the first entry that does not hold, ViewDiffers
        if the views were made from another book, SawyerError if they cannot be written, or for an entry of a newer
        Sawyer. After any of these it is of no use any more."""
        newest = max((at for at, row in enumerate(rows) if row.is_checkpoint), default=-1)
        for at, row in enumerate(rows):
            if row.is_checkpoint:
                self._take_checkpoint(row)
                if at == newest:
                    self._write()
            else:
                self._take_entry(row)

    def close(self) -> None:
        """Let go of the views."""
        self._views.close()

    def _start(self, state: State, checkpoints: int) -> None:
        """Views older than the state are made anew from it; of those that are newer, the state is brought up to them
        and must come to them."""
        self._state, self._checkpoints = state, checkpoints
        self._signer = verifier_of(state)
        self._viewed = self._views.head()
        if self._viewed.seq < state.tree.size:
            self._views.clear()
            self._viewed = HeadRow()
            for fold in state.folds:
                fold.changed = set(fold.rows)
        self._check_viewed()

    def _take_entry(self, row: StoredRow) -> None:
        state = self._state
        entry = read_next(row, state)
        if entry.body is None:
            raise SawyerError(
                f"entry {entry.seq} is of kind {entry.kind}, which this version does not know",
                hint="This book was written by a newer Sawyer: upgrade, and go on with the same views.",
            )
        if isinstance(entry.body, SnapshotTaken):
            self._compare(entry, entry.body)
        try:
            state.apply(entry)
        except (KeyError, ValueError) as error:
            why = f"entry {entry.seq} does not follow from those before it: {error}"
            raise BookCorrupt(why, seq=entry.seq) from error
        state.balances.ended.clear()
        if entry.seq == 1:
            self._check_founding()
        self._check_viewed()

    def _compare(self, entry: Entry, body: SnapshotTaken) -> None:
        """The ledger says what the entries so far come to: they must, here too."""
        if body.rows != ROWS_VERSION:
            return
        if body.size != self._state.tree.size or body.digest != self._state.digest():
            raise BookCorrupt(
                f"entry {entry.seq}: the ledger's views of {body.size} entries are not what they come to here",
                seq=entry.seq,
                hint="If ledger and follower run the same Sawyer, replay the book: one of both folds it wrongly.",
            )
        self._dumped = snapshot.dump(self._state, entry.version, self._checkpoints)

    def _check_founding(self) -> None:
        founded, (_, ledger_vkey, operator) = self._state.registry.network, self._trust
        if founded is None or founded.ledger_vkey != ledger_vkey:
            raise BookCorrupt("the book does not begin with the founding of a network by the key you trust", seq=1)
        if operator and founded.operator != operator:
            raise BookCorrupt(f"the operator is {founded.operator}, expected {operator}", seq=1)

    def _check_viewed(self) -> None:
        """Where the views stand already, the book must be the one that they were made from."""
        state, viewed = self._state, self._viewed
        if viewed.seq != state.tree.size or not viewed.seq:
            return
        if viewed.leaf != state.audit.head.leaf:
            raise ViewDiffers(
                f"these views were made from another book: entry {viewed.seq} is not the same", hint=_OTHER_FILE
            )
        for fold in state.folds:
            fold.changed.clear()

    def _take_checkpoint(self, row: StoredRow) -> None:
        """It is signed by the key that was the ledger's before the entries that it is the first to cover."""
        read_checkpoint(row, self._state, self._signer, self._checkpoints + 1)
        self._checkpoints += 1
        self._signer = verifier_of(self._state)

    def _write(self) -> None:
        state = self._state
        if state.tree.size > self._viewed.seq:
            rows = [(fold.name, key, fold.encoded(key)) for fold in state.folds for key in fold.changed]
            self._views.write(rows, state.tree.size)
            for fold in state.folds:
                fold.changed.clear()
            self._viewed = self._views.head()
        if self._dumped:
            dumped, self._dumped = self._dumped, b""
            try:
                durable.replace(self._snapshots, dumped)
            except OSError as error:
                log.warning("cannot keep %s: %s", self._snapshots, error)

    def _distrust(self, error: Exception) -> None:
        log.warning("reading the book from its first entry: %s", error)


_OTHER_FILE: Final = "Follow this book into another file: --views FILE. Or delete these views, and their .snapshot."
