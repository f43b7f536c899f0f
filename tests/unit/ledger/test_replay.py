"""Replay against people who hold the file, and against one who holds the ledger's key too."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import forging
import msgspec
import pytest
from forging import Change, Rows

from sawyer.errors import UsageError, VerificationError
from sawyer.identity.envelope import attest
from sawyer.ledger.entry import CHECKPOINT_STREAM, CHECKPOINT_TOPIC, StoredRow
from sawyer.ledger.replay import ReplayReport, replay
from sawyer.ledger.source import SQLiteSource
from sawyer.schemas.base import encode_canonical


def rewrite(rows: list[StoredRow], scene, change: Change, seq: int, key: str = "ledger") -> Rows:
    return forging.rewrite(rows, scene.network, scene.keys[key], change, seq=seq)


@pytest.fixture
def home(scene, tmp_path: Path) -> Path:
    """The folder of a closed book: 8 entries of opening, then three requests, the third of them voided."""
    book = scene.open(tmp_path)
    scene.work(book, 3)
    book.close()
    return tmp_path


@pytest.fixture
def rows(home: Path) -> list[StoredRow]:
    return list(SQLiteSource(home / "book.sqlite").rows())


def verify(home: Path, scene, **options) -> ReplayReport:
    return replay(SQLiteSource(home / "book.sqlite"), key=scene.vkey, views=home / "views.sqlite", **options)


# --- what holds -------------------------------------------------------------------------------------------------------


def test_honest_book_holds_and_reports_who_has_and_earned_what(home: Path, scene) -> None:
    report = verify(home, scene)
    assert report.ok
    assert (report.anchored, report.entries, report.checkpoints, report.mode) == (True, 14, 7, "test")
    assert report.views_seq == report.size == 14
    assert [(b.account, b.available, b.held, b.consumed) for b in report.balances] == [("alice", 499_984, 0, 16)]
    assert [(h.host, h.nodes, h.requests, h.rows, h.work, h.owed_uusd) for h in report.hosts] == [
        ("bob", ("node-a",), 2, 112, 112 * 221, 112)
    ]
    assert report.pool_uusd == 112
    assert report.lowest_balance == 0


def test_every_signature_is_counted_orders_and_receipts_too(home: Path, scene) -> None:
    """14 entries, 5 orders inside reserves and completions (each completion repeats one), 2 receipts."""
    report = verify(home, scene)
    assert report.signatures == 14 + 5 + 2
    assert report.repeated_signatures == 2


def test_book_without_an_anchor_is_only_consistent_with_itself(home: Path) -> None:
    report = replay(SQLiteSource(home / "book.sqlite"))
    assert (report.ok, report.anchored, report.views_seq) == (True, False, None)


def test_two_replays_fold_the_same_rows(home: Path, scene) -> None:
    assert verify(home, scene).digests == verify(home, scene).digests


def test_replay_changes_no_file_and_adds_only_sqlites_own_empty_ones(home: Path, scene) -> None:
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    verify(home, scene)
    after = {path.name: path.read_bytes() for path in home.iterdir()}
    assert before.items() <= after.items()
    assert all(content == b"" for name, content in after.items() if name.endswith("-wal"))
    assert after.keys() - before.keys() <= {
        f"{file}.sqlite-{of}" for file in ("book", "views") for of in ("wal", "shm")
    }


def test_replay_beside_a_running_writer_sees_a_whole_prefix(home: Path, scene) -> None:
    """The views may lag behind the book; they are compared where they stand."""
    book = scene.open(home)
    scene.work(book, 2, start=10)
    report = verify(home, scene)
    assert (report.ok, report.size) == (True, 18)
    assert report.views_seq == 14
    book.catch_up()
    assert verify(home, scene).views_seq == 18
    book.close()


def test_progress_is_told_up_to_the_last_row(home: Path, scene) -> None:
    told: list[tuple[int, int]] = []
    verify(home, scene, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (21, 21)


def test_unknown_kind_is_verified_counted_and_skipped(rows: list[StoredRow], scene) -> None:
    """A newer Sawyer wrote one entry of a kind that we do not know; its signature is over that kind."""

    def newer(entry: dict) -> None:
        body = encode_canonical(entry["body"])
        signature = attest(body, "reservation.parked.v2", "router", scene.keys["router"])
        entry.update(kind="reservation.parked.v2", attestations=[signature.plain()], decided={"parked": 1})

    report = replay(rewrite(rows, scene, newer, seq=14), key=scene.vkey)
    assert report.ok
    assert report.unknown_kinds == {"reservation.parked.v2": 1}
    assert [b.held for b in report.balances] == [8]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"a":1.5}', "holds 1.5"),
        (b'{"a":[null]}', "holds None"),
        (b'{"a":9007199254740992}', "beyond 2^53"),
        (b'{"a":{"b":-99999999999999999999}}', "beyond 2^53"),
        ('{"\u00e9":1}'.encode(), "not ASCII"),
    ],
)
def test_unknown_kind_that_encoders_could_differ_about_is_wrong(rows, scene, body: bytes, why: str) -> None:
    def odd(entry: dict) -> None:
        entry.update(kind="reservation.parked.v2", body=msgspec.json.decode(body))

    problem = replay(rewrite(rows, scene, odd, seq=14), key=scene.vkey).problem
    assert problem.seq == 14
    assert why in problem.why


def test_book_of_unknown_kinds_only_is_no_book_without_its_founding(rows: list[StoredRow], scene) -> None:
    """Whoever holds the ledger's key could otherwise hide a whole network behind a kind of tomorrow."""

    def newer(entry: dict) -> None:
        kind = "network.invented.v1"
        signature = attest(encode_canonical(entry["body"]), kind, "operator", scene.keys["operator"])
        entry.update(kind=kind, attestations=[signature.plain()])

    one = [rows[0], StoredRow(CHECKPOINT_STREAM, 1, CHECKPOINT_TOPIC, b"")]
    problem = replay(rewrite(one, scene, newer, seq=1), key=scene.vkey).problem
    assert (problem.seq, problem.why) == (1, "entry 1: a book begins with the founding of its network")


