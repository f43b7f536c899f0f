"""Projections: folding a story gives these rows, always the same, and nothing for what is not known."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from sawyer.projections.audit_chain import AuditChain
from sawyer.projections.balances import Balances
from sawyer.projections.entries import Entries
from sawyer.projections.fold import ROWS_VERSION, Entry, Fold, content_of, digest_of
from sawyer.projections.nodes import Nodes
from sawyer.projections.payouts import Payouts
from sawyer.projections.registry import Registry
from sawyer.schemas.base import Strict, encode_canonical
from sawyer.schemas.events import KIND_OF, NO_HASH, Body, BucketTokens, Decided, HostCredit
from sawyer.schemas.signed import Signature

STORY = (
    "network.founded.v1", "key.added.v1", "model.published.v1", "pricing.published.v1", "node.registered.v1",
    "account.opened.v1", "tokens.granted.v1", "tokens.reserved.v1", "inference.completed.v1",
)  # fmt: skip
HOLD = (BucketTokens(grant="january", tokens=8),)
DECIDED = {
    "tokens.reserved.v1": Decided(held=HOLD),
    "inference.completed.v1": Decided(
        debited=HOLD, released=(), credits=(HostCredit(host="bob", node="node-a", rows=12, work=2652),)
    ),
}


class Counting:
    """A tree that only counts: these tests are not about hashes."""

    def __init__(self) -> None:
        self.size = 0

    def append(self, leaf: bytes) -> None:
        self.size += 1

    def root(self) -> bytes:
        return bytes([self.size]) * 32


def entry_of(seq: int, body: Body | None, kind: str, decided: Decided) -> Entry:
    signature = Signature(by="router", key_id="U" + "A" * 55, type=kind, sig="A" * 86 + "==")
    statement = body.canonical() if body is not None else b"{}"
    return Entry(
        seq=seq, leaf=f"{seq:064x}", prev=NO_HASH, log="net/1", ts_ms=seq, kind=kind, stream=f"story:{seq % 2}",
        version=(seq + 1) // 2, idem=f"fact:{seq}", body=body, statement=statement, decided=decided,
        attestations=(signature,),
    )  # fmt: skip


@pytest.fixture
def story(event_examples: dict[str, Strict]) -> list[Entry]:
    return [
        entry_of(seq, event_examples[kind], kind, DECIDED.get(kind, Decided()))
        for seq, kind in enumerate(STORY, start=1)
    ]


def folds() -> list[Fold]:
    return [Registry(), Nodes(), Balances(), Payouts(), Entries(), AuditChain(Counting())]


def told(fold: Fold, story: list[Entry]) -> dict[str, dict]:
    for entry in story:
        fold.apply(entry)
    return {key: msgspec.json.decode(fold.encoded(key)) for key in fold.rows}


def test_balances_after_the_story(story: list[Entry]) -> None:
    rows = told(Balances(), story)
    (request,) = [row for key, row in rows.items() if key.startswith("request:")]
    account, bucket = rows["account:alice"], rows["bucket:january"]
    assert (account["granted"], account["held"], account["consumed"], account["grants"]) == (500_000, 0, 8, ["january"])
    assert (bucket["available"], bucket["held"], bucket["consumed"]) == (499_992, 0, 8)
    assert (request["status"], request["seq"], request["billed_tokens"], request["held"]) == (
        "completed", 9, 8, [["january", 8]],
    )  # fmt: skip


def test_payouts_after_the_story(story: list[Entry]) -> None:
    assert told(Payouts(), story) == {
        "host:bob": {"rows": 12, "work": "2652", "nodes": ["node-a"], "requests": 1},
        "grant:january": {"paid_uusd": 5_000_000, "earned_uusd": 80},
        "pool": {"earned_uusd": "80"},
    }


def test_work_beyond_53_bits_stays_exact(story: list[Entry]) -> None:
    credit = HostCredit(host="bob", node="node-a", rows=1, work=2**53 - 1)
    fold = Payouts()
    told(fold, story)
    for seq in (10, 11):
        fold.apply(entry_of(seq, story[-1].body, story[-1].kind, Decided(debited=(), released=(), credits=(credit,))))
    assert fold.hosts["bob"].work == str(2652 + 2 * (2**53 - 1))


def test_audit_chain_counts_kinds_signers_streams_and_knows_its_head(story: list[Entry]) -> None:
    rows = told(AuditChain(Counting()), story)
    assert rows["head"] == {"seq": 9, "leaf": f"{9:064x}", "root": "09" * 32, "ts_ms": 9}
    assert rows["kind:key.added.v1"] == {"entries": 1, "known": True}
    assert rows["signer:U" + "A" * 55] == {"entries": 9, "by": "router"}
    assert rows["stream:story:1"] == {"version": 5}


def test_node_remembers_its_last_receipt(story: list[Entry]) -> None:
    row = told(Nodes(), story)["node-a"]
    receipt = story[-1].body.receipts[0]
    assert (row["host"], row["counter"]) == ("bob", 1)
    assert row["last_receipt"] == hashlib.sha256(receipt.canonical()).hexdigest()


def test_registry_keeps_every_manifest_and_sheet_and_knows_the_newest(story: list[Entry]) -> None:
    fold = Registry()
    told(fold, story)
    newer = fold.models["austen"].model_copy(update={"manifest": "99" * 32})
    changed = fold.apply(entry_of(10, newer, KIND_OF[type(newer)], Decided()))
    assert changed == {"model:austen", f"manifest:austen:{'99' * 32}"}
    assert fold.models["austen"] == newer
    assert {manifest for _, manifest in fold.manifests} == {"ab" * 32, "99" * 32}


def test_sheet_says_when_a_newer_one_replaced_it(story: list[Entry]) -> None:
    fold = Registry()
    told(fold, story)
    (first,) = [key.removeprefix("sheet:") for key in fold.rows if key.startswith("sheet:")]
    newer = fold.pricing.model_copy(update={"sheet": "newer"})
    assert fold.superseded_ms(first) == 0
    changed = fold.apply(entry_of(10, newer, KIND_OF[type(newer)], Decided()))
    assert f"sheet:{first}" in changed
    assert (fold.superseded_ms(first), fold.superseded_ms("00" * 32)) == (10, 0)


@pytest.mark.parametrize("at", range(6), ids=lambda at: folds()[at].name)
def test_fold_run_twice_gives_the_same_bytes(at: int, story: list[Entry]) -> None:
    one, two = folds()[at], folds()[at]
    told(one, story)
    told(two, story)
    assert one.digest() == two.digest() != folds()[at].digest()


@pytest.mark.parametrize("at", range(6), ids=lambda at: folds()[at].name)
def test_apply_names_exactly_the_rows_that_it_changed(at: int, story: list[Entry]) -> None:
    fold = folds()[at]
    for entry in story:
        before = {key: fold.encoded(key) for key in fold.rows}
        changed = fold.apply(entry)
        after = {key: fold.encoded(key) for key in fold.rows}
        assert before.keys() <= after.keys()
        assert {key for key in after if before.get(key) != after[key]} <= changed <= after.keys()


@pytest.mark.parametrize("at", range(4), ids=lambda at: folds()[at].name)
def test_unknown_kind_changes_no_fact(at: int, story: list[Entry]) -> None:
    fold = folds()[at]
    told(fold, story)
    before = fold.digest()
    assert fold.apply(entry_of(10, None, "tokens.invented.v1", Decided())) == set()
    assert fold.digest() == before


def test_unknown_kind_is_counted_by_the_audit_chain(story: list[Entry]) -> None:
    fold = AuditChain(Counting())
    told(fold, [*story, entry_of(10, None, "tokens.invented.v1", Decided())])
    assert (fold.kinds["tokens.invented.v1"].entries, fold.kinds["tokens.invented.v1"].known) == (1, False)


@pytest.mark.parametrize("at", range(6), ids=lambda at: folds()[at].name)
def test_stored_rows_are_canonical_and_hold_no_null_and_no_float(at: int, story: list[Entry]) -> None:
    fold = folds()[at]
    for key, row in told(fold, story).items():
        assert encode_canonical(row) == fold.encoded(key)
        assert b"null" not in fold.encoded(key)
        assert all(not isinstance(value, float) for value in row.values())


def test_digest_tells_lists_of_rows_apart_that_join_to_the_same_text() -> None:
    assert digest_of([("a", b"bc")]) != digest_of([("ab", b"c")])
    assert digest_of([("a", b""), ("b", b"")]) != digest_of([("a", b"1:b0:")])


def test_version_of_the_rows_is_raised_with_every_change_of_them(story: list[Entry]) -> None:
    """The rows of the story, fixed for one version. Where it fails: raise ROWS_VERSION, and fix the new digest."""
    made = folds()
    for fold in made:
        told(fold, story)
    digests = [(fold.name, fold.digest().encode()) for fold in made]
    assert {ROWS_VERSION: digest_of(sorted(digests))} == {
        2: "440f2639437b8a7bb8e2bc53ecd7bef96ed8ce3c92cdfd012858907df896e889"
    }


def test_content_tells_kinds_apart() -> None:
    assert content_of("a.b.v1", b"{}") != content_of("a.b.v2", b"{}")
