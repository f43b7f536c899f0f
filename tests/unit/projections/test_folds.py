"""Projections: folding a story gives these rows, always the same, and nothing for what is not known."""

from __future__ import annotations

import hashlib
from collections import Counter

import msgspec
import pytest

from sawyer.identity.keys import Key
from sawyer.ledger.decide import place_of
from sawyer.ledger.entry import inner_statements
from sawyer.projections.audit_chain import AuditChain
from sawyer.projections.balances import Balances
from sawyer.projections.entries import Entries
from sawyer.projections.fold import ROWS_VERSION, Entry, Fold, content_of, digest_of
from sawyer.projections.nodes import Nodes
from sawyer.projections.payouts import Payouts
from sawyer.projections.registry import Registry
from sawyer.projections.usage import Usage
from sawyer.schemas.base import Fact, encode_canonical
from sawyer.schemas.events import KIND_OF, NO_HASH, REQUEST_STREAM, Body, BucketTokens, Decided, HostCredit
from sawyer.schemas.signed import Signature

STORY = (
    "network.founded.v1", "key.added.v1", "model.published.v1", "pricing.published.v1", "node.registered.v1",
    "account.opened.v1", "tokens.granted.v1", "tokens.reserved.v1", "inference.completed.v1", "key.rotated.v1",
    "key.revoked.v1", "tokens.expired.v1", "snapshot.taken.v1", "subject.erased.v1",
)  # fmt: skip
HOLD = (BucketTokens(grant="january", tokens=8),)
DECIDED = {
    "tokens.reserved.v1": Decided(held=HOLD),
    "inference.completed.v1": Decided(
        debited=HOLD, released=(),
        credits=(
            HostCredit(
                host="bob", node="node-a", rows=12, work=2652, sla_milli=900, measured_us=1_500, promised_us=1_000
            ),
        ),
    ),
}  # fmt: skip
RESERVED, COMPLETED, LAST = 8, 9, len(STORY)


class Counting:
    """A tree that only counts: these tests are not about hashes."""

    def __init__(self) -> None:
        self.size = 0

    def append(self, leaf: bytes) -> None:
        self.size += 1

    def root(self) -> bytes:
        return bytes([self.size]) * 32


def entry_of(seq: int, body: Body | None, kind: str, decided: Decided, version: int = 1) -> Entry:
    signature = Signature(by="router", key_id="U" + "A" * 55, type=kind, sig="A" * 86 + "==")
    statement = body.canonical() if body is not None else b"{}"
    stream, idem = place_of(body) if body is not None else ("invented:1", "invented:1")
    return Entry(
        seq=seq, leaf=f"{seq:064x}", prev=NO_HASH, log="net/1", ts_ms=seq, kind=kind, stream=stream, version=version,
        idem=idem, body=body, statement=statement, decided=decided, attestations=(signature,),
        inner=inner_statements(body, statement),
    )  # fmt: skip


@pytest.fixture
def story(event_examples: dict[str, Fact]) -> list[Entry]:
    versions: Counter[str] = Counter()
    entries = []
    for seq, kind in enumerate(STORY, start=1):
        body = event_examples[kind]
        versions[place_of(body)[0]] += 1
        entries.append(entry_of(seq, body, kind, DECIDED.get(kind, Decided()), versions[place_of(body)[0]]))
    return entries


def folds() -> list[Fold]:
    return [Registry(), Nodes(), Balances(), Payouts(), Usage(), Entries(), AuditChain(Counting())]


every_fold = pytest.mark.parametrize("at", range(7), ids=lambda at: folds()[at].name)


def told(fold: Fold, story: list[Entry]) -> dict[str, dict]:
    for entry in story:
        fold.apply(entry)
    return {key: msgspec.json.decode(fold.encoded(key)) for key in fold.rows}


def test_balances_while_a_request_holds_tokens(story: list[Entry]) -> None:
    rows = told(Balances(), story[:RESERVED])
    (request,) = [row for key, row in rows.items() if key.startswith("request:")]
    assert (request["status"], request["seq"], request["held"]) == ("held", 8, [["january", 8]])
    assert (rows["account:alice"]["held"], rows["account:alice"]["grants"]) == (8, 1)
    assert (rows["bucket:january"]["available"], rows["bucket:january"]["held"]) == (499_992, 8)


