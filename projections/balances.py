"""Accounts, their buckets, and the requests that hold tokens now. Owns no rule: it adds up what entries decided.

A request that ended leaves no row: what it came to is in the sums, and its entries stand in its own stream of the book.
So this grows with accounts and grants, and not with requests.
"""

from __future__ import annotations

import hashlib
from bisect import insort
from collections import defaultdict
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import ClassVar, cast

from sawyer.economy.buckets import available_at, order
from sawyer.projections.fold import Entry, Fold, Row
from sawyer.schemas.events import (
    AccountOpened,
    BucketTokens,
    InferenceCompleted,
    InferenceRequested,
    KeyRotated,
    ReservationExpired,
    ReservationVoided,
    SubjectErased,
    TokensExpired,
    TokensGranted,
    TokensReserved,
)
from sawyer.schemas.signed import Signed

HELD = "held"
COMPLETED = "completed"
VOIDED = "voided"
EXPIRED = "expired"


class AccountRow(Row):
    """Key `account:<id>`. Tokens: granted == available + held + consumed + expired, over all its buckets. `grants` is
    how many it was given."""

    key: str
    seq: int
    granted: int = 0
    held: int = 0
    consumed: int = 0
    expired: int = 0
    grants: int = 0
    erased: bool = False


class BucketRow(Row):
    """Key `bucket:<grant>`. tokens == available + held + consumed + expired, always."""

    grant: str
    account: str
    seq: int
    tokens: int
    available: int
    held: int
    consumed: int
    expired: int
    valid_from_ms: int
    period_end_ms: int
    expires_ms: int
    tier: str

    @property
    def ended(self) -> bool:
        """Nothing is left of it, and nothing can come back."""
        return not self.available and not self.held


class RequestRow(Row):
    """Key `request:<id>`, while it holds tokens. `order` is the SHA-256 of the client's signed order, `content` what
    that
    order commits to (equal in a resend, which is signed anew), `manifest` the weights that it is served with, `router`
    the key that reserved, `seq` the entry of its last change, `reserved` and `ended` the content of these two entries.
    `held` are (grant, tokens) in the order they were taken; it stays after the end."""

    status: str
    account: str
    order: str
    content: str
    manifest: str
    router: str
    input_tokens: int
    expires_ms: int
    held: list[tuple[str, int]]
    seq: int
    reserved: str
    output_tokens: int = 0
    billed_tokens: int = 0
    ended: str = ""


