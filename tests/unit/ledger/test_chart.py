"""Names of accounts in other programs: legal there, and never two accounts under one name."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.ids import SLUG_PATTERN
from sawyer.ledger.chart import account_of, name_of
from sawyer.ledger.postings import available, deferred, held

# https://beancount.github.io/docs/beancount_language_syntax.html#accounts
LEGAL = re.compile(r"(Assets|Liabilities|Equity|Income|Expenses)(:[A-Z0-9][A-Za-z0-9-]*)+")
slugs = st.from_regex(SLUG_PATTERN, fullmatch=True)


@pytest.mark.parametrize(
    ("account", "name"),
    [
        ("tokens:issued", "Equity:Memo:Tokens:Issued"),
        ("stripe:clearing", "Assets:Stripe:Clearing"),
        ("revenue:usage", "Income:Revenue:Usage"),
        ("deferred:in_1-u", "Liabilities:Deferred:InU1-u"),
        ("deferred:2026-01", "Liabilities:Deferred:2026-01"),
        ("user:ann_lee:bucket:u_u:held", "Equity:Memo:User:AnnUlee:Bucket:UUu:Held"),
    ],
)
def test_account_has_the_name_that_an_accountant_expects(account: str, name: str) -> None:
    assert name_of(account) == name
    assert account_of(name) == account


@given(user=slugs, grant=slugs)
def test_every_name_is_legal_and_leads_back(user: str, grant: str) -> None:
    for account in (available(user, grant), held(user, grant), deferred(grant)):
        name = name_of(account)
        assert LEGAL.fullmatch(name)
        assert account_of(name) == account


@given(one=slugs, other=slugs)
def test_two_accounts_never_share_a_name(one: str, other: str) -> None:
    assert (name_of(deferred(one)) == name_of(deferred(other))) is (one == other)
