"""One replay on its way: row after row, believing none. Owns the order of the checks and what is compared where.

Entries are folded here, in order; their signatures are verified beside that (verifying.py). Memory holds what the folds
hold, 16 bytes a request (seen.py), and a bounded number of entries whose signatures are not judged yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from sawyer.errors import BookCorrupt, RefusedError, UsageError, VerificationError, ViewDiffers
from sawyer.ledger.audit import Accounts, check_views
from sawyer.ledger.chain import check_covers, read_checkpoint, read_next, verifier_of
from sawyer.ledger.checkpoint import Checkpoint, Verifier
from sawyer.ledger.commands import VerifiedCommand, signatures_of
from sawyer.ledger.decide import decide
from sawyer.ledger.entry import StoredRow, decode_entry
from sawyer.ledger.replay_report import AsOf, Problem, Questionable, ReplayReport
from sawyer.ledger.seen import SeenRequests
from sawyer.ledger.source import Source, ViewsSnapshot
from sawyer.ledger.state import State
from sawyer.ledger.verifying import Verifying
from sawyer.projections.fold import ROWS_VERSION, Entry
from sawyer.schemas.events import InferenceCompleted, NetworkFounded, SnapshotTaken, TokensReserved

PROGRESS_ROWS: Final = 200
Progress = Callable[[int, int], None]
"""(rows done, rows in all, about)."""


@dataclass(frozen=True, slots=True)
class At:
    """The moment whose balances are asked for: after entry `seq`, or at a time; 0: not asked so."""

    seq: int = 0
    ts_ms: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A checkpoint that the caller kept: its note, and what it says."""

    note: str
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Question:
    """What the caller brought and wants to know. `anchor`: the ledger's key; `operator`: the founding key, "" for none;
    `held`: checkpoints that the book must contain; `since`: one of them, up to which the caller has verified it."""

    anchor: Verifier | None = None
    operator: str = ""
    held: Sequence[Held] = ()
    since: Held | None = None
    at: At | None = None

    @property
    def trusted_size(self) -> int:
        """Entries whose signatures the caller has verified."""
        return self.since.checkpoint.size if self.since is not None else 0


