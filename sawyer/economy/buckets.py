"""Which bucket pays: first in, first out by (expiry, grant seq). Owns the order; the projection owns the rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from sawyer.schemas.events import BucketTokens


class Bucket(Protocol):
    """What one grant has left to reserve. Spendable in [valid_from_ms, expires_ms); `seq` is the grant's entry."""

    grant: str
    seq: int
    available: int
    valid_from_ms: int
    expires_ms: int


def order(bucket: Bucket) -> tuple[int, int]:
    """Sort buckets by this: the soonest to expire pays first."""
    return bucket.expires_ms, bucket.seq


def is_live(bucket: Bucket, now_ms: int) -> bool:
    """True while its tokens can be reserved."""
    return bucket.valid_from_ms <= now_ms < bucket.expires_ms


def available_at(buckets: Iterable[Bucket], now_ms: int) -> int:
    """Tokens that can be reserved at this time."""
    return sum(bucket.available for bucket in buckets if is_live(bucket, now_ms))


def take(buckets: Iterable[Bucket], tokens: int, now_ms: int) -> tuple[BucketTokens, ...] | None:
    """So many tokens from those of these buckets (in `order`) that are live now. None if they do not suffice."""
    taken: list[BucketTokens] = []
    for bucket in buckets:
        part = min(tokens, bucket.available)
        if part and bucket.valid_from_ms <= now_ms < bucket.expires_ms:
            taken.append(BucketTokens(grant=bucket.grant, tokens=part))
            tokens -= part
            if not tokens:
                return tuple(taken)
    return None


def post(held: Sequence[tuple[str, int]], tokens: int) -> tuple[tuple[BucketTokens, ...], tuple[BucketTokens, ...]]:
    """(debited, released): a hold of (grant, tokens) split in its own order. Raises ValueError for more tokens than it
    holds: nothing may ever be posted beyond a hold."""
    debited: list[BucketTokens] = []
    released: list[BucketTokens] = []
    for grant, part in held:
        used = min(tokens, part)
        tokens -= used
        if used:
            debited.append(BucketTokens(grant=grant, tokens=used))
        if used < part:
            released.append(BucketTokens(grant=grant, tokens=part - used))
    if tokens:
        raise ValueError(f"{tokens} tokens more than the hold has")
    return tuple(debited), tuple(released)