# --- the wrong question -----------------------------------------------------------------------------------------------


def test_missing_book_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no book at"):
        replay(SQLiteSource(tmp_path / "book.sqlite"))


def test_text_that_is_no_key_is_refused(home: Path) -> None:
    with pytest.raises(VerificationError, match="not a verifier key"):
        replay(SQLiteSource(home / "book.sqlite"), key="nonsense")


@pytest.mark.parametrize(("content", "why"), [(b"", "is no book"), (b"not a database at all" * 100, "no database")])
def test_file_that_is_no_book_is_wrong(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "book.sqlite"
    path.write_bytes(content)
    report = replay(SQLiteSource(path))
    assert not report.ok
    assert why in report.problem.why


def test_empty_book_is_wrong(scene) -> None:
    assert replay(Rows([]), key=scene.vkey).problem.why == "the book is empty"


# --- attacks of somebody who holds the file ---------------------------------------------------------------------------


def test_book_written_whole_by_a_stranger_is_refused_with_an_anchor_only(rows: list[StoredRow], scene) -> None:
    vkey = scene.vkey
    scene.keys = {**scene.keys, "ledger": scene.keys["mallory"]}
    forged = rewrite(rows, scene, lambda entry: entry.update(_refounded(scene)), seq=1)
    assert replay(forged).problem is None
    problem = replay(forged, key=vkey).problem
    assert problem.seq == 1
    assert "the founding names the ledger key" in problem.why


def _refounded(scene) -> dict:
    founding = scene.founding()
    signature = founding.signer.plain()
    return {"body": msgspec.json.decode(founding.statement), "attestations": [signature]}


def test_key_of_another_network_is_refused(rows: list[StoredRow], scene) -> None:
    scene.network = "sawyer-net/ffffffff"
    assert replay(Rows(rows), key=scene.vkey).problem.seq == 1


@pytest.mark.parametrize("at", range(21))
def test_deleted_row_is_found(rows: list[StoredRow], scene, at: int) -> None:
    assert not replay(Rows(rows[:at] + rows[at + 1 :]), key=scene.vkey).ok


@pytest.mark.parametrize("at", range(20))
def test_reordered_rows_are_found(rows: list[StoredRow], scene, at: int) -> None:
    swapped = [*rows[:at], rows[at + 1], rows[at], *rows[at + 2 :]]
    assert not replay(Rows(swapped), key=scene.vkey).ok


@pytest.mark.parametrize("at", range(21))
def test_row_inserted_twice_is_found(rows: list[StoredRow], scene, at: int) -> None:
    assert not replay(Rows([*rows[:at], rows[at], *rows[at:]]), key=scene.vkey).ok


def test_truncation_inside_a_batch_is_found(rows: list[StoredRow], scene) -> None:
    assert "covered by no checkpoint" in replay(Rows(rows[:-1]), key=scene.vkey).problem.why


def test_truncation_to_an_earlier_checkpoint_is_found_against_a_held_one(rows: list[StoredRow], scene) -> None:
    held, shorter = rows[-1].state.decode(), Rows(rows[:-2])
    assert replay(shorter, key=scene.vkey).ok
    assert "the held checkpoint is of 14" in replay(shorter, key=scene.vkey, held=(held,)).problem.why
    assert replay(Rows(rows), key=scene.vkey, held=(rows[-3].state.decode(),)).ok


def test_truncation_to_an_earlier_checkpoint_is_found_against_the_live_views(home: Path, scene) -> None:
    with sqlite3.connect(home / "book.sqlite") as connection:
        connection.execute("DELETE FROM stored_events WHERE rowid > 19")
    connection.close()
    assert "it was cut" in verify(home, scene).problem.why


def test_fork_after_a_held_checkpoint_is_found(rows: list[StoredRow], scene) -> None:
    """The ledger shows another history to somebody else: same keys, all signatures good, other entry 14."""
    held = rows[-1].state.decode()
    forked = rewrite(rows, scene, lambda entry: entry.update(ts_ms=entry["ts_ms"] + 1), seq=14)
    assert replay(forked, key=scene.vkey).ok
    assert "its checkpoint says" in replay(forked, key=scene.vkey, held=(held,)).problem.why


@pytest.mark.parametrize("seq", range(1, 15))
def test_entry_signed_by_somebody_else_is_found_and_named(rows: list[StoredRow], scene, seq: int) -> None:
    """Even the ledger cannot sign for others: the body is changed, the tree is right, the signature is not."""

    def spoil(entry: dict) -> None:
        signature = entry["attestations"][0]["sig"]
        entry["attestations"][0]["sig"] = ("A" if signature[0] != "A" else "B") + signature[1:]

    problem = replay(rewrite(rows, scene, spoil, seq=seq), key=scene.vkey).problem
    assert problem.seq == seq
    assert "does not verify" in problem.why
    assert problem.signer


# --- attacks of somebody who holds the ledger's key -------------------------------------------------------------------


def _steal(entry: dict) -> None:
    entry["decided"]["debited"][0]["tokens"] += 1


def _credit_more(entry: dict) -> None:
    entry["decided"]["credits"][0]["work"] *= 2


def _credit_friend(entry: dict) -> None:
    entry["decided"]["credits"][0]["host"] = "mallory"


def _debit_nothing(entry: dict) -> None:
    entry["decided"].update(debited=[], released=entry["decided"]["debited"])


def _move_stream(entry: dict) -> None:
    entry["stream"], entry["version"] = "account:bob", 1


def _rename(entry: dict) -> None:
    entry["idem"] = "complete:again"


def _backdate(entry: dict) -> None:
    entry["ts_ms"] -= 1


def _skip_seq(entry: dict) -> None:
    entry["seq"] += 1


@pytest.mark.parametrize(
    "change", [_steal, _credit_more, _credit_friend, _debit_nothing, _move_stream, _rename, _backdate, _skip_seq]
)
def test_forged_decision_under_a_valid_checkpoint_is_found_and_named(rows, scene, change: Change) -> None:
    problem = replay(rewrite(rows, scene, change, seq=10), key=scene.vkey).problem
    assert problem.seq == 10
    assert problem.hint


def test_entry_that_the_rules_refuse_is_found(rows: list[StoredRow], scene) -> None:
    """The ledger lets a request through whose order had expired by then."""

    def late(entry: dict) -> None:
        entry["ts_ms"] += 3_600_000

    problem = replay(rewrite(rows, scene, late, seq=9), key=scene.vkey).problem
    assert problem.seq == 9
    assert "the rules refuse it: the order expired" in problem.why


def test_end_of_a_request_recorded_twice_is_found(rows: list[StoredRow], scene) -> None:
    """Nothing is remembered of a request that ended: it holds no tokens that a second end could give back."""
    again = {**forging.entry_at(rows, 14), "version": 3}
    problem = replay(forging.add(rows, scene.network, scene.keys["ledger"], again), key=scene.vkey).problem
    assert problem.seq == 15
    again["version"] = 1
    problem = replay(forging.add(rows, scene.network, scene.keys["ledger"], again), key=scene.vkey).problem
    assert problem.seq == 15
    assert "has no reservation for request" in problem.why


def test_fact_recorded_twice_is_found(rows: list[StoredRow], scene) -> None:
    again = {**forging.entry_at(rows, 8), "version": 3}
    problem = replay(forging.add(rows, scene.network, scene.keys["ledger"], again), key=scene.vkey).problem
    assert "it stands in the book already" in problem.why


# --- the live views ---------------------------------------------------------------------------------------------------


def _change_view(home: Path, statement: str) -> None:
    with sqlite3.connect(home / "views.sqlite") as connection:
        assert connection.execute(statement).rowcount == 1
    connection.close()


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE view_rows SET row=replace(row, '499984', '599984') WHERE key='bucket:january'", "bucket:january"),
        ("DELETE FROM view_rows WHERE view='payouts' AND key='host:bob'", "host:bob"),
        ("INSERT INTO view_rows VALUES ('payouts', 'host:mallory', '{}')", "host:mallory"),
        ("INSERT INTO view_rows VALUES ('secrets', 'x', '{}')", "secrets"),
        ("UPDATE view_rows SET key='node-c' WHERE key='node-b'", "node-b"),
    ],
)
def test_changed_view_row_is_found_and_named(home: Path, scene, statement: str, named: str) -> None:
    _change_view(home, statement)
    problem = verify(home, scene).problem
    assert named in problem.why
    assert "delete views.sqlite" in problem.hint


