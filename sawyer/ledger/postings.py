"""An entry as double-entry bookkeeping: who gains and who loses, in tokens and in money. Pure.

Everything is a move from one account to another, so the postings of an entry sum to zero in each unit whatever it says.
Chart of accounts: docs/token-economics.md. A positive amount is a debit, a negative one a credit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from sawyer.projections.fold import Entry
from sawyer.schemas.events import (
    InferenceCompleted,
    ReservationExpired,
    ReservationVoided,
    TokensExpired,
    TokensGranted,
    TokensReserved,
)

Unit = Literal["tokens", "uusd"]
ISSUED: Final = "tokens:issued"
CONSUMED: Final = "tokens:consumed"
EXPIRED: Final = "tokens:expired"
CLEARING: Final = "stripe:clearing"
USAGE: Final = "revenue:usage"
BREAKAGE: Final = "revenue:breakage"
_ENDS: Final = (InferenceCompleted, ReservationVoided, ReservationExpired)


Move = tuple[str, str, Unit, int]
"""(account that it leaves, account that it comes to, unit, amount)."""


class Posting(NamedTuple):
    """One side of a move."""

    account: str
    unit: Unit
    amount: int


def available(account: str, grant: str) -> str:
    return f"user:{account}:bucket:{grant}:available"


def held(account: str, grant: str) -> str:
    return f"user:{account}:bucket:{grant}:held"


def deferred(grant: str) -> str:
    return f"deferred:{grant}"


def moves(entry: Entry) -> list[Move]:
    """What this entry moves, but for the money that its tokens earn: that depends on what is still deferred
    (audit.Accounts). Entries that move nothing, and unknown kinds, give none."""
    body, decided = entry.body, entry.decided
    found: list[Move] = []
    if isinstance(body, TokensReserved):
        user = body.request.body.account
        for part in decided.held or ():
            found.append((available(user, part.grant), held(user, part.grant), "tokens", part.tokens))
    elif isinstance(body, _ENDS):
        user = body.request.body.account if isinstance(body, InferenceCompleted) else body.account
        for part in decided.debited or ():
            found.append((held(user, part.grant), CONSUMED, "tokens", part.tokens))
        for part in decided.released or ():
            found.append((held(user, part.grant), available(user, part.grant), "tokens", part.tokens))
        for part in decided.expired or ():
            found.append((held(user, part.grant), EXPIRED, "tokens", part.tokens))
    elif isinstance(body, TokensGranted):
        found.append((ISSUED, available(body.account, body.grant), "tokens", body.tokens))
        if body.paid_uusd:
            found.append((deferred(body.grant), CLEARING, "uusd", body.paid_uusd))
    elif isinstance(body, TokensExpired):
        found.append((available(body.account, body.grant), EXPIRED, "tokens", body.tokens))
    return found


def postings(moved: Iterable[Move]) -> tuple[Posting, ...]:
    """Both sides of each move."""
    return tuple(
        posting
        for source, target, unit, amount in moved
        for posting in (Posting(source, unit, -amount), Posting(target, unit, amount))
    )
