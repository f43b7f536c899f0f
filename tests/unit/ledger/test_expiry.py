"""Roll-over and expiry as docs/token-economics.md works them out: by the writer, by the calendar, event by event."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from sawyer.clock import ManualClock
from sawyer.economy.periods import paid_period
from sawyer.ledger.book import Book
from sawyer.ledger.commands import VerifiedCommand
from sawyer.ledger.entry import decode_entry
from sawyer.ledger.store import Store
from sawyer.projections.fold import Entry
from sawyer.schemas.events import TokensExpired
from sawyer.schemas.messages import LedgerReply
from sawyer.schemas.signed import Signed

JANUARY, FEBRUARY, MARCH, APRIL = 1_767_225_600_000, 1_769_904_000_000, 1_772_323_200_000, 1_775_001_600_000
"""The first moments of these months of 2026, UTC."""
INPUT = 5


@dataclass
class Writer:
    """A book, its clock, and a consumer with a tier."""

    book: Book
    clock: ManualClock
    scene: object

    def at(self, moment_ms: int) -> Writer:
        self.clock.at_ms = self.scene.now_ms = moment_ms
        return self

    def say(self, *commands: VerifiedCommand) -> list[LedgerReply]:
        replies = self.book.commit(commands, self.clock.now_ms())
        assert [reply.error for reply in replies] == [None] * len(replies)
        return replies

    def pay(self, grant: str) -> None:
        """The invoice of the period that begins now."""
        end_ms, expires_ms = paid_period(self.clock.at_ms)
        body = self.scene.grant(grant, 500_000, tier="explorer").body
        self.say(self.scene.say(body.changed(period_end_ms=end_ms, expires_ms=expires_ms), "operator"))

    def hold(self, number: int, tokens: int, hold_ms: int = 600_000) -> Signed:
        order = self.scene.order(number, max_tokens=tokens - INPUT)
        self.say(self.scene.reserve(order, hold_ms=hold_ms))
        return order

    def post(self, order: Signed, tokens: int) -> LedgerReply:
        (reply,) = self.say(self.scene.complete(order, output_tokens=tokens - INPUT))
        return reply

    def expire(self) -> list[Entry]:
        """What the ledger itself does now."""
        due = self.book.expire(self.clock.now_ms())
        return [self.entry(reply.entry.seq) for reply in self.say(*due)]

    def entry(self, seq: int) -> Entry:
        (raw,) = self.book.entry_bytes(seq)
        return decode_entry(raw)

    @property
    def available(self) -> int:
        return self.book.balance("alice", self.clock.now_ms()).available

    def bucket(self, grant: str) -> tuple[int, int, int, int]:
        """(available, held, consumed, expired)."""
        row = self.book._state.balances.bucket(grant)
        return row.available, row.held, row.consumed, row.expired

    def revenue(self) -> tuple[int, int]:
        """(earned, breakage) in uUSD."""
        payouts = self.book._state.payouts
        return payouts.earned_uusd, payouts.breakage_uusd


def lapsed(entries: list[Entry]) -> list[tuple[str, int]]:
    return [(entry.body.grant, entry.body.tokens) for entry in entries if isinstance(entry.body, TokensExpired)]


def parts(found) -> list[tuple[str, int]]:
    return [(part.grant, part.tokens) for part in found or ()]


@pytest.fixture
def writer(scene) -> Iterator[Writer]:
    """An empty account, on the first of January 2026."""
    book = Book(Store.in_memory(), network=scene.network, operator=scene.operator, ledger_key=scene.keys["ledger"])
    made = Writer(book, ManualClock(JANUARY), scene).at(JANUARY)
    made.say(*scene.members())
    yield made
    book.close()


# --- the worked examples ----------------------------------------------------------------------------------------------


def test_worked_example_of_january_and_february(writer: Writer) -> None:
    writer.pay("january")
    writer.post(writer.hold(1, 120_000), 100_000)
    assert writer.available == 400_000
    writer.at(FEBRUARY).pay("february")
    reply = writer.post(writer.hold(2, 450_000), 450_000)
    assert parts(reply.entry.decided.debited) == [("january", 400_000), ("february", 50_000)]
    assert writer.available == 450_000
    assert lapsed(writer.at(MARCH).expire()) == []
    assert writer.at(APRIL - 1).available == 450_000
    assert lapsed(writer.at(APRIL).expire()) == [("february", 450_000)]
    assert (writer.available, writer.bucket("february")) == (0, (0, 0, 50_000, 450_000))


def test_worked_example_of_nothing_used_in_january_and_february(writer: Writer) -> None:
    writer.pay("january")
    writer.at(FEBRUARY).pay("february")
    assert writer.available == 1_000_000
    assert lapsed(writer.at(MARCH).expire()) == [("january", 500_000)]
    assert writer.available == 500_000
    writer.pay("march")
    assert writer.available == 1_000_000
    assert writer.book.account("alice", MARCH).grants == 3
    assert [bucket.grant for bucket in writer.book.account("alice", MARCH).buckets] == ["february", "march"]


def test_grant_of_march_may_come_before_the_expiry_of_january_was_written(writer: Writer) -> None:
    """Webhook and clock race at the same millisecond; who is first does not matter."""
    writer.pay("january")
    writer.at(FEBRUARY).pay("february")
    writer.at(MARCH).pay("march")
    assert writer.available == 1_000_000
    assert lapsed(writer.expire()) == [("january", 500_000)]
    assert writer.available == 1_000_000


# --- expiry is an event, and exact ------------------------------------------------------------------------------------


def test_expiry_is_said_once_by_the_ledger_and_never_before_its_time(writer: Writer) -> None:
    writer.pay("january")
    assert writer.at(MARCH - 1).expire() == []
    (entry,) = writer.at(MARCH).expire()
    assert (entry.signer.by, entry.ts_ms, entry.stream) == ("ledger", MARCH, "account:alice")
    assert writer.at(MARCH + 1).expire() == []
    balance = writer.book.balance("alice", MARCH)
    assert (balance.granted, balance.available, balance.expired) == (500_000, 0, 500_000)


def test_tokens_of_an_expired_grant_are_gone_before_their_expiry_is_written(writer: Writer) -> None:
    """Expiry is judged when tokens are reserved, not when the ledger gets round to saying so."""
    writer.pay("january")
    writer.at(MARCH)
    (reply,) = writer.book.commit([writer.scene.reserve(writer.scene.order())], MARCH)
    assert (reply.error.code, reply.error.details["available"]) == ("budget_too_small", "0")


def test_grant_that_was_spent_whole_needs_no_expiry(writer: Writer) -> None:
    writer.pay("january")
    writer.post(writer.hold(1, 500_000), 500_000)
    assert writer.at(MARCH).expire() == []


@pytest.mark.parametrize(("tokens", "why"), [(499_999, "has 500000 tokens left"), (500_001, "has 500000 tokens left")])
def test_expiry_of_more_or_less_than_is_left_is_refused(writer: Writer, tokens: int, why: str) -> None:
    writer.pay("january")
    writer.at(MARCH)
    (reply,) = writer.book.commit([writer.scene.lapse("january", tokens)], MARCH)
    assert why in reply.error.message


def test_expiry_before_its_time_of_another_accounts_or_of_no_grant_is_refused(writer: Writer, scene) -> None:
    writer.pay("january")
    writer.say(scene.account("dave", "mallory"))
    early = writer.at(MARCH - 1).book.commit([scene.lapse("january", 500_000)], MARCH - 1)
    others = writer.at(MARCH).book.commit(
        [scene.lapse("january", 500_000, account="dave"), scene.lapse("ghost", 1)], MARCH
    )
    assert "runs until" in early[0].error.message
    assert ["no grant" in reply.error.message for reply in others] == [True, True]


@pytest.mark.parametrize("key", ["operator", "router", "alice", "mallory"])
def test_expiry_by_anybody_but_the_ledger_is_refused(writer: Writer, scene, key: str) -> None:
    writer.pay("january")
    (reply,) = writer.at(MARCH).book.commit([scene.lapse("january", 500_000, key=key)], MARCH)
    assert reply.error.code == "not_authorised"


# --- holds over the expiry --------------------------------------------------------------------------------------------


def test_live_reservation_protects_its_tokens_over_the_expiry(writer: Writer) -> None:
    """preloop #767: a lot that a live reservation held was expired under it."""
    writer.pay("january")
    order = writer.at(MARCH - 1_000).hold(1, 120_000)
    assert lapsed(writer.at(MARCH).expire()) == [("january", 380_000)]
    assert writer.bucket("january") == (0, 120_000, 0, 380_000)
    reply = writer.post(order, 120_000)
    assert parts(reply.entry.decided.debited) == [("january", 120_000)]
    assert (reply.entry.decided.released, reply.entry.decided.expired) == ((), None)