def test_difference_of_a_view_row_shows_both_sides(home: Path, scene) -> None:
    _change_view(home, "UPDATE view_rows SET row=replace(row, '499984', '1') WHERE key='bucket:january'")
    why = verify(home, scene).problem.why
    assert "view balances, row 'bucket:january'" in why
    assert '"available":499984' in why
    assert '"available":1,' in why


def test_view_position_moved_back_is_found(home: Path, scene) -> None:
    _change_view(home, "UPDATE view_rows SET row=replace(row, '\"seq\":14', '\"seq\":10') WHERE key='head'")
    assert verify(home, scene).problem.why.startswith("at entry 10: view")


def test_views_that_never_began_differ_in_nothing_but_are_not_compared(home: Path, scene, tmp_path: Path) -> None:
    (home / "views.sqlite").unlink()
    assert replay(SQLiteSource(home / "book.sqlite"), key=scene.vkey).views_seq is None
    with pytest.raises(UsageError, match="no views at"):
        verify(home, scene)


def test_views_deleted_are_made_again_from_the_book(home: Path, scene) -> None:
    before = verify(home, scene).digests
    (home / "views.sqlite").unlink()
    scene.open(home).close()
    report = verify(home, scene)
    assert (report.ok, report.views_seq, report.digests) == (True, 14, before)


def test_file_damaged_in_the_middle_is_wrong_and_never_a_crash(home: Path, scene) -> None:
    path = home / "book.sqlite"
    whole = path.read_bytes()
    for at in range(0, len(whole), 997):
        path.write_bytes(whole[:at] + os.urandom(64) + whole[at + 64 :])
        replay(SQLiteSource(path), key=scene.vkey)


def test_views_file_that_is_damaged_is_wrong_and_named(home: Path, scene) -> None:
    (home / "views.sqlite").write_bytes(b"no database, whatever its name says" * 100)
    problem = verify(home, scene).problem
    assert "views.sqlite is damaged, or no database" in problem.why
