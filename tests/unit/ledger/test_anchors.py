"""What an auditor brings: the ledger's key, the operator's key, and checkpoints that were kept."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from sawyer.errors import BookCorrupt, NotAuthorised, UsageError, VerificationError
from sawyer.home import Home, Pin
from sawyer.identity.keys import Key
from sawyer.ledger.checkpoint import Checkpoint
from sawyer.ledger.replay import replay, replay_home
from sawyer.ledger.source import SQLiteSource

STRANGER = Key.from_raw(bytes([77]) * 32, "O")


@pytest.fixture
def home(scene, tmp_path: Path) -> Home:
    """A pinned home with a closed book of 12 entries: 8 of opening, two requests."""
    made = Home(tmp_path / "home")
    made.write_pin(Pin(scene.network, scene.vkey, scene.operator))
    _work(scene, made, 2)
    return made


def _work(scene, home: Home, requests: int, start: int = 1) -> None:
    book = scene.open(home.path)
    scene.work(book, requests, start=start)
    book.close()


def _cut(home: Home, rows: int) -> None:
    """Take the last rows away, and the views that would tell."""
    with sqlite3.connect(home.book) as connection:
        total = connection.execute("SELECT COUNT(*) FROM stored_events").fetchone()[0]
        connection.execute("DELETE FROM stored_events WHERE rowid > ?", (total - rows,))
    connection.close()
    home.views.unlink()


# --- the operator -----------------------------------------------------------------------------------------------------


def test_book_founded_by_an_operator_who_is_not_the_pinned_one_is_wrong(scene, tmp_path: Path) -> None:
    """Whoever holds the ledger's key can found the same network under an operator of their own."""
    real = scene.operator
    scene.keys = {**scene.keys, "operator": STRANGER}
    home = Home(tmp_path)
    home.write_pin(Pin(scene.network, scene.vkey, real))
    _work(scene, home, 2)
    report = replay_home(home)
    assert report.problem.seq == 1
    assert f"the founding names the operator {STRANGER.id}, expected the pinned {real}" in report.problem.why


def test_replay_without_an_operator_key_says_that_the_operator_is_not_anchored(home: Home, scene) -> None:
    report = replay(SQLiteSource(home.book), key=scene.vkey)
    assert (report.ok, report.anchored, report.operator_anchored) == (True, True, False)
    report = replay(SQLiteSource(home.book), key=scene.vkey, operator=scene.operator)
    assert (report.ok, report.operator_anchored, report.operator) == (True, True, scene.operator)


def test_founding_by_a_stranger_over_the_bus_is_refused_by_a_pinned_book(scene, tmp_path: Path) -> None:
    book = scene.open(tmp_path)
    operator = scene.keys["operator"]
    scene.keys["operator"] = STRANGER
    hijack = scene.founding()
    scene.keys["operator"] = operator
    refused, founded = book.commit([hijack, scene.founding()], scene.now_ms)
    assert refused.error.to_error().code == NotAuthorised.code
    assert founded.entry.seq == 1
    book.close()


def test_book_of_another_operator_is_not_opened(home: Home, scene) -> None:
    scene.keys = {**scene.keys, "operator": STRANGER}
    with pytest.raises(BookCorrupt, match=r"entry 1: the operator is .*, expected the pinned") as caught:
        scene.open(home.path)
    assert caught.value.seq == 1


def test_pin_whose_network_is_not_that_of_its_key_is_refused(home: Home, scene) -> None:
    (home.path / "network.json").unlink()
    home.write_pin(Pin("sawyer-net/ffffffff", scene.vkey, scene.operator))
    with pytest.raises(VerificationError, match="is pinned to network sawyer-net/ffffffff"):
        replay_home(home)


# --- kept checkpoints -------------------------------------------------------------------------------------------------


def test_green_verdict_keeps_its_checkpoint_and_the_next_keeps_the_newer(home: Home, scene) -> None:
    assert replay_home(home).note == home.held_checkpoint()
    _work(scene, home, 1, start=10)
    assert replay_home(home).ok
    assert Checkpoint.read(home.held_checkpoint()).size == 14


def test_book_cut_back_after_a_green_verdict_is_found_by_the_next_replay(home: Home) -> None:
    assert replay_home(home).ok
    _cut(home, 2)
    problem = replay_home(home).problem
    assert problem.why == "the book ends at entry 11, the held checkpoint is of 12"
    assert Checkpoint.read(home.held_checkpoint()).size == 12


