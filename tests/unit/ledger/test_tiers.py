"""Grants of a tier: one paid period each, 10 uUSD a token, and never more than two periods live at once."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sawyer.economy.periods import DAY_MS, month_later, paid_period
from sawyer.economy.tiers import TIERS
from sawyer.errors import RefusedError
from sawyer.ledger.commands import VerifiedCommand
from sawyer.ledger.decide import decide

JANUARY_MS = 1_704_067_200_000
"""2024-01-01 00:00 UTC."""


def paid(scene, grant: str, start_ms: int, *, tier: str = "explorer", **changes: object) -> VerifiedCommand:
    """The grant of a whole period of a tier that starts here, as an invoice that was paid makes it."""
    period_end_ms, expires_ms = paid_period(start_ms)
    price = TIERS.get(tier, TIERS["explorer"])
    body = scene.grant(grant, price.tokens, tier=tier).body.changed(
        **{
            "valid_from_ms": start_ms, "period_end_ms": period_end_ms, "expires_ms": expires_ms,
            "paid_uusd": price.price_uusd, **changes,
        }
    )  # fmt: skip
    return scene.say(body, "operator")


@pytest.fixture
def open_account(scene, empty_judge):
    """A judge of a network whose account has no grant yet; it is the first of January."""
    scene.now_ms = JANUARY_MS
    empty_judge.write(*scene.members())
    return empty_judge


def refuse(judge, asked: VerifiedCommand, match: str) -> None:
    with pytest.raises(RefusedError, match=match):
        decide(judge.state, asked, judge.scene.now_ms)


@pytest.mark.parametrize("tier", TIERS)
def test_each_tier_is_granted_for_its_price(open_account, scene, tier: str) -> None:
    open_account.write(paid(scene, "invoice-1", JANUARY_MS, tier=tier))
    row = open_account.state.balances.bucket("invoice-1")
    assert (row.tier, row.tokens) == (tier, TIERS[tier].tokens)
    assert open_account.state.payouts.earnings["invoice-1"].paid_uusd == TIERS[tier].price_uusd


@pytest.mark.parametrize("paid_uusd", [0, 4_999_999, 5_000_001, 20_000_000])
def test_tier_for_another_price_is_refused(open_account, scene, paid_uusd: int) -> None:
    refuse(open_account, paid(scene, "invoice-1", JANUARY_MS, paid_uusd=paid_uusd), "10 uUSD each")


@pytest.mark.parametrize("tokens", [500_001, 5_000_000])
def test_more_tokens_than_the_tier_has_are_refused_though_they_are_paid(open_account, scene, tokens: int) -> None:
    asked = paid(scene, "invoice-1", JANUARY_MS, tokens=tokens, paid_uusd=tokens * 10)
    refuse(open_account, asked, "at most 500000 tokens")


def test_tier_that_nobody_sells_is_refused(open_account, scene) -> None:
    refuse(open_account, paid(scene, "invoice-1", JANUARY_MS, tier="whale"), "no tier whale")


@pytest.mark.parametrize(
    ("days", "rolled_days", "fits"),
    [(31, 31, True), (31, 1, True), (1, 31, True), (32, 31, False), (31, 32, False), (31, 0, False), (365, 31, False)],
)
def test_period_is_a_month_at_most_and_rolls_over_for_one_month_at_most(
    open_account, scene, days: int, rolled_days: int, fits: bool
) -> None:
    end_ms = JANUARY_MS + days * DAY_MS
    changes = {"period_end_ms": end_ms, "expires_ms": end_ms + rolled_days * DAY_MS}
    asked = paid(scene, "invoice-1", JANUARY_MS, **changes)
    if fits:
        open_account.write(asked)
    else:
        refuse(open_account, asked, "a month at most")


def test_period_that_outlives_its_grant_is_refused(open_account, scene) -> None:
    asked = paid(scene, "invoice-1", JANUARY_MS, expires_ms=JANUARY_MS + DAY_MS)
    refuse(open_account, asked, "not before its period ends")


def test_third_live_period_is_refused_so_that_roll_over_does_not_compound(open_account, scene) -> None:
    """Bought ahead or by an operator's mistake: a second subscription would make three live buckets."""
    february_ms = month_later(JANUARY_MS, 1)
    open_account.write(paid(scene, "january", JANUARY_MS), paid(scene, "february", february_ms))
    refuse(open_account, paid(scene, "extra", february_ms + DAY_MS), "at most 2 paid periods")
    refuse(open_account, paid(scene, "extra", JANUARY_MS + DAY_MS), "at most 2 paid periods")


