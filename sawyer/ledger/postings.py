"""An entry as double-entry bookkeeping: who gains and who loses, in tokens and in money. Pure; each unit sums to zero.

Chart of accounts: docs/token-economics.md. A positive amount is a debit, a negative one a credit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from sawyer.projections.fold import Entry
from sawyer.schemas.events import (
    InferenceCompleted,
    ReservationExpired,
    ReservationVoided,
    TokensGranted,
    TokensReserved,
)

Unit = Literal["tokens", "uusd"]
ISSUED: Final = "tokens:issued"
CONSUMED: Final = "tokens:consumed"
CLEARING: Final = "stripe:clearing"
USAGE: Final = "revenue:usage"


@dataclass(frozen=True, slots=True)
class Posting:
    account: str
    unit: Unit
    amount: int


def available(account: str, grant: str) -> str:
    return f"user:{account}:bucket:{grant}:available"


def held(account: str, grant: str) -> str:
    return f"user:{account}:bucket:{grant}:held"


def deferred(grant: str) -> str:
    return f"deferred:{grant}"


def postings(entry: Entry, earned: Mapping[str, int]) -> tuple[Posting, ...]:
    """What this entry moves. `earned`: grant -> uUSD that it turns into revenue (audit.Accounts, summed from
    the postings before). Entries that move nothing, and unknown kinds, give no postings."""
    return tuple(_postings(entry, earned))


def _postings(entry: Entry, earned: Mapping[str, int]) -> Iterator[Posting]:
    decided = entry.decided
    match entry.body:
        case TokensGranted() as grant:
            yield from _move(ISSUED, available(grant.account, grant.grant), "tokens", grant.tokens)
            if grant.paid_uusd:
                yield from _move(deferred(grant.grant), CLEARING, "uusd", grant.paid_uusd)
        case TokensReserved() as reserved:
            user = reserved.request.body.account
            for part in decided.held or ():
                yield from _move(available(user, part.grant), held(user, part.grant), "tokens", part.tokens)
        case InferenceCompleted() as completed:
            user = completed.request.body.account
            for part in decided.debited or ():
                yield from _move(held(user, part.grant), CONSUMED, "tokens", part.tokens)
            yield from _release(entry, user)
            for name, amount in sorted(earned.items()):
                yield from _move(USAGE, deferred(name), "uusd", amount)
        case ReservationVoided() | ReservationExpired() as ended:
            yield from _release(entry, ended.account)


def _release(entry: Entry, user: str) -> Iterator[Posting]:
    for part in entry.decided.released or ():
        yield from _move(held(user, part.grant), available(user, part.grant), "tokens", part.tokens)


def _move(source: str, target: str, unit: Unit, amount: int) -> Iterator[Posting]:
    yield Posting(source, unit, -amount)
    yield Posting(target, unit, amount)
