"""Books that lie, each under checkpoints that the ledger's own key signed: replay names the entry and says why."""

from __future__ import annotations

import base64
from pathlib import Path

import forging
import pytest
from forging import Change, Fields, Garble, Rows

from sawyer.identity.envelope import attest
from sawyer.identity.keys import Key, encode_public
from sawyer.ledger.book import Book
from sawyer.ledger.commands import LEDGER_NAME
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.replay import replay
from sawyer.ledger.replay_report import Problem
from sawyer.ledger.source import SQLiteSource
from sawyer.projections.fold import ROWS_VERSION
from sawyer.schemas.base import encode_canonical
from sawyer.schemas.events import KeyAdded, ReservationExpired, SnapshotTaken

DAY_MS = 86_400_000
RESERVED, COMPLETED = 10, 11
SMALL_ORDER = bytes([1]) + bytes(31)
"""The neutral element: of order 1."""


@pytest.fixture
def rows(scene, tmp_path: Path) -> list[StoredRow]:
    """Founding to grants in entries 1 to 9 (two buckets: january before february), a request that was completed in
    10 and 11, with a promise of latency that was missed by half, and one that was voided in 12 and 13."""
    book = scene.open(tmp_path, views=False)
    first, second = scene.order(1), scene.order(2)
    steps = [
        *scene.members()[:4], scene.node("node-a", "bob", promised_us=1000), scene.node("node-b", "carol"),
        scene.account(), scene.grant("january", 6), scene.grant("february", 500_000, end_ms=60 * DAY_MS),
        scene.reserve(first), scene.complete(first), scene.reserve(second), scene.void(second),
    ]  # fmt: skip
    for step in steps:
        (reply,) = book.commit([step], scene.now_ms)
        assert reply.error is None
    book.close()
    return list(SQLiteSource(tmp_path / "book.sqlite").rows())


def judge(rows: Rows, scene) -> Problem | None:
    return replay(rows, key=scene.vkey, operator=scene.operator, workers=1).problem


def lie(rows: list[StoredRow], scene, change: Change, seq: int, garble: Garble = bytes) -> Problem:
    problem = judge(forging.rewrite(rows, scene.network, scene.keys["ledger"], change, seq=seq, garble=garble), scene)
    assert problem is not None
    return problem


def more(rows: list[StoredRow], scene, fields: Fields) -> Problem:
    problem = judge(forging.add(rows, scene.network, scene.keys["ledger"], fields), scene)
    assert problem is not None
    return problem


def test_book_that_is_rewritten_without_a_lie_holds(rows: list[StoredRow], scene) -> None:
    """The forger does its work well: what is found below is the lie, not the forging."""
    assert judge(forging.rewrite(rows, scene.network, scene.keys["ledger"]), scene) is None


# --- bytes ------------------------------------------------------------------------------------------------------------


def _replacing(old: bytes, new: bytes) -> Garble:
    def garble(raw: bytes) -> bytes:
        assert raw.count(old) == 1
        return raw.replace(old, new)

    return garble


@pytest.mark.parametrize(
    "garble",
    [
        pytest.param(_replacing(b'"finish":"length"', b'"finish":"length","finish":"length"'), id="duplicate-key"),
        pytest.param(_replacing(b'"fed_tokens":7', b'"fed_tokens":7.0'), id="float"),
        pytest.param(_replacing(b'"fed_tokens":7', b'"fed_tokens":7e0'), id="exponent"),
        pytest.param(_replacing(b'"fed_tokens":7', b'"extra":1,"fed_tokens":7'), id="unknown-field"),
        pytest.param(_replacing(b'"fed_tokens":7', b'"fed_tokens":"7"'), id="wrong-type"),
        pytest.param(_replacing(b'"fed_tokens":7', b'"fed_tokens":null'), id="null"),
        pytest.param(_replacing(b'"fed_tokens":7', b'"fed_tokens":-7'), id="negative"),
        pytest.param(_replacing(b'"fed_tokens":7', b'"fed_tokens":9007199254740992'), id="beyond-2-53"),
        pytest.param(_replacing(b'"fed_tokens":7', b'"fed_tokens":07'), id="leading-zero"),
        pytest.param(_replacing(b'"fed_tokens":7,', b""), id="missing-field"),
        pytest.param(_replacing(b'"unreceipted":[]', b'"unreceipted":[ ]'), id="space"),
        pytest.param(_replacing(b'"v":1', b'"v":2'), id="future-version-of-the-entry"),
        pytest.param(_replacing(b'"finish":"length"', b'"finish":"len\\u0067th"'), id="escape"),
    ],
)
def test_entry_in_any_other_form_is_refused_and_named(rows: list[StoredRow], scene, garble: Garble) -> None:
    problem = lie(rows, scene, forging.unchanged, COMPLETED, garble)
    assert problem.seq == COMPLETED
    assert "entry 11: not" in problem.why


