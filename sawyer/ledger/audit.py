"""Bookkeeping checks over a replayed book: postings sum to zero, nothing is ever negative, accounts agree with rows.

The accounts here are summed from postings alone, and compared with the projections at the end: two ways to one number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sawyer.economy.pricing import UUSD_PER_TOKEN
from sawyer.errors import BookCorrupt
from sawyer.ledger.postings import Posting, Unit, available, deferred, held, postings
from sawyer.ledger.state import State
from sawyer.projections.balances import AccountRow, BucketRow
from sawyer.projections.fold import Entry
from sawyer.schemas.events import TokensGranted


class Accounts:
    """Running sums of every account, what each user was ever granted, and the lowest that any user's tokens stood."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, Unit], int] = defaultdict(int)
        self.granted: dict[str, int] = defaultdict(int)
        self.lowest = 0

    def post(self, entry: Entry) -> None:
        """Add an entry's postings. Raises BookCorrupt if they do not sum to zero in each unit, or drive an account
        below zero that may never be."""
        if isinstance(entry.body, TokensGranted):
            self.granted[entry.body.account] += entry.body.tokens
        totals: dict[Unit, int] = defaultdict(int)
        moved = postings(entry, self._earned(entry))
        for posting in moved:
            totals[posting.unit] += posting.amount
            self.sums[posting.account, posting.unit] += posting.amount
        for unit, total in totals.items():
            if total:
                raise _wrong(entry, f"its postings sum to {total} {unit}, expected 0")
        for posting in moved:
            self._check_sign(entry, posting)

    def _earned(self, entry: Entry) -> dict[str, int]:
        """Grant -> uUSD that this entry turns into revenue: 10 a token, never more than is still deferred."""
        earned: dict[str, int] = {}
        for part in entry.decided.debited or ():
            left_uusd = -self.sums.get((deferred(part.grant), "uusd"), 0)
            earned[part.grant] = min(part.tokens * UUSD_PER_TOKEN, left_uusd)
        return {grant: amount for grant, amount in earned.items() if amount}

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
            if isinstance(row, AccountRow):
                self._check_account(key.removeprefix("account:"), row, state)
        for grant, earning in state.payouts.earnings.items():
            self._expect(state, deferred(grant), "uusd", earning.earned_uusd - earning.paid_uusd)

    def _check_bucket(self, grant: str, row: BucketRow, state: State) -> None:
        self._expect(state, available(row.account, grant), "tokens", row.available)
        self._expect(state, held(row.account, grant), "tokens", row.held)
        if row.available + row.held + row.consumed != row.tokens:
            raise BookCorrupt(f"bucket {grant} does not add up to its grant of {row.tokens}", seq=row.seq)

    def _check_account(self, account: str, row: AccountRow, state: State) -> None:
        free = sum(self.sums[available(account, grant), "tokens"] for grant in row.grants)
        reserved = sum(self.sums[held(account, grant), "tokens"] for grant in row.grants)
        granted = self.granted[account]
        expected = (granted, reserved, granted - free - reserved)
        found = (row.granted, row.held, row.consumed)
        if found != expected:
            raise BookCorrupt(
                f"account {account}: postings say granted, held, consumed {expected}, its row says {found}",
                seq=state.audit.head.seq,
            )

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
