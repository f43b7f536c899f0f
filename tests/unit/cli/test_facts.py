"""An entry in a few words: every kind has some, and they name whom it concerns."""

from __future__ import annotations

import pytest

from sawyer.cli.facts import concerns, summary
from sawyer.projections.fold import Entry
from sawyer.schemas.base import Strict
from sawyer.schemas.events import KINDS, BucketTokens, Decided, TokensGranted

EXPECTED = {
    "network.founded.v1": "founded sawyer-net/3f9a1c22, mode test",
    "key.added.v1": "router is a router, with key U",
    "model.published.v1": "austen in f32: 8 experts, top 2, abababab",
    "pricing.published.v1": "price sheet 2026-01 for austen",
    "node.registered.v1": "node node-a of host bob on CPU, 2 cores",
    "account.opened.v1": "account alice, with key U",
    "tokens.granted.v1": "500,000 tokens to alice (no money moved)",
    "tokens.reserved.v1": "8 tokens of alice held for austen, request 0f0f0f0f",
    "inference.completed.v1": "8 tokens of alice for 5 in + 3 out of austen, request 0f0f0f0f",
    "reservation.voided.v1": "8 tokens given back to alice: expert_unavailable, request 0f0f0f0f",
    "reservation.expired.v1": "8 tokens given back to alice: abandoned, request 0f0f0f0f",
}


def _entry(kind: str, body: Strict | None) -> Entry:
    eight = (BucketTokens(grant="january", tokens=8),)
    decided = Decided(debited=eight, released=eight)
    return Entry(1, "00" * 32, "00" * 32, "log", 1, kind, "stream", 1, "idem", body, b"{}", decided, ())  # type: ignore[arg-type]


def test_every_kind_of_event_has_its_words_here() -> None:
    assert EXPECTED.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", sorted(EXPECTED))
def test_summary_says_who_and_what(event_examples: dict[str, Strict], kind: str) -> None:
    assert summary(_entry(kind, event_examples[kind])).startswith(EXPECTED[kind])


def test_summary_of_an_unknown_kind_says_that_it_is_unknown() -> None:
    assert "does not know" in summary(_entry("future.happened.v1", None))


def test_summary_of_a_live_grant_names_what_was_paid(event_examples: dict[str, Strict]) -> None:
    grant = event_examples["tokens.granted.v1"]
    assert isinstance(grant, TokensGranted)
    live = grant.model_copy(update={"mode": "live"})
    assert summary(_entry("tokens.granted.v1", live)) == "500,000 tokens to alice ($5.00 paid)"


def test_summary_of_a_cancelled_inference_says_so(event_examples: dict[str, Strict]) -> None:
    body = event_examples["inference.completed.v1"].model_copy(update={"finish": "cancelled"})
    assert "(cancelled)" in summary(_entry("inference.completed.v1", body))


@pytest.mark.parametrize(
    ("stream", "is_hers"), [("account:alice", True), ("account:alice2", False), ("node:alice", False)]
)
def test_account_is_concerned_by_its_own_stream_alone(stream: str, is_hers: bool) -> None:
    assert concerns(stream, "alice") is is_hers