@pytest.mark.parametrize("order", list(permutations(range(4))), ids=lambda order: "".join(map(str, order)))
def test_months_are_granted_in_whatever_order_their_invoices_are_paid(open_account, scene, order) -> None:
    starts = [JANUARY_MS]
    for _ in range(3):
        starts.append(month_later(starts[-1], 1))
    open_account.write(*(paid(scene, f"month-{number}", starts[number]) for number in order))
    for number, start_ms in enumerate(starts):
        live = min(number + 1, 2) * 500_000
        assert open_account.state.balances.available("alice", start_ms) == live


def test_upgrade_at_once_tops_up_the_current_period_with_its_dates(open_account, scene) -> None:
    """A difference invoice in the middle of February, while January is live too."""
    february_ms = month_later(JANUARY_MS, 1)
    end_ms, expires_ms = paid_period(february_ms)
    open_account.write(paid(scene, "january", JANUARY_MS), paid(scene, "february", february_ms))
    top_up = paid(
        scene, "upgrade", february_ms + 14 * DAY_MS, tier="builder", period_end_ms=end_ms, expires_ms=expires_ms,
        tokens=1_500_000, paid_uusd=15_000_000,
    )  # fmt: skip
    open_account.write(top_up)
    assert open_account.state.balances.available("alice", february_ms + 14 * DAY_MS) == 2_500_000
    assert open_account.state.balances.available("alice", end_ms) == 2_000_000
    assert open_account.state.balances.available("alice", expires_ms) == 0


def test_downgrade_is_the_smaller_tier_at_the_next_period(open_account, scene) -> None:
    february_ms = month_later(JANUARY_MS, 1)
    open_account.write(
        paid(scene, "january", JANUARY_MS, tier="operator"), paid(scene, "february", february_ms, tier="explorer")
    )
    assert open_account.state.balances.available("alice", february_ms) == 5_500_000
    assert open_account.state.balances.available("alice", month_later(february_ms, 1)) == 500_000


def test_cancelled_subscription_runs_out_and_a_new_one_may_begin_any_day(open_account, scene) -> None:
    open_account.write(paid(scene, "january", JANUARY_MS))
    again_ms = month_later(JANUARY_MS, 1) + 9 * DAY_MS
    open_account.write(paid(scene, "back", again_ms))
    assert open_account.state.balances.available("alice", again_ms) == 1_000_000


def test_grant_without_a_tier_is_bound_by_none_of_this(open_account, scene) -> None:
    """A gift, a refund in kind: any number of tokens, for any time, for any price, any number of them."""
    open_account.write(paid(scene, "january", JANUARY_MS), paid(scene, "february", month_later(JANUARY_MS, 1)))
    for number, tokens in enumerate((7, 900_000_000)):
        body = scene.grant(f"gift-{number}", tokens, end_ms=900 * DAY_MS, paid_uusd=number).body
        open_account.write(scene.say(body, "operator"))
    assert open_account.state.balances.available("alice", JANUARY_MS) == 900_500_007


def test_gifts_do_not_count_as_paid_periods(open_account, scene) -> None:
    open_account.write(scene.grant("gift-1", 5), scene.grant("gift-2", 5), scene.grant("gift-3", 5))
    open_account.write(paid(scene, "january", JANUARY_MS), paid(scene, "february", month_later(JANUARY_MS, 1)))


def test_periods_of_another_account_do_not_count(open_account, scene) -> None:
    open_account.write(scene.account("dave", "mallory"))
    for number, account in enumerate(("alice", "dave")):
        open_account.write(paid(scene, f"j{number}", JANUARY_MS, account=account))
        open_account.write(paid(scene, f"f{number}", month_later(JANUARY_MS, 1), account=account))


def test_invoice_delivered_twice_is_granted_once(open_account, scene) -> None:
    asked = paid(scene, "invoice-1", JANUARY_MS)
    open_account.write(asked)
    assert decide(open_account.state, asked, JANUARY_MS + 1).repeated
    assert open_account.state.balances.account("alice").granted == 500_000


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 120), st.integers(1, 31), st.integers(1, 31)), min_size=1, max_size=8))
def test_no_moment_ever_has_more_than_two_paid_periods_live(scene, judge_of, asked) -> None:
    scene.now_ms = JANUARY_MS
    judge = judge_of(scene)
    judge.write(*scene.members())
    granted: list[tuple[int, int, int]] = []
    for number, (day, length, rolled) in enumerate(asked):
        start_ms = JANUARY_MS + day * DAY_MS
        end_ms = start_ms + length * DAY_MS
        expires_ms = end_ms + rolled * DAY_MS
        both = [*granted, (start_ms, end_ms, expires_ms)]
        fits = all(len({end for begin, end, gone in both if begin <= at < gone}) <= 2 for at, _, _ in both)
        command = paid(scene, f"g{number}", start_ms, period_end_ms=end_ms, expires_ms=expires_ms)
        if fits:
            judge.write(command)
            granted = both
        else:
            refuse(judge, command, "at most 2 paid periods")