def test_request_that_ended_leaves_no_row_and_is_told_once(story: list[Entry]) -> None:
    fold = Balances()
    rows = told(fold, story[:COMPLETED])
    assert [key for key in rows if key.startswith("request:")] == []
    assert fold.open_requests == {}
    ((_, request),) = fold.ended.items()
    assert (request.status, request.seq, request.billed_tokens) == ("completed", 9, 8)
    assert (rows["account:alice"]["held"], rows["account:alice"]["consumed"]) == (0, 8)


def test_balances_after_the_story(story: list[Entry]) -> None:
    fold = Balances()
    rows = told(fold, story)
    account, bucket = rows["account:alice"], rows["bucket:january"]
    assert (account["granted"], account["held"], account["consumed"], account["expired"]) == (500_000, 0, 8, 499_992)
    assert (bucket["available"], bucket["held"], bucket["consumed"], bucket["expired"]) == (0, 0, 8, 499_992)
    assert account["erased"] is True
    assert list(fold.buckets("alice")) == []


def test_payouts_after_the_story_know_what_was_earned_and_what_broke(story: list[Entry]) -> None:
    assert told(Payouts(), story) == {
        "host:bob": {"rows": 12, "work": "2652", "weight_milli": str(2652 * 900), "nodes": ["node-a"], "requests": 1},
        "grant:january": {"paid_uusd": 5_000_000, "earned_uusd": 80, "breakage_uusd": 4_999_920},
        "pool": {"earned_uusd": "80", "breakage_uusd": "4999920"},
    }


def test_work_and_weight_beyond_53_bits_stay_exact(story: list[Entry]) -> None:
    credit = HostCredit(host="bob", node="node-a", rows=1, work=2**53 - 1, sla_milli=1000, measured_us=1, promised_us=0)
    fold = Payouts()
    told(fold, story)
    body, kind = story[COMPLETED - 1].body, story[COMPLETED - 1].kind
    for seq in (LAST + 1, LAST + 2):
        fold.apply(entry_of(seq, body, kind, Decided(debited=(), released=(), credits=(credit,))))
    assert fold.hosts["bob"].work == str(2652 + 2 * (2**53 - 1))
    assert fold.hosts["bob"].weight_milli == str(2652 * 900 + 2 * (2**53 - 1) * 1000)


def test_audit_chain_counts_kinds_signers_streams_and_knows_its_head(story: list[Entry]) -> None:
    rows = told(AuditChain(Counting()), story)
    assert rows["head"] == {"seq": LAST, "leaf": f"{LAST:064x}", "root": f"{LAST:02x}" * 32, "ts_ms": LAST}
    assert rows["kind:key.added.v1"] == {"entries": 1, "known": True}
    assert rows["signer:U" + "A" * 55] == {"entries": LAST, "by": "router"}
    assert rows["stream:account:alice"] == {"version": 4}


def test_stream_of_a_request_is_known_until_the_request_ends(story: list[Entry]) -> None:
    def of_requests(upto: int) -> list[str]:
        return [key for key in told(AuditChain(Counting()), story[:upto]) if key.startswith(f"stream:{REQUEST_STREAM}")]

    assert (len(of_requests(RESERVED)), of_requests(COMPLETED)) == (1, [])


def test_entries_know_every_fact_but_those_of_requests(story: list[Entry]) -> None:
    rows = told(Entries(), story)
    assert sorted(rows) == sorted(entry.idem for entry in story if not entry.stream.startswith(REQUEST_STREAM))
    place = rows["grant:january"]
    assert (place["seq"], place["stream"], place["version"]) == (7, "account:alice", 2)
    assert (place["content"], place["signer"]) == (story[6].content, "U" + "A" * 55)


def test_node_remembers_its_last_receipt_and_every_key_it_had(story: list[Entry], keys: dict[str, Key]) -> None:
    fold = Nodes()
    row = told(fold, story)["node-a"]
    receipt = story[COMPLETED - 1].body.receipts[0]
    assert (row["host"], row["counter"]) == ("bob", 1)
    assert row["last_receipt"] == hashlib.sha256(receipt.canonical()).hexdigest()
    assert (row["key"], row["former"]) == (keys["node-b"].id, [keys["node-a"].id])
    assert fold.by_key == {keys["node-a"].id: "node-a", keys["node-b"].id: "node-a"}


def test_registry_keeps_every_manifest_and_sheet_and_knows_the_newest(story: list[Entry]) -> None:
    fold = Registry()
    told(fold, story)
    newer = fold.models["austen"].changed(manifest="99" * 32)
    fold.changed.clear()
    fold.apply(entry_of(LAST + 1, newer, KIND_OF[type(newer)], Decided()))
    assert fold.changed == {"model:austen", f"manifest:austen:{'99' * 32}"}
    assert fold.models["austen"] == newer
    assert {manifest for _, manifest in fold.manifests} == {"ab" * 32, "99" * 32}


