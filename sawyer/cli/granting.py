"""`sawyer account grant`: what it does: tokens, or one paid period of a tier, and a note that is sealed. Owns no option
and no rule."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from sawyer.clock import SystemClock
from sawyer.economy.periods import DAY_MS, days_from_civil
from sawyer.economy.tiers import Tier
from sawyer.errors import UnknownAccount, UsageError

if TYPE_CHECKING:
    from sawyer.home import Home
    from sawyer.schemas.events import TokensGranted
    from sawyer.schemas.messages import AccountReply, EntryRef
    from sawyer.settings import Settings


@dataclass(frozen=True, slots=True)
class Gift:
    """What to grant: `tokens`, or else a period of `tier` from `start_ms` on. `note` "" for none."""

    tokens: int
    tier: Tier | None
    start_ms: int
    anchor_day: int
    note: str


def day_ms(text: str) -> int:
    """Milliseconds since 1970 at which a day begins in UTC; today for "". Raises UsageError."""
    if not text:
        return SystemClock().now_ms() // DAY_MS * DAY_MS
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no day", hint="Write it like 2026-01-31.") from error
    if day.year < 1970:
        raise UsageError(f"{text} is before 1970", hint="Give a day of this century.")
    return days_from_civil(day.year, day.month, day.day) * DAY_MS


async def grant(settings: Settings, gift: Gift) -> tuple[TokensGranted, EntryRef, AccountReply]:
    """The grant, its entry, and the account after it. Raises UnknownAccount, NotAuthorised, RefusedError."""
    from sawyer.bus.calls import ask
    from sawyer.cli.operating import check_test_mode, operating
    from sawyer.schemas.messages import AccountQuery, AccountReply

    account = settings["account"]
    async with operating(settings) as (founder, network):
        check_test_mode(network)
        try:
            await ask(founder.bus, "account", AccountReply, AccountQuery(account=account))  # before its key is made
        except UnknownAccount as error:
            raise UnknownAccount(
                f"there is no account {account} on {network.network}",
                hint=f"Its owner opens it first: sawyer account open {account}",
            ) from error
        body = with_note(_worded(network.network, account, gift), gift.note, settings.home)
        entry = await founder.record(body)
        reply = await ask(founder.bus, "account", AccountReply, AccountQuery(account=account))
    return body, entry, reply


def with_note(body: TokensGranted, note: str, home: Home) -> TokensGranted:
    """The grant with a note that only the subject key of its account opens; the key is made in this home if there is
    none. Raises RefusedError if the account is erased, UsageError for a note that is too long."""
    from sawyer.identity.sealing import SubjectKey, seal

    if not note:
        return body
    key = SubjectKey.load_or_create(home.subject_key(body.account))
    return body.changed(sealed=(seal(note, body.account, key, body.grant),))


def _worded(network: str, account: str, gift: Gift) -> TokensGranted:
    from sawyer.cli.grants import grant_of_period, grant_of_tokens

    if gift.tier is not None:
        return grant_of_period(network, account, gift.tier, gift.start_ms, gift.anchor_day)
    return grant_of_tokens(network, account, gift.tokens, SystemClock().now_ms())
