"""Bookkeeping checks over a replayed book: postings sum to zero, nothing is ever negative, accounts agree with rows.

The accounts here are summed from postings alone, and compared with the projections at the end: two ways to one number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sawyer.errors import BookCorrupt
from sawyer.ledger.postings import Posting, Unit, available, deferred, held
from sawyer.ledger.state import State
from sawyer.projections.balances import BucketRow
from sawyer.projections.fold import Entry


class Accounts:
    """Running sums of every account, and the lowest that any user's tokens ever stood."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, Unit], int] = defaultdict(int)
        self.lowest = 0

    def post(self, entry: Entry, postings: Sequence[Posting]) -> None:
        """Raises BookCorrupt if the entry's postings do not sum to zero in each unit, or drive an account below zero
        that may never be."""
        totals: dict[Unit, int] = defaultdict(int)
        for posting in postings:
            totals[posting.unit] += posting.amount
            self.sums[posting.account, posting.unit] += posting.amount
        for unit, total in totals.items():
            if total:
                raise _wrong(entry, f"its postings sum to {total} {unit}, expected 0")
        for posting in postings:
            self._check_sign(entry, posting)

    def _check_sign(self, entry: Entry, posting: Posting) -> None:
        total = self.sums[posting.account, posting.unit]
        if posting.account.startswith("user:"):
            self.lowest = min(self.lowest, total)
            if total < 0:
                raise _wrong(entry, f"{posting.account} falls to {total} tokens")
        if posting.account.startswith("deferred:") and total > 0:
            raise _wrong(entry, f"{posting.account} earned {total} uUSD more than was paid")

    def check_rows(self, state: State) -> None:
        """Raises BookCorrupt if the sums and the projections' rows differ."""
        for key, row in state.balances.rows.items():
            if isinstance(row, BucketRow):
                self._check_bucket(key.removeprefix("bucket:"), row, state)
        for grant, earning in state.payouts.earnings.items():
            self._expect(state, deferred(grant), "uusd", earning.earned_uusd - earning.paid_uusd)

    def _check_bucket(self, grant: str, row: BucketRow, state: State) -> None:
        self._expect(state, available(row.account, grant), "tokens", row.available)
        self._expect(state, held(row.account, grant), "tokens", row.held)
        if row.available + row.held + row.consumed != row.tokens:
            raise BookCorrupt(f"bucket {grant} does not add up to its grant of {row.tokens}", seq=row.seq)

    def _expect(self, state: State, account: str, unit: Unit, row: int) -> None:
        total = self.sums[account, unit]
        if total != row:
            raise BookCorrupt(f"{account}: postings sum to {total}, its row says {row}", seq=state.audit.head.seq)


def check_views(state: State, views: Mapping[str, Sequence[tuple[str, bytes]]]) -> str | None:
    """The first difference between the folds and the rows of the live views, in words; None if there is none."""
    folds = {fold.name: fold for fold in state.folds}
    for name in sorted(views.keys() - folds.keys()):
        return f"there is a view {name!r} that no projection makes"
    for name, fold in folds.items():
        lived = dict(views.get(name, ()))
        for key in sorted(fold.rows.keys() | lived.keys()):
            book = fold.encoded(key) if key in fold.rows else None
            if book != lived.get(key):
                return f"view {name}, row {key!r}: the book says {_text(book)}, the view says {_text(lived.get(key))}"
    return None


def _text(row: bytes | None) -> str:
    return "nothing" if row is None else row.decode(errors="replace")


def _wrong(entry: Entry, why: str) -> BookCorrupt:
    signer = f"{entry.signer.by} ({entry.signer.key_id})"
    return BookCorrupt(f"entry {entry.seq}: {why}", seq=entry.seq, signer=signer)
