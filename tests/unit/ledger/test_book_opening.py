"""What a book refuses to open, and what it makes good while opening."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from sawyer.errors import BookCorrupt, SawyerError, ViewDiffers
from sawyer.identity.envelope import attest
from sawyer.ledger.checkpoint import Checkpoint
from sawyer.ledger.entry import CHECKPOINT_STREAM, CHECKPOINT_TOPIC, StoredRow, encode_entry
from sawyer.ledger.merkle import Tree
from sawyer.ledger.replay import replay
from sawyer.ledger.source import SQLiteSource
from sawyer.ledger.store import Store
from sawyer.schemas.events import NO_HASH, Decided


@pytest.fixture
def home(scene, tmp_path: Path) -> Path:
    book = scene.open(tmp_path)
    scene.work(book, 2)
    book.close()
    return tmp_path


def _sql(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as connection:
        assert connection.execute(statement).rowcount > 0
    connection.close()


def test_file_that_is_no_database_is_refused_with_a_hint(scene, tmp_path: Path) -> None:
    (tmp_path / "book.sqlite").write_bytes(b"plain text, and long enough to be looked at" * 50)
    with pytest.raises(SawyerError, match="cannot open the book") as caught:
        scene.open(tmp_path)
    assert caught.value.hint


def test_missing_folder_is_made(scene, tmp_path: Path) -> None:
    scene.open(tmp_path / "new" / "home").close()
    assert (tmp_path / "new" / "home" / "book.sqlite").is_file()


def test_book_without_its_last_checkpoint_is_refused(home: Path, scene) -> None:
    _sql(home / "book.sqlite", "DELETE FROM stored_events WHERE rowid = (SELECT MAX(rowid) FROM stored_events)")
    with pytest.raises(BookCorrupt, match="checkpoint of size"):
        scene.open(home)


def test_book_with_an_entry_missing_is_refused_and_the_entry_named(home: Path, scene) -> None:
    _sql(home / "book.sqlite", "DELETE FROM stored_events WHERE originator_id='node:node-a'")
    with pytest.raises(BookCorrupt, match="expected seq 5, got 6") as caught:
        scene.open(home)
    assert caught.value.seq == 5


def test_views_ahead_of_the_book_are_refused(home: Path, scene) -> None:
    with sqlite3.connect(home / "book.sqlite") as connection:
        connection.execute("DELETE FROM stored_events WHERE rowid > 15")
    connection.close()
    with pytest.raises(ViewDiffers, match="the book ends at 11"):
        scene.open(home)


def test_views_of_another_book_are_refused(home: Path, scene, tmp_path: Path) -> None:
    other = tmp_path / "other"
    scene.now_ms += 1
    scene.receipts.clear()
    book = scene.open(other)
    scene.work(book, 2)
    book.close()
    shutil.copy(other / "views.sqlite", home / "views.sqlite")
    with pytest.raises(ViewDiffers, match="another book"):
        scene.open(home)


def test_views_behind_the_book_catch_up_once(home: Path, scene) -> None:
    old = (home / "views.sqlite").read_bytes()
    book = scene.open(home)
    scene.work(book, 2, start=10)
    book.close()
    (home / "views.sqlite").write_bytes(old)
    scene.open(home).close()
    report = replay(SQLiteSource(home / "book.sqlite"), key=scene.vkey, views=home / "views.sqlite")
    assert (report.problem, report.views_seq) == (None, 16)


def test_writer_refuses_a_book_with_kinds_it_does_not_know(scene, tmp_path: Path) -> None:
    """Its balances would be wrong: a newer Sawyer may have moved tokens."""
    asked = scene.founding()
    kind = "network.invented.v1"
    raw, entry = encode_entry(
        log=scene.network, seq=1, prev=NO_HASH, ts_ms=1, kind=kind, stream="network:founding", version=1,
        idem="found:network", body=asked.body, statement=asked.statement, decided=Decided(),
        attestations=(attest(asked.statement, kind, "operator", scene.keys["operator"]),),
    )  # fmt: skip
    tree = Tree()
    tree.append(bytes.fromhex(entry.leaf))
    note = Checkpoint(scene.network, 1, tree.root()).sign(scene.keys["ledger"]).encode()
    store = Store.sqlite(tmp_path / "book.sqlite", "NORMAL")
    store.append([StoredRow("network:founding", 1, kind, raw), StoredRow(CHECKPOINT_STREAM, 1, CHECKPOINT_TOPIC, note)])
    store.close()
    with pytest.raises(SawyerError, match=r"network\.invented\.v1") as caught:
        scene.open(tmp_path)
    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_every_connection_of_the_book_is_as_durable_as_asked(scene, tmp_path: Path, synchronous: str) -> None:
    store = Store.sqlite(tmp_path / "book.sqlite", synchronous)
    with store._datastore.transaction(commit=False) as cursor:
        cursor.execute("PRAGMA synchronous")
        level = cursor.fetchone()[0]
        cursor.execute("PRAGMA journal_mode")
        mode = cursor.fetchone()[0]
    store.close()
    assert (level, mode) == ({"FULL": 2, "NORMAL": 1}[synchronous], "wal")


def test_environment_does_not_choose_the_database(scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSISTENCE_MODULE", "eventsourcing.popo")
    monkeypatch.setenv("SQLITE_DBNAME", ":memory:")
    monkeypatch.setenv("CREATE_TABLE", "no")
    book = scene.open(tmp_path)
    scene.work(book, 1)
    book.close()
    assert replay(SQLiteSource(tmp_path / "book.sqlite"), key=scene.vkey).entries == 10
