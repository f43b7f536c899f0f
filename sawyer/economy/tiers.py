"""The tiers that consumers subscribe to. Every tier is exactly 10 uUSD a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Tier:
    """What a month costs, in uUSD, and how many tokens it grants."""

    name: str
    price_uusd: int
    tokens: int


TIERS: Final[dict[str, Tier]] = {
    tier.name: tier
    for tier in (
        Tier("explorer", 5_000_000, 500_000),
        Tier("builder", 20_000_000, 2_000_000),
        Tier("operator", 50_000_000, 5_000_000),
    )
}
LIVE_PERIODS: Final = 2
"""Periods whose grants may be live at once: this one and the one before. So roll-over does not compound."""
