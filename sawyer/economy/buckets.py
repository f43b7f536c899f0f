"""Which bucket pays: first in, first out by (expiry, grant seq). Owns the order; the projection owns the rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sawyer.schemas.events import BucketTokens


@dataclass(frozen=True, slots=True)
class Bucket:
    """What one grant has left to reserve. Spendable in [valid_from_ms, expires_ms); `seq` is the grant's entry."""

    grant: str
    seq: int
    available: int
    valid_from_ms: int
    expires_ms: int

    def live(self, now_ms: int) -> bool:
        return self.valid_from_ms <= now_ms < self.expires_ms


def available_at(buckets: Iterable[Bucket], now_ms: int) -> int:
    """Tokens that can be reserved at this time."""
    return sum(bucket.available for bucket in buckets if bucket.live(now_ms))


def take(buckets: Iterable[Bucket], tokens: int, now_ms: int) -> tuple[BucketTokens, ...] | None:
    """So many tokens from the buckets live now, the soonest to expire first. None if they do not suffice."""
    taken: list[BucketTokens] = []
    for bucket in sorted((b for b in buckets if b.live(now_ms)), key=lambda b: (b.expires_ms, b.seq)):
        part = min(tokens, bucket.available)
        if part:
            taken.append(BucketTokens(grant=bucket.grant, tokens=part))
            tokens -= part
        if not tokens:
            return tuple(taken)
    return None


def post(held: Sequence[BucketTokens], tokens: int) -> tuple[tuple[BucketTokens, ...], tuple[BucketTokens, ...]]:
    """(debited, released): a hold split in its own bucket order. Raises ValueError for more tokens than it holds:
    nothing may ever be posted beyond a hold."""
    debited: list[BucketTokens] = []
    released: list[BucketTokens] = []
    for part in held:
        used = min(tokens, part.tokens)
        tokens -= used
        if used:
            debited.append(BucketTokens(grant=part.grant, tokens=used))
        if used < part.tokens:
            released.append(BucketTokens(grant=part.grant, tokens=part.tokens - used))
    if tokens:
        raise ValueError(f"{tokens} tokens more than the hold has")
    return tuple(debited), tuple(released)
