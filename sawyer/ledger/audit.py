"""Bookkeeping checks over a replayed book: postings sum to zero, nothing is ever negative, accounts agree with rows.

The accounts here are summed from postings alone, and compared with the projections at the end: two ways to one number.
They grow with accounts and grants, not with requests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sawyer.economy.pricing import UUSD_PER_TOKEN
from sawyer.errors import BookCorrupt
from sawyer.ledger.postings import (
    BREAKAGE,
    CONSUMED,
    EXPIRED,
    ISSUED,
    USAGE,
    Move,
    Posting,
    Unit,
    available,
    deferred,
    held,
    moves,
    postings,
)
from sawyer.ledger.state import State
from sawyer.projections.balances import AccountRow, BucketRow
from sawyer.projections.fold import Entry
from sawyer.schemas.events import TokensExpired


@dataclass(slots=True)
class _User:
    """What the buckets of one account add up to."""

    granted: int = 0
    held: int = 0
    consumed: int = 0
    expired: int = 0


class Accounts:
    """Running sums of every account, and the lowest that any user's tokens stood."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, Unit], int] = defaultdict(int)
        self.lowest = 0
        self._consumed: dict[str, int] = defaultdict(int)
        """Of each bucket, by the name of its held tokens."""

    def post(self, entry: Entry) -> tuple[Posting, ...]:
        """Add an entry's postings, and return them. Raises BookCorrupt if they drive an account below zero that may
        never be."""
        return postings(self.add(entry))

    def add(self, entry: Entry) -> list[Move]:
        """`post`, as moves: what a replay does, a million times."""
        moved, sums = moves(entry), self.sums
        for source, target, unit, amount in moved:
            left = sums[source, unit] = sums[source, unit] - amount
            sums[target, unit] += amount
            if left < 0 and source.startswith("user:"):
                self.lowest = min(self.lowest, left)
                raise _wrong(entry, f"{source} falls to {left} tokens")
            if target == CONSUMED:
                self._consumed[source] += amount
        return moved + self._earn(entry) if moved else moved

    def _earn(self, entry: Entry) -> list[Move]:
        """The money that this entry turns into revenue: 10 uUSD a token, never more than is still deferred. Tokens that
        are used earn it as usage, tokens that expire as breakage."""
        moved: list[Move] = []
        for part in entry.decided.debited or ():
            self._recognise(moved, USAGE, part.grant, part.tokens)
        for part in entry.decided.expired or ():
            self._recognise(moved, BREAKAGE, part.grant, part.tokens)
        if isinstance(entry.body, TokensExpired):
            self._recognise(moved, BREAKAGE, entry.body.grant, entry.body.tokens)
        return moved

    def _recognise(self, moved: list[Move], revenue: str, grant: str, tokens: int) -> None:
        name, sums = deferred(grant), self.sums
        amount = min(tokens * UUSD_PER_TOKEN, -sums.get((name, "uusd"), 0))
        if amount:
            sums[revenue, "uusd"] -= amount
            sums[name, "uusd"] += amount
            moved.append((revenue, name, "uusd", amount))

    def check_rows(self, state: State) -> None:
        """Raises BookCorrupt if a unit does not sum to zero over all accounts, or if the sums and the projections' rows
        differ."""
        for unit in ("tokens", "uusd"):
            total = sum(amount for (_, of), amount in self.sums.items() if of == unit)
            if total:
                raise BookCorrupt(f"all accounts sum to {total} {unit}, expected 0", seq=state.audit.head.seq)
        users: dict[str, _User] = defaultdict(_User)
        rows = state.balances.rows
        for row in rows.values():
            if isinstance(row, BucketRow):
                self._check_bucket(row, users[row.account], state)
        for key, row in rows.items():
            if isinstance(row, AccountRow):
                account = key.removeprefix("account:")
                _check_account(account, row, users[account], state)
        for grant, earning in state.payouts.earnings.items():
            left = earning.paid_uusd - earning.earned_uusd - earning.breakage_uusd
            self._expect(state, deferred(grant), "uusd", -left)
        totals: tuple[tuple[str, Unit, int], ...] = (
            (ISSUED, "tokens", -sum(user.granted for user in users.values())),
            (CONSUMED, "tokens", sum(user.consumed for user in users.values())),
            (EXPIRED, "tokens", sum(user.expired for user in users.values())),
            (USAGE, "uusd", -state.payouts.earned_uusd),
            (BREAKAGE, "uusd", -state.payouts.breakage_uusd),
        )
        for name, unit, expected in totals:
            self._expect(state, name, unit, expected)

    def _check_bucket(self, row: BucketRow, user: _User, state: State) -> None:
        held_here = held(row.account, row.grant)
        self._expect(state, available(row.account, row.grant), "tokens", row.available)
        self._expect(state, held_here, "tokens", row.held)
        consumed = self._consumed.get(held_here, 0)
        if row.consumed != consumed:
            raise BookCorrupt(
                f"bucket {row.grant}: postings consumed {consumed}, its row says {row.consumed}", seq=row.seq
            )
        if row.available + row.held + row.consumed + row.expired != row.tokens:
            raise BookCorrupt(f"bucket {row.grant} does not add up to its grant of {row.tokens}", seq=row.seq)
        user.granted += row.tokens
        user.held += row.held
        user.consumed += row.consumed
        user.expired += row.expired

    def _expect(self, state: State, account: str, unit: Unit, row: int) -> None:
        total = self.sums.get((account, unit), 0)
        if total != row:
            raise BookCorrupt(f"{account}: postings sum to {total}, its row says {row}", seq=state.audit.head.seq)


def _check_account(account: str, row: AccountRow, user: _User, state: State) -> None:
    expected = (user.granted, user.held, user.consumed, user.expired)
    found = (row.granted, row.held, row.consumed, row.expired)
    if found != expected:
        raise BookCorrupt(
            f"account {account}: its buckets say granted, held, consumed, expired {expected}, its row says {found}",
            seq=state.audit.head.seq,
        )


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
