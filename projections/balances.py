"""Accounts, their buckets, and every request that ever held tokens. Owns no rule: it adds up what entries decided."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import ClassVar, cast

from sawyer.economy.buckets import Bucket, available_at
from sawyer.projections.fold import Entry, Fold, Row
from sawyer.schemas.events import (
    AccountOpened,
    BucketTokens,
    InferenceCompleted,
    InferenceRequested,
    ReservationExpired,
    ReservationVoided,
    TokensGranted,
    TokensReserved,
)
from sawyer.schemas.signed import Signed

HELD = "held"
COMPLETED = "completed"
VOIDED = "voided"
EXPIRED = "expired"


class AccountRow(Row):
    """Key `account:<id>`. Tokens. `grants` are its bucket keys in order of the book."""

    key: str
    seq: int
    granted: int
    held: int
    consumed: int
    grants: list[str]


class BucketRow(Row):
    """Key `bucket:<grant>`. tokens == available + held + consumed, always."""

    account: str
    seq: int
    tokens: int
    available: int
    held: int
    consumed: int
    valid_from_ms: int
    expires_ms: int
    paid_uusd: int


class RequestRow(Row):
    """Key `request:<id>`. `order` is the SHA-256 of the client's signed order, `content` what that order commits to
    (equal in a resend, which is signed anew), `manifest` the weights that it is served with, `router` the key that
    reserved, `seq` the entry of its last change.
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
    output_tokens: int = 0
    billed_tokens: int = 0


class Balances(Fold):
    """The tokens of everybody."""

    name: ClassVar[str] = "balances"

    def __init__(self) -> None:
        super().__init__()
        self.open_requests: dict[str, int] = {}
        """Requests that hold tokens now -> when their hold may be expired, in ms."""

    def account(self, account: str) -> AccountRow | None:
        return cast("AccountRow | None", self.rows.get(f"account:{account}"))

    def bucket(self, grant: str) -> BucketRow | None:
        return cast("BucketRow | None", self.rows.get(f"bucket:{grant}"))

    def request(self, request: str) -> RequestRow | None:
        return cast("RequestRow | None", self.rows.get(f"request:{request}"))

    def buckets(self, account: str) -> tuple[Bucket, ...]:
        """What an account's grants have left. Raises KeyError for an unknown account."""
        rows = ((grant, self._bucket(grant)) for grant in cast("AccountRow", self.rows[f"account:{account}"]).grants)
        return tuple(
            Bucket(grant, b.seq, b.available, b.valid_from_ms, b.expires_ms) for grant, b in rows if b.available
        )

    def available(self, account: str, now_ms: int) -> int:
        """Tokens that an account can reserve now; 0 for an unknown account."""
        return available_at(self.buckets(account), now_ms) if self.account(account) else 0

    def apply(self, entry: Entry) -> set[str]:
        """See Fold.apply."""
        match entry.body:
            case AccountOpened() as body:
                key = f"account:{body.account}"
                self.rows[key] = AccountRow(body.key, entry.seq, 0, 0, 0, [])
                return {key}
            case TokensGranted() as body:
                return self._grant(body, entry.seq)
            case TokensReserved() as body:
                return self._reserve(body, entry)
            case InferenceCompleted() as body:
                order = body.request.body
                row = self._end(order.request, COMPLETED, entry.seq)
                row.output_tokens = body.output_tokens
                row.billed_tokens = sum(part.tokens for part in entry.decided.debited or ())
                return self._settle(order.account, order.request, entry)
            case ReservationVoided() as body:
                self._end(body.request, VOIDED, entry.seq)
                return self._settle(body.account, body.request, entry)
            case ReservationExpired() as body:
                self._end(body.request, EXPIRED, entry.seq)
                return self._settle(body.account, body.request, entry)
        return set()

    def _grant(self, body: TokensGranted, seq: int) -> set[str]:
        account = self._account(body.account)
        account.granted += body.tokens
        account.grants.append(body.grant)
        self.rows[f"bucket:{body.grant}"] = BucketRow(
            account=body.account,
            seq=seq,
            tokens=body.tokens,
            available=body.tokens,
            held=0,
            consumed=0,
            valid_from_ms=body.valid_from_ms,
            expires_ms=body.expires_ms,
            paid_uusd=body.paid_uusd,
        )
        return {f"account:{body.account}", f"bucket:{body.grant}"}

    def _reserve(self, body: TokensReserved, entry: Entry) -> set[str]:
        order = body.request.body
        held = entry.decided.held or ()
        self.open_requests[order.request] = body.expires_ms
        self.rows[f"request:{order.request}"] = RequestRow(
            status=HELD,
            account=order.account,
            order=order_hash(body.request),
            content=order.content,
            manifest=body.manifest,
            router=entry.signer.key_id,
            input_tokens=body.input_tokens,
            expires_ms=body.expires_ms,
            held=[(part.grant, part.tokens) for part in held],
            seq=entry.seq,
        )
        account = self._account(order.account)
        for part in held:
            bucket = self._bucket(part.grant)
            bucket.available -= part.tokens
            bucket.held += part.tokens
            account.held += part.tokens
        return {f"request:{order.request}", f"account:{order.account}", *_bucket_keys(held)}

    def _end(self, request: str, status: str, seq: int) -> RequestRow:
        row = cast("RequestRow", self.rows[f"request:{request}"])
        row.status = status
        row.seq = seq
        del self.open_requests[request]
        return row

    def _settle(self, account_id: str, request: str, entry: Entry) -> set[str]:
        debited, released = entry.decided.debited or (), entry.decided.released or ()
        account = self._account(account_id)
        for part in debited:
            bucket = self._bucket(part.grant)
            bucket.held -= part.tokens
            bucket.consumed += part.tokens
            account.held -= part.tokens
            account.consumed += part.tokens
        for part in released:
            bucket = self._bucket(part.grant)
            bucket.held -= part.tokens
            bucket.available += part.tokens
            account.held -= part.tokens
        return {f"request:{request}", f"account:{account_id}", *_bucket_keys(debited), *_bucket_keys(released)}

    def _account(self, account: str) -> AccountRow:
        return cast("AccountRow", self.rows[f"account:{account}"])

    def _bucket(self, grant: str) -> BucketRow:
        return cast("BucketRow", self.rows[f"bucket:{grant}"])


def order_hash(order: Signed[InferenceRequested]) -> str:
    """What tells one client order from another: SHA-256 of the canonical signed statement."""
    return hashlib.sha256(order.canonical()).hexdigest()


def _bucket_keys(parts: Iterable[BucketTokens]) -> set[str]:
    return {f"bucket:{part.grant}" for part in parts}
