"""Grants as the operator words them: a number of tokens, or one paid period of a tier. Pure; records nothing."""

from __future__ import annotations

import hashlib
from typing import Final

from sawyer.economy.periods import day_of, paid_period
from sawyer.economy.pricing import UUSD_PER_TOKEN
from sawyer.economy.tiers import TIERS, Tier
from sawyer.errors import UsageError
from sawyer.schemas.events import TokensGranted

PERIOD_MS: Final = 30 * 24 * 3600 * 1000
ACCOUNT_CHARS: Final = 40
"""A grant is named after its account and a time; both must fit into a name of 63 characters."""


def grant_of_tokens(network: str, account: str, tokens: int, now_ms: int) -> TokensGranted:
    """So many tokens, at the price of every tier (test mode: no money moves), for two periods from now."""
    return TokensGranted(
        network=network,
        account=account,
        grant=f"{_short(account)}-{now_ms}",
        tier="",
        tokens=tokens,
        valid_from_ms=now_ms,
        period_end_ms=now_ms + 2 * PERIOD_MS,
        expires_ms=now_ms + 2 * PERIOD_MS,
        paid_uusd=tokens * UUSD_PER_TOKEN,
        mode="test",
        sealed=(),
    )


def grant_of_period(network: str, account: str, tier: Tier, start_ms: int, anchor_day: int) -> TokensGranted:
    """One paid period of a tier from `start_ms` on, with its price as if paid (test mode: no money moves). What is left
    at its end lives one period more. `anchor_day`: the day of the month on which periods begin; 0: the start's own.
    It is named after its account and first day, so that saying it again is a repeat."""
    period_end_ms, expires_ms = paid_period(start_ms, anchor_day)
    return TokensGranted(
        network=network,
        account=account,
        grant=f"{_short(account)}-{day_of(start_ms)}",
        tier=tier.name,
        tokens=tier.tokens,
        valid_from_ms=start_ms,
        period_end_ms=period_end_ms,
        expires_ms=expires_ms,
        paid_uusd=tier.price_uusd,
        mode="test",
        sealed=(),
    )


def tier_named(name: str) -> Tier:
    """Raises UsageError."""
    if name not in TIERS:
        raise UsageError(f"there is no tier {name!r}", hint=f"Tiers: {', '.join(TIERS)}.")
    return TIERS[name]


def _short(account: str) -> str:
    """The account's name, or what no other account is shortened to."""
    if len(account) <= ACCOUNT_CHARS:
        return account
    return f"{account[: ACCOUNT_CHARS - 9]}-{hashlib.sha256(account.encode()).hexdigest()[:8]}"
