"""The second bookkeeping: sums of postings find what a fold got wrong."""

from __future__ import annotations

import pytest

from sawyer.errors import BookCorrupt
from sawyer.ledger.audit import Accounts


@pytest.fixture
def booked(empty_judge, scene):
    """(accounts, state) after a grant, a request that was completed and one that is held."""
    accounts = Accounts()
    done, open_order = scene.order(1), scene.order(2)
    steps = [*scene.opening(), scene.reserve(done), scene.complete(done, output_tokens=2), scene.reserve(open_order)]
    for entry in empty_judge.write(*steps):
        accounts.post(entry)
    return accounts, empty_judge.state


def test_sums_of_postings_agree_with_the_rows_of_an_honest_book(booked) -> None:
    accounts, state = booked
    accounts.check_rows(state)
    row = state.balances.account("alice")
    assert (row.granted, row.held, row.consumed) == (500_000, 8, 7)


@pytest.mark.parametrize("field", ["granted", "held", "consumed"])
def test_account_row_that_a_fold_got_wrong_is_found(booked, field: str) -> None:
    accounts, state = booked
    row = state.balances.account("alice")
    setattr(row, field, getattr(row, field) + 1)
    with pytest.raises(BookCorrupt, match=r"account alice: postings say .*\(500000, 8, 7\)"):
        accounts.check_rows(state)


@pytest.mark.parametrize("field", ["available", "held", "consumed"])
def test_bucket_row_that_a_fold_got_wrong_is_found(booked, field: str) -> None:
    accounts, state = booked
    row = state.balances.bucket("january")
    setattr(row, field, getattr(row, field) + 1)
    with pytest.raises(BookCorrupt):
        accounts.check_rows(state)


def test_earnings_that_a_fold_got_wrong_are_found(booked) -> None:
    """What is earned is summed from the postings, not asked of the fold."""
    accounts, state = booked
    state.payouts.earnings["january"].earned_uusd += 10
    with pytest.raises(BookCorrupt, match="deferred:january"):
        accounts.check_rows(state)


def test_grant_earns_no_more_than_was_paid_for_it(empty_judge, scene) -> None:
    accounts, order = Accounts(), scene.order(1)
    steps = [*scene.members(), scene.grant("gift", 100, paid_uusd=25), scene.reserve(order), scene.complete(order)]
    for entry in empty_judge.write(*steps):
        accounts.post(entry)
    accounts.check_rows(empty_judge.state)
    assert accounts.sums["deferred:gift", "uusd"] == 0
    assert accounts.sums["revenue:usage", "uusd"] == -25
