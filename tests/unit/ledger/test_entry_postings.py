"""The postings of one entry are those that a walk over the whole book gives it."""

from __future__ import annotations

from contextlib import closing

import pytest

from sawyer.ledger import entry_postings
from sawyer.ledger.audit import Accounts
from sawyer.ledger.entry import decode_entry
from sawyer.ledger.entry_postings import postings_of
from sawyer.ledger.source import SQLiteSource
from sawyer.schemas.events import InferenceCompleted, TokensExpired

from .conftest import Scene
from .stories import tell


@pytest.fixture(scope="module")
def story(keys, tmp_path_factory) -> SQLiteSource:
    return SQLiteSource(tell(Scene(keys), tmp_path_factory.mktemp("story")))


@pytest.fixture(scope="module")
def entries(story):
    with closing(story.rows()) as rows:
        return [decode_entry(row.state) for row in rows if not row.is_checkpoint]


def test_every_entry_moves_alone_what_it_moves_in_the_book(story, entries) -> None:
    """Grants at the full price, at a lower one and for nothing; debits, breakage and what a hold gave back too late."""
    accounts = Accounts()
    for entry in entries:
        assert postings_of(story, entry) == accounts.post(entry), entry.seq


def test_grant_at_the_full_price_needs_no_history(story, entries, monkeypatch) -> None:
    monkeypatch.setattr(entry_postings, "about_account", lambda _: pytest.fail("read the history"))
    lapse = next(e for e in entries if isinstance(e.body, TokensExpired) and e.body.grant == "2026_jan-a")
    gift = next(e for e in entries if isinstance(e.body, InferenceCompleted) and e.decided.debited[0].grant == "gift")
    assert {posting.account for posting in postings_of(story, lapse)} > {"revenue:breakage", "deferred:2026_jan-a"}
    assert {posting.unit for posting in postings_of(story, gift)} == {"tokens"}


def test_grant_below_the_full_price_earns_no_more_than_was_paid(story, entries) -> None:
    cheap = [e for e in entries if isinstance(e.body, InferenceCompleted) and e.decided.debited[0].grant == "cheap_u"]
    earned = [-sum(p.amount for p in postings_of(story, each) if p.account == "revenue:usage") for each in cheap]
    assert earned == [25, 0, 0]
