"""How a pool is split over weights, and what of an accrual is paid. Owns settlement arithmetic; moves no money."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sawyer.money import UUSD_PER_CENT

HOST_SHARE_PERCENT: Final = 70
PAYOUT_THRESHOLD_UUSD: Final = 10_000_000


def host_pool(net_uusd: int) -> int:
    """The hosts' share of net revenue, rounded down. Never negative: a deficit is carried by the caller."""
    return max(0, net_uusd) * HOST_SHARE_PERCENT // 100


def split(pool_uusd: int, weights: Mapping[str, int]) -> dict[str, int]:
    """The pool over the weights by largest remainder; ties go to the name first in order. The parts add up to the pool
    exactly, or to nothing where all weights are 0. Raises ValueError for a negative pool or weight."""
    if pool_uusd < 0 or any(weight < 0 for weight in weights.values()):
        raise ValueError("a pool and its weights are never negative")
    total = sum(weights.values())
    if not total:
        return dict.fromkeys(weights, 0)
    parts = {name: pool_uusd * weight // total for name, weight in weights.items()}
    rest = pool_uusd - sum(parts.values())
    by_remainder = sorted(weights, key=lambda name: (-(pool_uusd * weights[name] % total), name))
    for name in by_remainder[:rest]:
        parts[name] += 1
    return parts


def payable_cents(accrued_uusd: int) -> tuple[int, int]:
    """(whole cents to pay, uUSD to carry): nothing below the threshold, never a part of a cent."""
    if accrued_uusd < PAYOUT_THRESHOLD_UUSD:
        return 0, accrued_uusd
    return divmod(accrued_uusd, UUSD_PER_CENT)
