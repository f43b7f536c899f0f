"""What one entry of a book moves, without replaying the book. Owns how much history that takes."""

from __future__ import annotations

from contextlib import closing

from sawyer.economy.pricing import UUSD_PER_TOKEN
from sawyer.ledger.audit import Accounts
from sawyer.ledger.postings import Posting, available, deferred, held
from sawyer.ledger.search import about_account, account_in, matching, read
from sawyer.ledger.source import Source
from sawyer.ledger.wanted import Wanted
from sawyer.projections.fold import Entry
from sawyer.schemas.events import TokensExpired, TokensGranted


def postings_of(source: Source, entry: Entry) -> tuple[Posting, ...]:
    """The postings of an entry that stands in this book. What it earns depends on what is still deferred of its grants:
    where every token of a grant was paid alike, that takes the grant alone; else all that its account did before.
    Raises BookCorrupt."""
    account, named = account_in(entry), _grants_in(entry)
    if not named:
        return Accounts().post(entry)
    grants = _grants(source, account, named)
    if grants.keys() == named and all(_paid_alike(grant) for grant in grants.values()):
        return _with_whole_grants(account, grants).post(entry)
    accounts = Accounts()
    with closing(matching(source, about_account(account))) as rows:
        for row in rows:
            earlier = read(row, source)
            if earlier.seq >= entry.seq:
                break
            if account_in(earlier) == account:
                accounts.post(earlier)
    return accounts.post(entry)


def _grants_in(entry: Entry) -> set[str]:
    """The grants that an entry takes from or gives back to."""
    decided = entry.decided
    parts = (decided.held, decided.debited, decided.released, decided.expired)
    named = {part.grant for each in parts for part in each or ()}
    return named | {entry.body.grant} if isinstance(entry.body, TokensExpired) else named


def _grants(source: Source, account: str, named: set[str]) -> dict[str, TokensGranted]:
    found: dict[str, TokensGranted] = {}
    with closing(matching(source, Wanted(kind="tokens.granted", stream=f"account:{account}"))) as rows:
        for row in rows:
            body = read(row, source).body
            if isinstance(body, TokensGranted) and body.grant in named:
                found[body.grant] = body
    return found


def _paid_alike(grant: TokensGranted) -> bool:
    """Nothing was paid, or enough for each token: then no debit can find less deferred than it earns."""
    return not grant.paid_uusd or grant.paid_uusd >= grant.tokens * UUSD_PER_TOKEN


def _with_whole_grants(account: str, grants: dict[str, TokensGranted]) -> Accounts:
    accounts = Accounts()
    for name, grant in grants.items():
        accounts.sums[deferred(name), "uusd"] = -grant.paid_uusd
        accounts.sums[available(account, name), "tokens"] = accounts.sums[held(account, name), "tokens"] = grant.tokens
    return accounts