def test_gap_in_the_sequence_is_found(rows: list[StoredRow], scene) -> None:
    assert lie(rows, scene, lambda entry: entry.update(seq=12), COMPLETED).why.startswith("entry 11: expected seq 11")


def test_version_of_a_kind_that_is_to_come_is_verified_counted_and_not_believed(rows: list[StoredRow], scene) -> None:
    """Its signature must hold, it moves nothing: so the hold that it would have ended is still there."""

    def newer(entry: Fields) -> None:
        entry["kind"] = kind = "reservation.voided.v2"
        entry["attestations"] = [attest(encode_canonical(entry["body"]), kind, "router", scene.keys["router"]).plain()]

    forged = forging.rewrite(rows, scene.network, scene.keys["ledger"], newer, seq=13)
    report = replay(forged, key=scene.vkey, workers=1)
    assert (report.ok, report.unknown_kinds) == (True, {"reservation.voided.v2": 1})
    assert report.balances[0].held == 8


# --- who says it ------------------------------------------------------------------------------------------------------


def test_entry_of_another_network_is_refused(rows: list[StoredRow], scene, tmp_path: Path) -> None:
    """Every signature in it holds, over there."""
    elsewhere = type(scene)(scene.keys, network="sawyer-net/ffffffff")
    book = elsewhere.open(tmp_path / "elsewhere", views=False) if (tmp_path / "elsewhere").mkdir() is None else None
    elsewhere.work(book, 1)
    book.close()
    theirs = list(SQLiteSource(tmp_path / "elsewhere" / "book.sqlite").rows())
    stolen = forging.entry_at(theirs, 8)
    assert "expected log sawyer-net/3f9a1c22, got sawyer-net/ffffffff" in more(rows, scene, stolen).why
    stolen["log"] = scene.network
    assert "the command is for sawyer-net/ffffffff" in more(rows, scene, {**stolen, "version": 4}).why


def test_order_that_somebody_else_signed_is_refused(rows: list[StoredRow], scene) -> None:
    def foreign(entry: Fields) -> None:
        body = entry["body"]["request"]["body"]
        signed = attest(encode_canonical(body), "inference.requested.v1", "alice", scene.keys["mallory"])
        entry["body"]["request"]["signature"] = signed.plain()
        entry["attestations"] = [
            attest(encode_canonical(entry["body"]), entry["kind"], "router", scene.keys["router"]).plain()
        ]

    problem = lie(rows, scene, foreign, RESERVED)
    assert (problem.seq, "not by the key of account alice" in problem.why) == (RESERVED, True)


def test_order_whose_signature_was_spoiled_is_found_where_it_stands_first(rows: list[StoredRow], scene) -> None:
    """A completion repeats the order of its reservation: there it is compared, not verified again."""

    def spoiled(entry: Fields) -> None:
        signature = entry["body"]["request"]["signature"]
        signature["sig"] = base64.b64encode(bytes(64)).decode()
        entry["attestations"] = [
            attest(encode_canonical(entry["body"]), entry["kind"], "router", scene.keys["router"]).plain()
        ]

    problem = lie(rows, scene, spoiled, RESERVED)
    assert (problem.seq, "over this inference.requested.v1 does not verify" in problem.why) == (RESERVED, True)
    problem = lie(rows, scene, spoiled, COMPLETED)
    assert (problem.seq, "not the one that was reserved for" in problem.why) == (COMPLETED, True)