class Replaying:
    """A book being read. Every method that judges raises VerificationError for the first thing that does not hold."""

    def __init__(self, question: Question, verifying: Verifying) -> None:
        self._question = question
        self._verifying = verifying
        self._signer = question.anchor
        """Whose checkpoint comes next."""
        self._state = State("", "", "")
        self._accounts = Accounts()
        self._seen = SeenRequests()
        self._views: ViewsSnapshot | None = None
        self._views_done = False
        self._views_note = "none were given"
        self._stops = {held.checkpoint.size for held in question.held}
        self._as_of: AsOf | None = None
        self._checkpoints = 0
        self._repeated_orders = 0
        self._foreign_snapshots = 0
        self._note = ""
        self._covered = 0

    @property
    def state(self) -> State:
        """All folds, as far as the book was read."""
        return self._state

    def compare_with(self, views: ViewsSnapshot) -> None:
        """These live views, if they are rows as this version makes them."""
        if views.version != ROWS_VERSION:
            self._views_note = f"they are of version {views.version}, this Sawyer makes {ROWS_VERSION}"
            return
        self._views, self._views_note = views, ""
        self._stops.add(views.position)

    def all(self, source: Source, progress: Progress | None) -> None:
        """Read the whole book. Raises UsageError if the question does not fit the book, SawyerError."""
        total = source.size_rows() if progress is not None else 0
        try:
            with closing(source.rows()) as rows:
                self._compare_here()
                for row in _counted(rows, total, progress):
                    self._read(row)
            self._finish()
        except VerificationError as error:
            raise self._first(error) from error
        self._seen.check()
        self._verifying.finish()

    def _first(self, found: VerificationError) -> VerificationError:
        """The first in the book of what is wrong: what is judged beside or later may be of an earlier entry."""
        problems = [found]
        for judge in (self._verifying.finish, self._seen.check):
            try:
                judge()
            except BookCorrupt as error:
                problems.append(error)
        last = self._state.tree.size + 1
        return min(problems, key=lambda each: (int(each.details.get("seq", "0")) or last, each is found))

    # --- one row after the other ------------------------------------------------------------------------------------

    def _read(self, row: StoredRow) -> None:
        if not self._state.network:
            self._found(row)
        if row.is_checkpoint:
            self._read_checkpoint(row)
        else:
            self._read_entry(row)

    def _found(self, row: StoredRow) -> None:
        """Who this book says it is, from its first row; with an anchor, who it must be."""
        if self._signer is None:
            try:
                body = decode_entry(row.state).body
            except VerificationError as error:
                raise BookCorrupt(f"entry 1: {error.message}", seq=1) from error
            if not isinstance(body, NetworkFounded):
                raise BookCorrupt("a book begins with the founding of its network", seq=1)
            self._signer = Verifier.parse(body.ledger_vkey)
        self._state = State(self._signer.name, self._signer.vkey, self._question.operator)
        self._state.balances.remembers = False

    def _read_entry(self, row: StoredRow) -> None:
        state = self._state
        entry = read_next(row, state)
        if entry.seq > self._question.trusted_size:
            self._verifying.add(entry, row.state)
            self._repeated_orders += isinstance(entry.body, InferenceCompleted)
        self._decide_again(entry)
        if self._question.at is not None and self._as_of is None and _is_after(entry, self._question.at):
            self._look(self._question.at)
        if isinstance(entry.body, TokensReserved):
            self._seen.add(entry.body.request.body.request, entry)
        elif isinstance(entry.body, SnapshotTaken):
            self._foreign_snapshots += entry.body.rows != ROWS_VERSION
        state.apply(entry)
        self._accounts.add(entry)
        if entry.seq in self._stops:
            self._compare_here()
        for fold in state.folds:
            fold.changed.clear()

    def _read_checkpoint(self, row: StoredRow) -> None:
        assert self._signer is not None
        checkpoint = read_checkpoint(row, self._state, self._signer, self._checkpoints + 1)
        if checkpoint.size == self._covered:
            raise BookCorrupt(f"checkpoint {self._checkpoints + 1} covers no new entry", seq=checkpoint.size)
        self._checkpoints += 1
        self._note = row.state.decode()
        self._covered = checkpoint.size
        self._signer = verifier_of(self._state)  # a key that was added before it signs from the next one on

    def _decide_again(self, entry: Entry) -> None:
        """The ledger must have decided as the rules say: a checkpoint signed over a forged debit makes it no truer."""
        if entry.body is None:
            if self._state.registry.network is None:
                raise _wrong(entry, "a book begins with the founding of its network")
            if self._state.entries.find(entry.idem) is not None:
                raise _wrong(entry, f"the idempotency key {entry.idem} was used before")
            return
        expected = signatures_of(type(entry.body))
        if len(entry.attestations) != expected:
            raise _wrong(entry, f"expected {expected} attestations, got {len(entry.attestations)}")
        command = VerifiedCommand(entry.kind, entry.body, entry.statement, entry.attestations, entry.inner)
        try:
            decision = decide(self._state, command, entry.ts_ms)
        except RefusedError as error:
            raise _wrong(entry, f"the rules refuse it: {error.message}") from error
        if decision.repeated:
            raise _wrong(entry, "it stands in the book already")
        if (decision.stream, decision.idem, decision.decided) != (entry.stream, entry.idem, entry.decided):
            for what, wanted, got in (
                ("stream", decision.stream, entry.stream),
                ("idem", decision.idem, entry.idem),
                ("decision", decision.decided.canonical().decode(), entry.decided.canonical().decode()),
            ):
                if wanted != got:
                    raise _wrong(entry, f"expected {what} {wanted}, got {got}")

    # --- what is held against it ------------------------------------------------------------------------------------

    def _compare_here(self) -> None:
        """Held checkpoints and live views that are of exactly so many entries."""
        size = self._state.tree.size
        for held in self._question.held:
            if held.checkpoint.size == size and self._state.network:
                self._check_held(held)
        if self._views is not None and self._views.position == size:
            self._compare_views(self._views)

    def _check_held(self, held: Held) -> None:
        assert self._signer is not None
        try:
            Checkpoint.verify(held.note, self._signer)
        except VerificationError as error:
            if self._question.anchor is None:
                raise VerificationError(f"the held checkpoint is not of this book: {error.message}") from error
            raise UsageError(
                f"the checkpoint to hold the book against is not this ledger's: {error.message}",
                hint="Give the file as it was kept, and the key of the same network.",
            ) from error
        check_covers(held.checkpoint, self._state)

    def _compare_views(self, views: ViewsSnapshot) -> None:
        self._views_done = True
        rows = {name: list(views.rows(name)) for name in sorted(views.names())}
        difference = check_views(self._state, rows)
        if difference is not None:
            raise ViewDiffers(f"at entry {views.position}: {difference}", details={"seq": str(views.position)})

    def _look(self, at: At) -> None:
        self._as_of = AsOf.of(self._state, at.ts_ms or self._state.audit.head.ts_ms)

    def _finish(self) -> None:
        size, at = self._state.tree.size, self._question.at
        if not size:
            raise BookCorrupt("the book is empty", seq=0)
        if self._covered != size:
            raise BookCorrupt(f"entries {self._covered + 1} to {size} are covered by no checkpoint", seq=size)
        self._accounts.check_rows(self._state)
        longest = max((held.checkpoint.size for held in self._question.held), default=0)
        if longest > size:
            raise BookCorrupt(f"the book ends at entry {size}, the held checkpoint is of {longest}", seq=size)
        if self._views is not None and not self._views_done:
            raise ViewDiffers(f"the views are at entry {self._views.position}, the book ends at {size}: it was cut")
        if at is not None and at.seq > size:
            raise UsageError(f"there is no entry {at.seq}: the book has {size}")
        if self._as_of is None:
            self._look(at or At())

    # --- the result -------------------------------------------------------------------------------------------------

    def report(
        self, problem: Problem | None, suspects: tuple[Questionable, ...], *, workers: int, duration_us: int
    ) -> ReplayReport:
        """As far as it came."""
        state = self._state
        network, kinds = state.registry.network, sorted(state.audit.kinds.items())
        return ReplayReport(
            problem=problem,
            anchored=self._question.anchor is not None,
            operator_anchored=bool(self._question.operator),
            network=state.network,
            operator=network.operator if network else "",
            mode=network.mode if network else "",
            entries=state.audit.head.seq,
            trusted_entries=min(state.audit.head.seq, self._question.trusted_size),
            signatures=self._verifying.signatures + self._repeated_orders,
            repeated_signatures=self._repeated_orders,
            checkpoints=self._checkpoints,
            size=state.tree.size,
            root=state.tree.root().hex(),
            note=self._note,
            kinds={kind: row.entries for kind, row in kinds},
            unknown_kinds={kind: row.entries for kind, row in kinds if not row.known},
            foreign_snapshots=self._foreign_snapshots,
            lowest_balance=self._accounts.lowest,
            digests={fold.name: fold.digest() for fold in state.folds},
            views_seq=self._views.position if self._views is not None and self._views_done else None,
            views_note=self._views_note,
            as_of=self._as_of or AsOf.of(state, state.audit.head.ts_ms),
            questionable=suspects,
            workers=workers,
            duration_us=duration_us,
        )


def _is_after(entry: Entry, at: At) -> bool:
    return entry.seq > at.seq if at.seq else entry.ts_ms > at.ts_ms


def _counted(rows: Iterator[StoredRow], total: int, progress: Progress | None) -> Iterator[StoredRow]:
    done = 0
    for row in rows:
        yield row
        done += 1
        if progress is not None and done % PROGRESS_ROWS == 0:
            progress(done, total)
    if progress is not None:
        progress(done, total)


def _wrong(entry: Entry, why: str) -> BookCorrupt:
    signer = f"{entry.signer.by} ({entry.signer.key_id})"
    return BookCorrupt(f"entry {entry.seq}: {why}", seq=entry.seq, signer=signer)
