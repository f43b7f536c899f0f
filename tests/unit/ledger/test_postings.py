"""Double entry: what each kind of entry moves, and that nothing is made or lost."""

from __future__ import annotations

from collections import Counter

import pytest

from sawyer.ledger.audit import Accounts
from sawyer.ledger.commands import LEDGER_NAME, VerifiedCommand, check, command
from sawyer.schemas.events import TokensExpired

DAY_MS = 86_400_000


class Bookkeeping:
    """A judge whose entries are posted."""

    def __init__(self, judge) -> None:
        self.judge = judge
        self.accounts = Accounts()
        self.entries = 0

    def moves(self, *commands, now_ms: int | None = None) -> list[Counter]:
        """What each command's entry moves, (account, unit) -> amount."""
        found = []
        for asked in commands:
            (entry,) = self.judge.write(asked, now_ms=now_ms)
            moved: Counter = Counter()
            for posting in self.accounts.post(entry):
                moved[posting.account, posting.unit] += posting.amount
            found.append(moved)
        self.accounts.check_rows(self.judge.state)
        return found


@pytest.fixture
def books(empty_judge, scene) -> Bookkeeping:
    """Alice has 500,000 tokens."""
    made = Bookkeeping(empty_judge)
    made.moves(*scene.opening())
    return made


def lapse(scene, grant: str, tokens: int) -> VerifiedCommand:
    body = TokensExpired(network=scene.network, account="alice", grant=grant, tokens=tokens)
    return check(command(body, LEDGER_NAME, scene.keys["ledger"]))


def test_paid_grant_issues_tokens_and_defers_its_money(books: Bookkeeping, scene) -> None:
    (moved,) = books.moves(scene.grant("february", 100))
    assert moved == {
        ("tokens:issued", "tokens"): -100, ("user:alice:bucket:february:available", "tokens"): 100,
        ("deferred:february", "uusd"): -1_000, ("stripe:clearing", "uusd"): 1_000,
    }  # fmt: skip


def test_free_grant_moves_no_money(books: Bookkeeping, scene) -> None:
    (moved,) = books.moves(scene.grant("gift", 100, paid_uusd=0))
    assert {unit for _, unit in moved} == {"tokens"}


def test_completed_request_consumes_what_it_used_and_earns_its_money(books: Bookkeeping, scene) -> None:
    order = scene.order()
    reserved, completed = books.moves(scene.reserve(order), scene.complete(order, output_tokens=2))
    assert reserved == {
        ("user:alice:bucket:january:available", "tokens"): -8, ("user:alice:bucket:january:held", "tokens"): 8,
    }  # fmt: skip
    assert completed == {
        ("user:alice:bucket:january:held", "tokens"): -8, ("tokens:consumed", "tokens"): 7,
        ("user:alice:bucket:january:available", "tokens"): 1,
        ("deferred:january", "uusd"): 70, ("revenue:usage", "uusd"): -70,
    }  # fmt: skip


def test_void_gives_back_exactly_what_was_held(books: Bookkeeping, scene) -> None:
    order = scene.order()
    reserved, voided = books.moves(scene.reserve(order), scene.void(order))
    assert {key: -amount for key, amount in reserved.items()} == voided


def test_money_earned_never_passes_what_was_paid(books: Bookkeeping, scene) -> None:
    books.moves(scene.grant("cheap", 1_000, paid_uusd=75, end_ms=DAY_MS))
    orders = [scene.order(1), scene.order(2)]
    moved = books.moves(*(step for order in orders for step in (scene.reserve(order), scene.complete(order))))
    assert [found["revenue:usage", "uusd"] for found in moved] == [0, -75, 0, 0]


def test_membership_moves_nothing(empty_judge, scene) -> None:
    moved = Bookkeeping(empty_judge).moves(*scene.members())
    assert moved == [Counter()] * len(scene.members())


def test_expired_grant_moves_its_tokens_and_its_money_breaks(books: Bookkeeping, scene) -> None:
    """Hosts get nothing of what was paid for tokens that nobody used."""
    order = scene.order()
    books.moves(scene.reserve(order), scene.complete(order))
    (moved,) = books.moves(lapse(scene, "january", 499_992), now_ms=scene.now_ms + 30 * DAY_MS)
    assert moved == {
        ("user:alice:bucket:january:available", "tokens"): -499_992, ("tokens:expired", "tokens"): 499_992,
        ("deferred:january", "uusd"): 4_999_920, ("revenue:breakage", "uusd"): -4_999_920,
    }  # fmt: skip
    assert books.accounts.sums["deferred:january", "uusd"] == 0


def test_breakage_is_never_more_than_is_still_deferred(books: Bookkeeping, scene) -> None:
    books.moves(scene.grant("cheap", 100, paid_uusd=75, end_ms=DAY_MS))
    order = scene.order()
    books.moves(scene.reserve(order), scene.complete(order, output_tokens=1))
    (moved,) = books.moves(lapse(scene, "cheap", 94), now_ms=scene.now_ms + DAY_MS)
    assert (moved["revenue:breakage", "uusd"], moved["tokens:expired", "tokens"]) == (-15, 94)


def test_part_of_a_hold_that_comes_back_to_an_expired_grant_expires_with_it(books: Bookkeeping, scene) -> None:
    """8 held, 6 used, 2 gone: all in the entry that ends the request."""
    books.moves(scene.grant("short", 100, end_ms=1_000))
    order = scene.order()
    books.moves(scene.reserve(order))
    (moved,) = books.moves(scene.complete(order, output_tokens=1), now_ms=scene.now_ms + 1_000)
    assert moved == {
        ("user:alice:bucket:short:held", "tokens"): -8, ("tokens:consumed", "tokens"): 6,
        ("tokens:expired", "tokens"): 2,
        ("deferred:short", "uusd"): 80, ("revenue:usage", "uusd"): -60, ("revenue:breakage", "uusd"): -20,
    }  # fmt: skip


def test_every_entry_of_every_kind_sums_to_zero_in_each_unit(books: Bookkeeping, scene) -> None:
    books.moves(scene.grant("short", 100, end_ms=1_000))
    done, given_up, late = scene.order(1), scene.order(2), scene.order(3)
    moved = books.moves(*map(scene.reserve, (done, given_up, late)), scene.complete(done), scene.void(given_up))
    moved += books.moves(scene.expiry(late), lapse(scene, "short", 84), now_ms=scene.now_ms + 600_000)
    for each in moved:
        for unit in ("tokens", "uusd"):
            assert sum(amount for (_, of), amount in each.items() if of == unit) == 0
    assert books.accounts.sums["tokens:expired", "tokens"] == 92