def test_book_cut_back_after_a_green_verdict_is_not_opened(home: Home, scene) -> None:
    assert replay_home(home).ok
    _cut(home, 2)
    with pytest.raises(BookCorrupt, match="the book ends at entry 11, and a checkpoint of 12") as caught:
        scene.open(home.path, held=home.held_checkpoint())
    assert "Bring back the newer copy" in caught.value.hint


def test_book_forked_after_a_green_verdict_is_found_by_replay_and_not_opened(home: Home, scene) -> None:
    """The same keys write another history over the older copy, as long as the first."""
    assert replay_home(home).ok
    _cut(home, 4)
    scene.receipts = {"node-a": (1, scene.receipts["node-a"][1])}
    book = scene.open(home.path)
    for number in (20, 21, 22):
        assert book.commit([scene.reserve(scene.order(number))], scene.now_ms)[0].error is None
    book.close()
    assert "its checkpoint says" in replay_home(home).problem.why
    with pytest.raises(BookCorrupt, match="its checkpoint says"):
        scene.open(home.path, held=home.held_checkpoint())


def test_wrong_book_and_unpinned_home_keep_no_checkpoint(home: Home, scene) -> None:
    assert replay_home(home, operator=STRANGER.id).problem.seq == 1
    assert home.held_checkpoint() is None
    (home.path / "network.json").unlink()
    assert replay_home(home, key=scene.vkey).ok
    assert home.held_checkpoint() is None


def test_home_that_cannot_be_written_is_verified_and_said_so(
    home: Home, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr("sawyer.home.durable.replace", refuse)
    assert replay_home(home).ok
    assert "cannot keep the checkpoint" in caplog.text


@pytest.mark.parametrize("content", [b"", b"junk\n", b"\xff\xfe"])
def test_damaged_kept_checkpoint_is_refused_and_named(home: Home, content: bytes) -> None:
    home.checkpoint.write_bytes(content)
    with pytest.raises(VerificationError, match=r"checkpoint\.txt") as caught:
        replay_home(home)
    assert "Restore it" in caught.value.hint


def test_kept_checkpoint_signed_by_a_stranger_does_not_open_the_book(home: Home, scene) -> None:
    forged = Checkpoint(scene.network, 12, bytes.fromhex(replay_home(home).root)).sign(scene.keys["mallory"])
    with pytest.raises(VerificationError, match="is not of this ledger"):
        scene.open(home.path, held=forged)


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("note", ["", "garbage", "x\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"])
def test_text_that_is_no_checkpoint_is_the_callers_mistake_not_the_books(
    home: Home, scene, note: str, anchored: bool
) -> None:
    with pytest.raises(UsageError, match="the checkpoint to hold the book against"):
        replay(SQLiteSource(home.book), key=scene.vkey if anchored else None, held=(note,))


def test_checkpoint_by_another_key_is_the_callers_mistake_with_a_key_and_wrong_without(home: Home, scene) -> None:
    forged = Checkpoint(scene.network, 12, bytes(32)).sign(scene.keys["mallory"])
    with pytest.raises(UsageError, match="no valid signature"):
        replay(SQLiteSource(home.book), key=scene.vkey, held=(forged,))
    assert "the held checkpoint is not of this book" in replay(SQLiteSource(home.book), held=(forged,)).problem.why


def test_checkpoint_with_a_witness_is_held_though_none_may_lie_in_the_book(home: Home, scene) -> None:
    note = replay_home(home).note + "\N{EM DASH} witness.example/w1 " + "A" * 92 + "\n"
    assert replay(SQLiteSource(home.book), key=scene.vkey, held=(note,)).ok
    with sqlite3.connect(home.book) as connection:
        changed = connection.execute("UPDATE stored_events SET state=? WHERE rowid=19", (note.encode(),))
        assert changed.rowcount == 0
        last = connection.execute("SELECT MAX(rowid) FROM stored_events").fetchone()[0]
        connection.execute("UPDATE stored_events SET state=? WHERE rowid=?", (note.encode(), last))
    connection.close()
    assert "more than the ledger's own signature" in replay(SQLiteSource(home.book), key=scene.vkey).problem.why
    with pytest.raises(BookCorrupt, match="more than the ledger's own signature"):
        scene.open(home.path)
