"""What one account was granted, spent and lost, line by line. Reads entries that search.py found; verifies none.

Every line names its entry and leaf, so that replay, or a proof of this entry, can be asked. host_statement.py has the
other side.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Literal

from sawyer.economy.periods import DAY_MS, days_from_civil
from sawyer.errors import BookCorrupt
from sawyer.ledger.audit import Accounts
from sawyer.ledger.search import NO_END_MS, about_account, account_in, matching, read
from sawyer.ledger.source import Source
from sawyer.ledger.wanted import Wanted
from sawyer.projections.fold import Entry
from sawyer.schemas.events import (
    AccountOpened,
    BucketTokens,
    HostCredit,
    InferenceCompleted,
    ReservationExpired,
    ReservationVoided,
    TokensExpired,
    TokensGranted,
    TokensReserved,
)

What = Literal["granted", "debited", "voided", "abandoned", "expired"]
Parts = tuple[BucketTokens, ...]


@dataclass(frozen=True, slots=True)
class Period:
    """[start_ms, end_ms), UTC."""

    start_ms: int = 0
    end_ms: int = NO_END_MS

    @classmethod
    def month(cls, year: int, month: int) -> Period:
        """A calendar month, from 1970 on. Raises ValueError for one that no calendar has."""
        if year < 1970 or not 1 <= month <= 12:
            raise ValueError(f"no month {month} of {year}")
        start, end = days_from_civil(year, month, 1), days_from_civil(year + month // 12, month % 12 + 1, 1)
        return cls(start * DAY_MS, end * DAY_MS)


@dataclass(frozen=True, slots=True)
class Receipt:
    """A node's part of a request: its receipt's counter and rows, and whom they were credited to, as how much work, at
    how many thousandths. Rows without a receipt have counter 0 and credit nobody."""

    node: str
    host: str
    counter: int
    rows: int
    work: int
    sla_milli: int


@dataclass(frozen=True, slots=True)
class AccountLine:
    """What one entry changed of what an account has: `tokens` more, or less if negative; `balance` after it, with what
    is held. A request is one line, at its end. `parts`: (grant, tokens)."""

    seq: int
    leaf: str
    ts_ms: int
    what: What
    tokens: int
    balance: int = 0
    parts: tuple[tuple[str, int], ...] = ()
    request: str = ""
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    reason: str = ""
    receipts: tuple[Receipt, ...] = ()


@dataclass(frozen=True, slots=True)
class Hold:
    """A request that held tokens at the end of the period."""

    seq: int
    ts_ms: int
    request: str
    model: str
    tokens: int


@dataclass(slots=True)
class ModelUse:
    """What an account used of one model in the period."""

    model: str
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    tokens: int = 0


@dataclass(slots=True)
class GrantState:
    """A grant at the end of the period: tokens == left + debited + expired; `left` includes what is held."""

    grant: str
    tier: str
    tokens: int
    left: int
    debited: int
    expired: int
    valid_from_ms: int
    expires_ms: int
    paid_uusd: int


@dataclass(slots=True)
class AccountStatement:
    """Everything that changed what one account has in a period: opening + granted - debited - expired == closing."""

    account: str
    network: str
    opening: int = 0
    granted: int = 0
    debited: int = 0
    expired: int = 0
    closing: int = 0
    lines: list[AccountLine] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    models: list[ModelUse] = field(default_factory=list)
    grants: list[GrantState] = field(default_factory=list)


def account_statement(
    source: Source, account: str, period: Period, *, with_receipts: bool = False
) -> AccountStatement | None:
    """None if no such account was ever opened. Raises BookCorrupt for an entry that cannot be read, or does not add
    up."""
    with closing(matching(source, Wanted(kind="account.opened", stream=f"account:{account}"))) as rows:
        opening = next((read(row, source) for row in rows), None)
    if opening is None or not isinstance(opening.body, AccountOpened):
        return None
    walk = _Walk(AccountStatement(account, opening.log), period, with_receipts)
    with closing(matching(source, about_account(account))) as rows:
        for row in rows:
            entry = read(row, source)
            if entry.ts_ms >= period.end_ms:
                break
            if account_in(entry) == account:
                walk.add(entry)
    return walk.finish()


def receipts_of(entry: Entry) -> tuple[Receipt, ...]:
    """The receipts inside a completed request, and the rows without one."""
    if not isinstance(entry.body, InferenceCompleted):
        return ()
    credits = {credit.node: credit for credit in entry.decided.credits or ()}
    found = [_receipt(r.body.node, r.body.counter, r.body.rows, credits.get(r.body.node)) for r in entry.body.receipts]
    return (*found, *(_receipt(part.node, 0, part.rows, None) for part in entry.body.unreceipted))


def _receipt(node: str, counter: int, rows: int, credit: HostCredit | None) -> Receipt:
    if credit is None:
        return Receipt(node, "", counter, rows, 0, 0)
    return Receipt(node, credit.host, counter, rows, credit.work, credit.sla_milli)


class _Walk:
    """Goes through all of an account's entries in order. What it has is summed from postings, as in an export and in
    replay; the lines are told from the facts; the two must agree at every entry."""

    def __init__(self, statement: AccountStatement, period: Period, with_receipts: bool) -> None:
        self._statement = statement
        self._period = period
        self._with_receipts = with_receipts
        self._accounts = Accounts()
        self._balance = 0
        self._holds: dict[str, Hold] = {}
        self._models: dict[str, ModelUse] = {}
        self._grants: dict[str, GrantState] = {}

    def add(self, entry: Entry) -> None:
        """The account's next entry. Raises BookCorrupt."""
        moved = self._accounts.post(entry)
        lines = list(self._lines(entry))
        change = sum(posting.amount for posting in moved if posting.account.startswith("user:"))
        if change != sum(line.tokens for line in lines):
            raise BookCorrupt(f"entry {entry.seq} moves {change} tokens, and its facts say otherwise", seq=entry.seq)
        for line in lines:
            self._balance += line.tokens
            self._count(line)
            if line.ts_ms >= self._period.start_ms:
                self._sum(line)
                self._statement.lines.append(replace(line, balance=self._balance))
        if entry.ts_ms < self._period.start_ms:
            self._statement.opening = self._balance

    def finish(self) -> AccountStatement:
        """The statement, whole."""
        made = self._statement
        made.closing = self._balance
        made.holds = list(self._holds.values())
        made.models = [self._models[name] for name in sorted(self._models)]
        made.grants = [g for g in self._grants.values() if g.left or g.expires_ms > self._period.start_ms]
        return made

    def _lines(self, entry: Entry) -> Iterator[AccountLine]:
        """What an entry says that it changed; the end of a request is a line even if it changes nothing."""
        decided = entry.decided
        match entry.body:
            case TokensGranted() as body:
                self._grants[body.grant] = GrantState(
                    grant=body.grant, tier=body.tier, tokens=body.tokens, left=0, debited=0, expired=0,
                    valid_from_ms=body.valid_from_ms, expires_ms=body.expires_ms, paid_uusd=body.paid_uusd,
                )  # fmt: skip
                yield _line(entry, "granted", (BucketTokens(grant=body.grant, tokens=body.tokens),))
            case TokensExpired() as body:
                yield _line(entry, "expired", (BucketTokens(grant=body.grant, tokens=body.tokens),))
            case TokensReserved() as body:
                order = body.request.body
                self._holds[order.request] = Hold(entry.seq, entry.ts_ms, order.request, order.model, body.tokens)
            case InferenceCompleted() as body:
                order = body.request.body
                self._holds.pop(order.request, None)
                yield replace(
                    _line(entry, "debited", decided.debited or ()), request=order.request, model=order.model,
                    input_tokens=body.input_tokens, output_tokens=body.output_tokens,
                    receipts=receipts_of(entry) if self._with_receipts else (),
                )  # fmt: skip
            case ReservationVoided() | ReservationExpired() as body:
                hold = self._holds.pop(body.request, None)
                voided = isinstance(body, ReservationVoided)
                line = _line(entry, "voided" if voided else "abandoned", ())
                reason = body.reason if isinstance(body, ReservationVoided) else ""
                yield replace(line, request=body.request, model=hold.model if hold else "", reason=reason)
        if decided.expired:
            yield _line(entry, "expired", decided.expired)

    def _count(self, line: AccountLine) -> None:
        """What the grants have left."""
        for name, tokens in line.parts:
            grant = self._grants[name]
            grant.left += tokens if line.what == "granted" else -tokens
            grant.debited += tokens if line.what == "debited" else 0
            grant.expired += tokens if line.what == "expired" else 0

    def _sum(self, line: AccountLine) -> None:
        made = self._statement
        match line.what:
            case "granted":
                made.granted += line.tokens
            case "expired":
                made.expired -= line.tokens
            case "debited":
                made.debited -= line.tokens
                use = self._models.setdefault(line.model, ModelUse(line.model))
                use.requests += 1
                use.input_tokens += line.input_tokens
                use.output_tokens += line.output_tokens
                use.tokens -= line.tokens


def _line(entry: Entry, what: What, parts: Parts) -> AccountLine:
    tokens = sum(part.tokens for part in parts)
    return AccountLine(
        seq=entry.seq,
        leaf=entry.leaf,
        ts_ms=entry.ts_ms,
        what=what,
        tokens=tokens if what == "granted" else -tokens,
        parts=tuple((part.grant, part.tokens) for part in parts),
    )