class Balances(Fold):
    """The tokens of everybody."""

    name: ClassVar[str] = "balances"
    row_types: ClassVar[dict[str, type[Row]]] = {"account": AccountRow, "bucket": BucketRow, "request": RequestRow}

    def __init__(self) -> None:
        super().__init__()
        self.open_requests: dict[str, RequestRow] = {}
        """Requests that hold tokens now."""
        self.ended: dict[str, RequestRow] = {}
        """Requests that ended since somebody last took these away (`State.forget`)."""
        self.remembers = True
        """Whether to keep what ended: not where nobody asks, as it costs a hash over the whole entry."""
        self._live: dict[str, list[BucketRow]] = defaultdict(list)
        self._expiring: list[tuple[int, str]] = []
        self._due: set[str] = set()

    @classmethod
    def of_one_request(cls, reserved: Entry) -> Balances:
        """A fold that knows one request and pretends to know nothing of its account's tokens: to read what became of
        the
        request from its own two entries. Raises ValueError if this entry reserves nothing."""
        if not isinstance(reserved.body, TokensReserved):
            raise ValueError(f"entry {reserved.seq} reserves nothing")
        fold, asked = cls(), reserved.body.request.body
        fold.rows[f"account:{asked.account}"] = AccountRow("", 0)
        for part in reserved.decided.held or ():
            fold.rows[f"bucket:{part.grant}"] = BucketRow(part.grant, asked.account, *(0,) * 9, "")
        fold.apply(reserved)
        return fold

    def account(self, account: str) -> AccountRow | None:
        return cast("AccountRow | None", self.rows.get(f"account:{account}"))

    def bucket(self, grant: str) -> BucketRow | None:
        return cast("BucketRow | None", self.rows.get(f"bucket:{grant}"))

    def buckets(self, account: str) -> Sequence[BucketRow]:
        """The grants of an account that something is left of, the soonest to expire first."""
        return self._live.get(account, ())

    def available(self, account: str, now_ms: int) -> int:
        """Tokens that an account can reserve now; 0 for an unknown account."""
        return available_at(self.buckets(account), now_ms)

    def due(self, now_ms: int) -> list[BucketRow]:
        """Buckets that have expired and still have tokens that nobody holds. Clocks jump back, and holds end: a bucket
        that was due once is looked at until it has ended."""
        while self._expiring and self._expiring[0][0] <= now_ms:
            self._due.add(heappop(self._expiring)[1])
        rows = {grant: self._bucket(grant) for grant in self._due}
        self._due = {grant for grant, row in rows.items() if not row.ended}
        expired = [rows[grant] for grant in sorted(self._due) if rows[grant].expires_ms <= now_ms]
        return [row for row in expired if row.available]

    def apply(self, entry: Entry) -> None:
        """See Fold.apply."""
        body = entry.body
        if isinstance(body, TokensReserved):
            self._reserve(body, entry)
        elif isinstance(body, InferenceCompleted):
            asked = body.request.body
            row = self._end(asked.request, COMPLETED, entry)
            row.output_tokens = body.output_tokens
            row.billed_tokens = sum(part.tokens for part in entry.decided.debited or ())
            self._settle(asked.account, entry)
        elif isinstance(body, ReservationVoided | ReservationExpired):
            self._end(body.request, VOIDED if isinstance(body, ReservationVoided) else EXPIRED, entry)
            self._settle(body.account, entry)
        else:
            self._apply_rare(body, entry)

    def _apply_rare(self, body: object, entry: Entry) -> None:
        match body:
            case AccountOpened():
                self.put(f"account:{body.account}", AccountRow(body.key, entry.seq))
            case KeyRotated() if body.role == "account":
                self._account(body.name).key = body.key
                self.changed.add(f"account:{body.name}")
            case SubjectErased():
                self._account(body.subject).erased = True
                self.changed.add(f"account:{body.subject}")
            case TokensGranted():
                self._grant(body, entry.seq)
            case TokensExpired():
                self._expire(self._account(body.account), self._bucket(body.grant), body.tokens, held=False)
                self.changed.update((f"account:{body.account}", f"bucket:{body.grant}"))

    def restore(self, key: str, row: Row) -> None:
        """See Fold.restore."""
        super().restore(key, row)
        if isinstance(row, BucketRow) and not row.ended:
            self._watch(row)
        elif isinstance(row, RequestRow):
            self.open_requests[key.removeprefix("request:")] = row

    def _watch(self, row: BucketRow) -> None:
        insort(self._live[row.account], row, key=order)
        heappush(self._expiring, (row.expires_ms, row.grant))

    def _grant(self, body: TokensGranted, seq: int) -> None:
        account = self._account(body.account)
        account.granted += body.tokens
        account.grants += 1
        row = BucketRow(
            grant=body.grant,
            account=body.account,
            seq=seq,
            tokens=body.tokens,
            available=body.tokens,
            held=0,
            consumed=0,
            expired=0,
            valid_from_ms=body.valid_from_ms,
            period_end_ms=body.period_end_ms,
            expires_ms=body.expires_ms,
            tier=body.tier,
        )
        self.put(f"bucket:{body.grant}", row)
        self.changed.add(f"account:{body.account}")
        self._watch(row)

    def _reserve(self, body: TokensReserved, entry: Entry) -> None:
        asked = body.request.body
        held = entry.decided.held or ()
        row = RequestRow(
            status=HELD,
            account=asked.account,
            order=hashlib.sha256(entry.inner[0]).hexdigest(),
            content=asked.content,
            manifest=body.manifest,
            router=entry.signer.key_id,
            input_tokens=body.input_tokens,
            expires_ms=body.expires_ms,
            held=[(part.grant, part.tokens) for part in held],
            seq=entry.seq,
            reserved=entry.content,
        )
        self.open_requests[asked.request] = row
        self.put(f"request:{asked.request}", row)
        account = self._account(asked.account)
        for part in held:
            bucket = self._bucket(part.grant)
            bucket.available -= part.tokens
            bucket.held += part.tokens
            account.held += part.tokens
            self.changed.add(f"bucket:{part.grant}")
        self.changed.add(f"account:{asked.account}")

    def _end(self, request: str, status: str, entry: Entry) -> RequestRow:
        row = self.open_requests.pop(request)
        self.remove(f"request:{request}")
        if self.remembers:
            row.status, row.seq, row.ended = status, entry.seq, entry.content
            self.ended[request] = row
        return row

    def _settle(self, account_id: str, entry: Entry) -> None:
        account, decided = self._account(account_id), entry.decided
        touched = set()
        for part in decided.debited or ():
            bucket = self._bucket(part.grant)
            bucket.held -= part.tokens
            bucket.consumed += part.tokens
            account.held -= part.tokens
            account.consumed += part.tokens
            touched.add(part.grant)
        for part in decided.released or ():
            bucket = self._bucket(part.grant)
            bucket.held -= part.tokens
            bucket.available += part.tokens
            account.held -= part.tokens
            touched.add(part.grant)
        for part in decided.expired or ():
            self._expire(account, self._bucket(part.grant), part.tokens, held=True)
            touched.add(part.grant)
        for grant in touched:
            self.changed.add(f"bucket:{grant}")
            self._drop_ended(self._bucket(grant))
        self.changed.add(f"account:{account_id}")

    def _expire(self, account: AccountRow, bucket: BucketRow, tokens: int, *, held: bool) -> None:
        if held:
            bucket.held -= tokens
            account.held -= tokens
        else:
            bucket.available -= tokens
        bucket.expired += tokens
        account.expired += tokens
        self._drop_ended(bucket)

    def _drop_ended(self, bucket: BucketRow) -> None:
        live = self._live[bucket.account]
        if bucket.ended and bucket in live:
            live.remove(bucket)

    def _account(self, account: str) -> AccountRow:
        return cast("AccountRow", self.rows[f"account:{account}"])

    def _bucket(self, grant: str) -> BucketRow:
        return cast("BucketRow", self.rows[f"bucket:{grant}"])


def order_hash(order: Signed[InferenceRequested]) -> str:
    """What tells one client order from another: SHA-256 of the canonical signed statement."""
    return hashlib.sha256(order.canonical()).hexdigest()


def parts_of(held: Sequence[tuple[str, int]]) -> tuple[BucketTokens, ...]:
    """A hold as the parts that an entry names."""
    return tuple(BucketTokens(grant=grant, tokens=tokens) for grant, tokens in held)