def test_key_of_small_order_is_refused_though_a_signature_for_it_is_easily_made(rows: list[StoredRow], scene) -> None:
    key = encode_public("U", SMALL_ORDER)

    def small(entry: Fields) -> None:
        entry["body"]["key"] = key
        entry["attestations"][0].update(key_id=key, sig=base64.b64encode(SMALL_ORDER + bytes(32)).decode())

    problem = lie(rows, scene, small, 7)
    assert (problem.seq, "is not a valid Ed25519 point" in problem.why) == (7, True)


def test_one_more_attestation_is_refused(rows: list[StoredRow], scene) -> None:
    problem = lie(rows, scene, lambda entry: entry.update(attestations=entry["attestations"] * 2), 7)
    assert (problem.seq, "expected 1 attestations, got 2" in problem.why) == (7, True)


# --- what the ledger decided ------------------------------------------------------------------------------------------


def _other_bucket(entry: Fields) -> None:
    entry["decided"]["debited"] = [{"grant": "february", "tokens": 8}]


def _swapped_buckets(entry: Fields) -> None:
    entry["decided"]["debited"].reverse()


def _smaller_credit(entry: Fields) -> None:
    entry["decided"]["credits"][0]["work"] -= 1


def _larger_credit(entry: Fields) -> None:
    entry["decided"]["credits"][0]["work"] += 1


def _better_step(entry: Fields) -> None:
    entry["decided"]["credits"][0]["sla_milli"] = 1000


def _other_promise(entry: Fields) -> None:
    entry["decided"]["credits"][0]["promised_us"] = 1500


def _nothing_debited(entry: Fields) -> None:
    entry["decided"].update(debited=[], released=entry["decided"]["debited"])


def _expired_instead(entry: Fields) -> None:
    entry["decided"]["expired"] = entry["decided"].pop("debited")


@pytest.mark.parametrize(
    "change",
    [
        _other_bucket, _swapped_buckets, _smaller_credit, _larger_credit, _better_step, _other_promise,
        _nothing_debited, _expired_instead,
    ],
)  # fmt: skip
def test_decision_that_the_rules_do_not_give_is_refused_and_both_are_shown(rows, scene, change: Change) -> None:
    completed = forging.entry_at(rows, COMPLETED)
    assert [part["grant"] for part in completed["decided"]["debited"]] == ["january", "february"]
    assert completed["decided"]["credits"][0]["sla_milli"] == 900
    problem = lie(rows, scene, change, COMPLETED)
    assert problem.seq == COMPLETED
    assert "entry 11: expected decision {" in problem.why
    assert "router (U" in problem.signer


# --- what may not stand here ------------------------------------------------------------------------------------------


def test_second_reservation_of_a_request_that_ended_is_refused(rows: list[StoredRow], scene) -> None:
    """Nothing but its id is remembered of it; there are tokens enough."""
    again = {**forging.entry_at(rows, RESERVED), "decided": {"held": [{"grant": "february", "tokens": 8}]}}
    problem = more(rows, scene, again)
    assert (problem.seq, "was reserved for before" in problem.why) == (14, True)
    assert scene.keys["router"].id in problem.signer


def test_hold_that_was_expired_before_its_time_is_refused(rows: list[StoredRow], scene) -> None:
    shorter = rows[:-2]
    body = ReservationExpired(network=scene.network, account="alice", request=scene.order(2).body.request)
    entry = {
        **forging.entry_at(rows, 13), "kind": "reservation.expired.v1", "idem": f"expire:{body.request}",
        "body": body.plain(), "attestations": [_by_ledger(scene, "reservation.expired.v1", body.canonical())],
    }  # fmt: skip
    assert "the hold runs until" in more(shorter, scene, entry).why
    entry["ts_ms"] += 600_000
    assert judge(forging.add(shorter, scene.network, scene.keys["ledger"], entry), scene) is None


