"""An entry in a few words: every kind has some, and they name whom it concerns."""

from __future__ import annotations

import pytest

from sawyer.cli.facts import summary
from sawyer.projections.fold import Entry
from sawyer.schemas.base import Fact
from sawyer.schemas.events import KINDS, BucketTokens, Decided

EXPECTED = {
    "network.founded.v1": "founded sawyer-net/3f9a1c22, mode test",
    "key.added.v1": "router is a router, with key U",
    "key.rotated.v1": "node node-a has a new key, U",
    "key.revoked.v1": "key U",
    "model.published.v1": "austen in f32: 8 experts, top 2, abababab",
    "pricing.published.v1": "price sheet 2026-01 for austen in f32",
    "node.registered.v1": "node node-a of host bob on CPU, 2 cores",
    "account.opened.v1": "account alice, with key U",
    "tokens.granted.v1": "500,000 tokens to alice, tier explorer (no money moved)",
    "tokens.expired.v1": "499,992 tokens of alice expired with grant january",
    "tokens.reserved.v1": "8 tokens of alice held for austen, request 0f0f0f0f",
    "inference.completed.v1": "8 tokens of alice for 5 in + 3 out of austen, request 0f0f0f0f",
    "reservation.voided.v1": "8 tokens given back to alice: expert_unavailable, request 0f0f0f0f",
    "reservation.expired.v1": "8 tokens given back to alice: abandoned, request 0f0f0f0f",
    "snapshot.taken.v1": "state of the first 12 entries, abababab",
    "subject.erased.v1": "what was sealed for alice can be read no more",
}
EIGHT = (BucketTokens(grant="january", tokens=8),)
ONE = (BucketTokens(grant="january", tokens=1),)


def said(kind: str, body: Fact | None, decided: Decided | None = None) -> str:
    decided = decided or Decided(debited=EIGHT, released=EIGHT)
    return summary(Entry(1, "00" * 32, "00" * 32, "log", 1, kind, "stream", 1, "idem", body, b"{}", decided, ()))  # type: ignore[arg-type]


def test_every_kind_of_event_has_its_words_here() -> None:
    assert EXPECTED.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", sorted(EXPECTED))
def test_summary_says_who_and_what(event_examples: dict[str, Fact], kind: str) -> None:
    assert said(kind, event_examples[kind]).startswith(EXPECTED[kind])


def test_summary_of_an_unknown_kind_says_that_it_is_unknown() -> None:
    assert "does not know" in said("future.happened.v1", None)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("tokens.granted.v1", {"mode": "live"}, "500,000 tokens to alice, tier explorer ($5.00 paid)"),
        ("tokens.granted.v1", {"tier": "", "tokens": 1}, "1 token to alice (no money moved)"),
        ("inference.completed.v1", {"finish": "cancelled"}, "of austen (cancelled)"),
        ("key.added.v1", {"role": "ledger"}, "the ledger has a new key, U"),
        ("key.added.v1", {"role": "operator"}, "the operator has a new key, U"),
        ("key.revoked.v1", {}, " revoked: stolen, in question since 2023-11-14T22:13:20Z"),
        ("node.registered.v1", {"promised_us": 20_000}, ", promises 20,000 us a call"),
        ("node.registered.v1", {"device": ""}, "node node-a of host bob"),
    ],
)
def test_summary_says_what_is_special(event_examples: dict[str, Fact], kind, changes, words) -> None:
    assert words in said(kind, event_examples[kind].changed(**changes))


def test_summary_of_a_key_that_was_in_no_other_hands_names_no_time(event_examples: dict[str, Fact]) -> None:
    assert said("key.revoked.v1", event_examples["key.revoked.v1"].changed(since_ms=0)).endswith("revoked: stolen")


@pytest.mark.parametrize("kind", ["inference.completed.v1", "reservation.voided.v1", "reservation.expired.v1"])
def test_summary_says_what_expired_when_it_was_given_back(event_examples: dict[str, Fact], kind: str) -> None:
    decided = Decided(debited=EIGHT, released=(), expired=ONE)
    assert said(kind, event_examples[kind], decided).endswith("; 1 token expired with the grant")
