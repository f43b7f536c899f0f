"""The second bookkeeping: sums of postings find what a fold got wrong."""

from __future__ import annotations

import pytest

from sawyer.errors import BookCorrupt
from sawyer.ledger.audit import Accounts
from sawyer.projections.fold import Entry
from sawyer.schemas.events import BucketTokens, Decided


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
    assert (row.granted, row.held, row.consumed, row.expired) == (500_000, 8, 7, 0)


@pytest.mark.parametrize("field", ["granted", "held", "consumed", "expired"])
def test_account_row_that_a_fold_got_wrong_is_found(booked, field: str) -> None:
    accounts, state = booked
    row = state.balances.account("alice")
    setattr(row, field, getattr(row, field) + 1)
    with pytest.raises(BookCorrupt, match=r"account alice: its buckets say .*\(500000, 8, 7, 0\)"):
        accounts.check_rows(state)


@pytest.mark.parametrize("field", ["tokens", "available", "held", "consumed", "expired"])
def test_bucket_row_that_a_fold_got_wrong_is_found(booked, field: str) -> None:
    accounts, state = booked
    row = state.balances.bucket("january")
    setattr(row, field, getattr(row, field) + 1)
    with pytest.raises(BookCorrupt):
        accounts.check_rows(state)


@pytest.mark.parametrize(("more", "less"), [("available", "held"), ("consumed", "expired"), ("held", "consumed")])
def test_bucket_row_that_adds_up_and_is_wrong_all_the_same_is_found(booked, more: str, less: str) -> None:
    """The postings say which of its parts each token is in."""
    accounts, state = booked
    row = state.balances.bucket("january")
    setattr(row, more, getattr(row, more) + 1)
    setattr(row, less, getattr(row, less) - 1)
    with pytest.raises(BookCorrupt, match="january"):
        accounts.check_rows(state)


def test_grant_that_a_fold_made_up_is_found(booked) -> None:
    """No entry issued its tokens."""
    accounts, state = booked
    row = state.balances.bucket("january")
    row.tokens, row.expired = row.tokens + 5, row.expired + 5
    account = state.balances.account("alice")
    account.granted, account.expired = account.granted + 5, account.expired + 5
    with pytest.raises(BookCorrupt, match=r"tokens:issued: postings sum to -500000, its row says -500005"):
        accounts.check_rows(state)


@pytest.mark.parametrize("field", ["earned_uusd", "breakage_uusd"])
def test_earnings_that_a_fold_got_wrong_are_found(booked, field: str) -> None:
    """What is earned is summed from the postings, not asked of the fold."""
    accounts, state = booked
    row = state.payouts.earnings["january"]
    setattr(row, field, getattr(row, field) + 10)
    with pytest.raises(BookCorrupt, match="deferred:january"):
        accounts.check_rows(state)


@pytest.mark.parametrize("field", ["earned_uusd", "breakage_uusd"])
def test_pool_that_a_fold_got_wrong_is_found(booked, field: str) -> None:
    accounts, state = booked
    row = state.payouts.rows["pool"]
    setattr(row, field, str(int(getattr(row, field)) + 10))
    with pytest.raises(BookCorrupt, match="revenue:"):
        accounts.check_rows(state)


def test_sums_that_do_not_come_to_zero_over_all_accounts_are_found(booked) -> None:
    accounts, state = booked
    accounts.sums["stripe:clearing", "uusd"] += 1
    with pytest.raises(BookCorrupt, match="all accounts sum to 1 uusd, expected 0"):
        accounts.check_rows(state)


def test_grant_earns_no_more_than_was_paid_for_it(empty_judge, scene) -> None:
    accounts, order = Accounts(), scene.order(1)
    steps = [*scene.members(), scene.grant("gift", 100, paid_uusd=25), scene.reserve(order), scene.complete(order)]
    for entry in empty_judge.write(*steps):
        accounts.post(entry)
    accounts.check_rows(empty_judge.state)
    assert accounts.sums["deferred:gift", "uusd"] == 0
    assert accounts.sums["revenue:usage", "uusd"] == -25


def test_entry_that_takes_more_than_there_is_is_refused_and_named(booked, judge, scene) -> None:
    """The running minimum: at no prefix may anything of a user fall below zero."""
    accounts, _ = booked
    (honest,) = judge.write(scene.reserve(scene.order(9)))
    fields = {name: getattr(honest, name) for name in Entry.__struct_fields__}
    lie = Entry(**{**fields, "decided": Decided(held=(BucketTokens(grant="january", tokens=500_000),))})
    with pytest.raises(BookCorrupt, match=r"user:alice:bucket:january:available falls to -15 tokens"):
        accounts.post(lie)
    assert accounts.lowest == -15


def test_accounts_grow_with_grants_and_not_with_requests(empty_judge, scene) -> None:
    accounts = Accounts()
    for entry in empty_judge.write(*scene.opening()):
        accounts.post(entry)
    sizes = []
    for number in (1, 2, 3):
        order = scene.order(number)
        for entry in empty_judge.write(scene.reserve(order), scene.complete(order)):
            accounts.post(entry)
        sizes.append(len(accounts.sums))
    assert sizes[0] == sizes[1] == sizes[2]