def test_snapshot_of_another_state_is_refused(rows: list[StoredRow], scene) -> None:
    body = SnapshotTaken(network=scene.network, size=13, digest="00" * 32, rows=ROWS_VERSION)
    entry = {
        **forging.entry_at(rows, 13), "kind": "snapshot.taken.v1", "stream": "ledger:snapshots", "version": 1,
        "idem": "snapshot:13", "body": body.plain(), "decided": {},
        "attestations": [_by_ledger(scene, "snapshot.taken.v1", body.canonical())],
    }  # fmt: skip
    problem = more(rows, scene, entry)
    assert (problem.seq, "the snapshot says 0000" in problem.why) == (14, True)
    digest = problem.why.partition("the entries come to ")[2][:64]
    honest = body.changed(digest=digest)
    entry["body"] = honest.plain()
    entry["attestations"] = [_by_ledger(scene, "snapshot.taken.v1", honest.canonical())]
    assert judge(forging.add(rows, scene.network, scene.keys["ledger"], entry), scene) is None


def _by_ledger(scene, kind: str, statement: bytes) -> Fields:
    return attest(statement, kind, LEDGER_NAME, scene.keys["ledger"]).plain()


# --- keys that changed ------------------------------------------------------------------------------------------------

SUCCESSOR = Key.from_raw(bytes([88]) * 32)


@pytest.fixture
def rotated(scene, tmp_path: Path) -> list[StoredRow]:
    """The ledger has a new key since entry 9, of the third commit; two commits follow."""
    book = Book.open(
        tmp_path / "rotated.sqlite", network=scene.network, operator=scene.operator, ledger_key=scene.keys["ledger"],
        successors=[SUCCESSOR],
    )  # fmt: skip
    added = KeyAdded(network=scene.network, role="ledger", name=LEDGER_NAME, key=SUCCESSOR.id)
    order = scene.order(1)
    for step in ([*scene.opening()], [scene.say(added, "operator")], [scene.reserve(order)], [scene.void(order)]):
        assert [reply.error for reply in book.commit(step, scene.now_ms)] == [None] * len(step)
    book.close()
    return list(SQLiteSource(tmp_path / "rotated.sqlite").rows())


def test_checkpoints_are_by_the_key_in_force_at_the_one_before(rotated: list[StoredRow], scene) -> None:
    assert judge(Rows(rotated), scene) is None
    old, new = scene.keys["ledger"], SUCCESSOR
    for signer in (lambda _: old, lambda _: new, lambda size: new if size >= 9 else old):
        forged = forging.rewrite(rotated, scene.network, old, signer=signer)
        assert "no valid signature" in judge(forged, scene).why
    forged = forging.rewrite(rotated, scene.network, old, signer=lambda size: new if size > 9 else old)
    assert judge(forged, scene) is None


def test_checkpoint_by_the_ledgers_old_key_after_a_rotation_is_refused(rotated: list[StoredRow], scene) -> None:
    forged = forging.rewrite(
        rotated, scene.network, SUCCESSOR, signer=lambda size: SUCCESSOR if size == 10 else scene.keys["ledger"]
    )
    problem = judge(forged, scene)
    assert (problem.seq, "checkpoint 4" in problem.why) == (11, True)


def test_held_checkpoint_by_a_later_key_of_the_ledger_is_one_of_this_book(rotated: list[StoredRow], scene) -> None:
    report = replay(Rows(rotated), key=scene.vkey, held=(rotated[-1].state.decode(),), workers=1)
    assert report.ok
    assert "the held checkpoint is of 11" in replay(
        Rows(rotated[:-2]), key=scene.vkey, held=(rotated[-1].state.decode(),), workers=1
    ).problem.why  # fmt: skip


def test_ledgers_old_key_may_sign_no_entry_after_the_rotation(rotated: list[StoredRow], scene) -> None:
    body = ReservationExpired(network=scene.network, account="alice", request=scene.order(1).body.request)
    kept = rotated[:-2]
    entry = {
        **forging.entry_at(rotated, 11), "kind": "reservation.expired.v1", "idem": f"expire:{body.request}",
        "ts_ms": scene.now_ms + 600_000, "body": body.plain(),
        "attestations": [_by_ledger(scene, "reservation.expired.v1", body.canonical())],
    }  # fmt: skip
    forged = forging.add(kept, scene.network, scene.keys["ledger"], entry)
    forged = forging.rewrite(
        forged.list, scene.network, SUCCESSOR, signer=lambda size: SUCCESSOR if size > 9 else scene.keys["ledger"]
    )
    assert "expected the ledger" in judge(forged, scene).why