def test_unused_part_of_a_hold_ends_in_the_entry_that_releases_it(writer: Writer) -> None:
    writer.pay("january")
    order = writer.at(MARCH - 1_000).hold(1, 120_000)
    writer.at(MARCH).expire()
    reply = writer.post(order, 100_000)
    decided = reply.entry.decided
    assert (parts(decided.debited), parts(decided.released), parts(decided.expired)) == (
        [("january", 100_000)], [], [("january", 20_000)],
    )  # fmt: skip
    assert writer.bucket("january") == (0, 0, 100_000, 400_000)
    assert writer.at(MARCH + 1).expire() == []


def test_hold_over_two_grants_gives_back_to_the_living_one_only(writer: Writer) -> None:
    writer.pay("january")
    writer.at(FEBRUARY).pay("february")
    order = writer.at(MARCH - 1_000).hold(1, 600_000)
    (reply,) = writer.at(MARCH).say(writer.scene.void(order))
    decided = reply.entry.decided
    assert (parts(decided.released), parts(decided.expired)) == ([("february", 100_000)], [("january", 500_000)])
    assert writer.available == 500_000
    assert writer.expire() == []


def test_void_after_the_expiry_gives_nothing_back_to_the_grant(writer: Writer) -> None:
    writer.pay("january")
    order = writer.at(MARCH - 1_000).hold(1, 500_000)
    (reply,) = writer.at(MARCH).say(writer.scene.void(order))
    assert (reply.entry.decided.released, parts(reply.entry.decided.expired)) == ((), [("january", 500_000)])
    assert writer.book.balance("alice", MARCH).expired == 500_000


