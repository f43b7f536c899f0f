"""What hosting some experts may earn: an estimate, not a promise. Owns its arithmetic.

It assumes that the gate spreads rows evenly over the experts of a layer, that an expert's replicas share its rows
equally, that every receipt counts in full, and that all tokens are paid for. Rules 9 and 12 of
docs/token-economics.md say how a host is really paid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sawyer.economy.allocation import host_pool
from sawyer.economy.pricing import UUSD_PER_TOKEN

MONTH_MS: Final = 30 * 24 * 3600 * 1000
LEAST_MS: Final = 10_000
"""A router tells what it sampled in the last ten seconds, or since the first token if that is less."""
BILLION: Final = 10**9
_MILLI_SQUARED: Final = 1000**2


@dataclass(frozen=True)
class Estimate:
    """micro-USD a month: `today_uusd` at the traffic that there is now, `most_uusd` if this machine computed all the
    time. `share_ppb`: of the model's rows that would come here, in billionths. `tokens_per_month`: of the whole network
    now."""

    today_uusd: int
    most_uusd: int
    share_ppb: int
    tokens_per_month: int


def estimate(
    *,
    tokens_per_month: int,
    share_ppb: int,
    rows_per_second: int,
    rows_per_token: int,
    price_milli: int,
    quant_milli: int,
) -> Estimate:
    """The hosts' part of what so many tokens are billed, by share of the rows; and of what as many tokens would be as
    this machine can compute rows for. Raises ValueError for a negative number."""
    if min(tokens_per_month, share_ppb, rows_per_second, price_milli, quant_milli) < 0 or rows_per_token < 1:
        raise ValueError("amounts are never negative, and a token costs rows")
    price = price_milli * quant_milli * UUSD_PER_TOKEN
    pool_uusd = host_pool(tokens_per_month * price // _MILLI_SQUARED)
    rows = rows_per_second * MONTH_MS // 1000
    most_uusd = host_pool(rows * price // (rows_per_token * _MILLI_SQUARED))
    return Estimate(
        today_uusd=min(most_uusd, pool_uusd * share_ppb // BILLION),
        most_uusd=most_uusd,
        share_ppb=share_ppb,
        tokens_per_month=tokens_per_month,
    )


def share_of_rows(others: Iterable[int], experts: int) -> int:
    """Of all rows of a model with so many (layer, expert) pairs, in billionths: what comes here for experts that so
    many other nodes serve too. Raises ValueError if there are more than the model has."""
    parts = [BILLION // (1 + each) for each in others]
    if len(parts) > experts:
        raise ValueError(f"the model has {experts} experts, got {len(parts)}")
    return sum(parts) // experts


def monthly(tokens: int, in_ms: int) -> int:
    """As many tokens a month (30 days) as came in this time, which counts as LEAST_MS at least: one text that has just
    begun is no month of it."""
    return tokens * MONTH_MS // max(in_ms, LEAST_MS)