def test_registry_remembers_what_was_revoked_and_since_when(story: list[Entry], keys: dict[str, Key]) -> None:
    row = told(Registry(), story)[f"revoked:{keys['node-a'].id}"]
    assert (row["seq"], row["reason"], row["since_ms"] > 0) == (11, "stolen", True)


def test_sheet_says_when_a_newer_one_replaced_it(story: list[Entry]) -> None:
    fold = Registry()
    told(fold, story)
    (first,) = [key.removeprefix("sheet:") for key in fold.rows if key.startswith("sheet:")]
    newer = fold.pricing.changed(sheet="newer")
    assert fold.superseded_ms(first) == 0
    fold.apply(entry_of(LAST + 1, newer, KIND_OF[type(newer)], Decided()))
    assert f"sheet:{first}" in fold.changed
    assert (fold.superseded_ms(first), fold.superseded_ms("00" * 32)) == (LAST + 1, 0)


@every_fold
def test_fold_run_twice_gives_the_same_bytes(at: int, story: list[Entry]) -> None:
    one, two = folds()[at], folds()[at]
    told(one, story)
    told(two, story)
    assert one.digest() == two.digest() != folds()[at].digest()


@every_fold
def test_apply_marks_every_row_that_it_set_or_removed_and_no_row_that_never_was(at: int, story: list[Entry]) -> None:
    fold = folds()[at]
    for entry in story:
        before = {key: fold.encoded(key) for key in fold.rows}
        fold.changed.clear()
        fold.apply(entry)
        after = {key: fold.encoded(key) for key in fold.rows}
        differ = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert differ <= fold.changed <= before.keys() | after.keys()
        assert all(fold.encoded(key) is None for key in fold.changed - after.keys())


@every_fold
def test_fold_that_takes_anothers_rows_anywhere_ends_with_the_same_rows(at: int, story: list[Entry]) -> None:
    whole = told(folds()[at], story)
    for cut in range(1, LAST):
        first, second = folds()[at], folds()[at]
        told(first, story[:cut])
        rows = list(first.encoded_rows())
        second.load(rows)
        assert second.changed == set()
        if isinstance(first, AuditChain) and isinstance(second, AuditChain):
            second._tree = first._tree  # a snapshot brings it
        assert list(second.encoded_rows()) == rows
        assert told(second, story[cut:]) == whole


@every_fold
def test_rows_that_come_twice_or_in_another_order_are_not_taken(at: int, story: list[Entry]) -> None:
    """Two rows of one bucket have the digest of one, and would be spent twice."""
    fold = folds()[at]
    told(fold, story)
    rows = list(fold.encoded_rows())
    for wrong in ([rows[0], *rows], [*rows, rows[0]], rows[::-1] if len(rows) > 1 else rows * 2):
        with pytest.raises(ValueError, match="comes after"):
            folds()[at].load(wrong)


@pytest.mark.parametrize("at", range(5), ids=lambda at: folds()[at].name)
def test_unknown_kind_changes_no_fact(at: int, story: list[Entry]) -> None:
    fold = folds()[at]
    told(fold, story)
    before = fold.digest()
    fold.changed.clear()
    fold.apply(entry_of(LAST + 1, None, "tokens.invented.v1", Decided()))
    assert (fold.changed, fold.digest()) == (set(), before)


def test_unknown_kind_is_counted_by_the_audit_chain(story: list[Entry]) -> None:
    fold = AuditChain(Counting())
    told(fold, [*story, entry_of(LAST + 1, None, "tokens.invented.v1", Decided())])
    assert (fold.kinds["tokens.invented.v1"].entries, fold.kinds["tokens.invented.v1"].known) == (1, False)


@every_fold
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
    """The rows of the story, fixed for one version, while a request is held and at the end. Where it fails: raise
    ROWS_VERSION, and fix the new digest."""
    digests = []
    for upto in (RESERVED, LAST):
        made = folds()
        for fold in made:
            told(fold, story[:upto])
            digests.append((f"{upto} {fold.name}", fold.digest().encode()))
    assert {ROWS_VERSION: digest_of(sorted(digests))} == {
        3: "c93897f195f19ccf60c745c6bda0c013d4e9600273145fa9a5188e6e0c63572c"
    }


def test_content_tells_kinds_apart() -> None:
    assert content_of("a.b.v1", b"{}") != content_of("a.b.v2", b"{}")