def test_void_a_moment_before_the_expiry_gives_all_back(writer: Writer) -> None:
    writer.pay("january")
    order = writer.at(MARCH - 1_000).hold(1, 500_000)
    (reply,) = writer.at(MARCH - 1).say(writer.scene.void(order))
    assert (parts(reply.entry.decided.released), reply.entry.decided.expired) == ([("january", 500_000)], None)
    assert lapsed(writer.at(MARCH).expire()) == [("january", 500_000)]


def test_abandoned_hold_expires_after_its_grant_did(writer: Writer) -> None:
    """The two commands of one round: first the hold's end, and nothing is left for the grant's."""
    writer.pay("january")
    writer.at(MARCH - 1_000).hold(1, 500_000, hold_ms=2_000)
    assert writer.at(MARCH).expire() == []
    (ended,) = writer.at(MARCH + 1_000).expire()
    assert (ended.kind, parts(ended.decided.expired)) == ("reservation.expired.v1", [("january", 500_000)])
    assert writer.bucket("january") == (0, 0, 0, 500_000)


def test_hold_and_grant_that_end_at_the_same_moment(writer: Writer) -> None:
    writer.pay("january")
    writer.at(MARCH - 1_000).hold(1, 120_000, hold_ms=1_000)
    kinds = [(entry.kind, parts(entry.decided.expired)) for entry in writer.at(MARCH).expire()]
    assert kinds == [("reservation.expired.v1", [("january", 120_000)]), ("tokens.expired.v1", [])]
    assert writer.bucket("january") == (0, 0, 0, 500_000)


def test_expiry_asked_for_before_a_release_is_refused_and_asked_for_again(writer: Writer, scene) -> None:
    """The writer's queue stands between asking what is due and committing it."""
    writer.pay("january")
    order = writer.at(MARCH - 1_000).hold(1, 120_000)
    due = writer.book.expire(MARCH)
    writer.say(scene.void(order))
    (reply,) = writer.book.commit(due, MARCH)
    assert "has 500000 tokens left" in reply.error.message
    assert lapsed(writer.at(MARCH).expire()) == [("january", 500_000)]


def test_grant_that_was_held_whole_at_its_end_expires_though_the_clock_jumped_back(writer: Writer, scene) -> None:
    """What was due and could not end is looked at again, after a release by a clock that was set back."""
    writer.pay("january")
    order = writer.at(MARCH - 1_000).hold(1, 500_000)
    assert writer.book.expire(MARCH) == []
    writer.at(MARCH - 500).say(scene.void(order))
    assert writer.book.expire(MARCH - 400) == []
    assert lapsed(writer.at(MARCH).expire()) == [("january", 500_000)]


# --- money ------------------------------------------------------------------------------------------------------------


def test_breakage_is_what_was_paid_for_tokens_that_expired_and_earns_hosts_nothing(writer: Writer) -> None:
    writer.pay("january")
    writer.post(writer.hold(1, 100_000), 100_000)
    assert writer.revenue() == (1_000_000, 0)
    writer.at(MARCH).expire()
    assert writer.revenue() == (1_000_000, 4_000_000)
    assert writer.book._state.payouts.earnings["january"].paid_uusd == 5_000_000


def test_breakage_counts_the_part_that_a_hold_gave_back_too(writer: Writer) -> None:
    writer.pay("january")
    order = writer.at(MARCH - 1_000).hold(1, 120_000)
    writer.at(MARCH).expire()
    writer.post(order, 100_000)
    assert writer.revenue() == (1_000_000, 4_000_000)


def test_gift_that_expires_breaks_no_money(writer: Writer, scene) -> None:
    writer.say(scene.grant("gift", 1_000, end_ms=1_000, paid_uusd=0))
    assert lapsed(writer.at(JANUARY + 1_000).expire()) == [("gift", 1_000)]
    assert writer.revenue() == (0, 0)


def test_discounted_grant_never_turns_into_more_than_was_paid(writer: Writer, scene) -> None:
    writer.say(scene.grant("sale", 1_000, end_ms=1_000_000, paid_uusd=6_000))
    writer.post(writer.hold(1, 500), 500)
    assert writer.revenue() == (5_000, 0)
    writer.at(JANUARY + 1_000_000).expire()
    assert writer.revenue() == (5_000, 1_000)
