"""Power cuts, as near as a process can come: SIGKILL of a real writer under load, and a disk that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sawyer.errors import SawyerError
from sawyer.ledger.book import Book
from sawyer.ledger.entry import StoredRow, decode_entry
from sawyer.ledger.replay import replay
from sawyer.ledger.source import SQLiteSource
from sawyer.ledger.store import Store
from sawyer.ledger.views import Views

WRITER = Path(__file__).with_name("crash_writer.py")


def _kill_under_load(folder: Path, first: int, acknowledgements: int) -> dict[int, str]:
    """Run a writer, kill it after so many lines; what it had acknowledged, seq -> leaf."""
    with subprocess.Popen(
        [sys.executable, WRITER, str(folder), str(first)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(acknowledgements)]
        writer.kill()
        lines += writer.stdout.readlines()
    whole = [line.split() for line in lines if line.endswith("\n")]
    return {int(seq): leaf for seq, leaf in whole}


def test_acknowledged_entries_survive_sigkill_and_views_count_each_once(scene, tmp_path: Path) -> None:
    acknowledged: dict[int, str] = {}
    for number, after in enumerate((1, 9, 42)):
        acknowledged |= _kill_under_load(tmp_path, first=1_000_000 * (number + 1), acknowledgements=after)
        stored = {}
        for row in SQLiteSource(tmp_path / "book.sqlite").rows():
            if not row.is_checkpoint:
                entry = decode_entry(row.state)
                stored[entry.seq] = entry.leaf
        assert acknowledged.items() <= stored.items()
        before = replay(SQLiteSource(tmp_path / "book.sqlite"), key=scene.vkey, views=tmp_path / "views.sqlite")
        assert before.problem is None
        scene.open(tmp_path).close()
        after_opening = replay(SQLiteSource(tmp_path / "book.sqlite"), key=scene.vkey, views=tmp_path / "views.sqlite")
        assert (after_opening.problem, after_opening.views_seq) == (None, after_opening.size)
    assert len(acknowledged) >= 52


class FailingStore(Store):
    """A disk that is full from the moment on that `full` is set."""

    full = False

    def append(self, rows: list[StoredRow]) -> None:
        if self.full:
            raise SawyerError("cannot write to the book: database or disk is full", hint="Check the disk.")
        super().append(rows)


def _open(store: Store, scene, views: Views | None = None) -> Book:
    return Book(store, network=scene.network, operator=scene.operator, ledger_key=scene.keys["ledger"], views=views)


def test_full_disk_refuses_the_batch_whole_and_memory_forgets_it(scene, tmp_path: Path) -> None:
    store = FailingStore(Store.in_memory()._recorder)
    book = _open(store, scene)
    book.commit(scene.opening(), scene.now_ms)
    before = (book.size, book.root, book.balance("alice", scene.now_ms))
    store.full = True
    with pytest.raises(SawyerError, match="disk is full"):
        book.commit([scene.reserve(scene.order())], scene.now_ms)
    assert (book.size, book.root, book.balance("alice", scene.now_ms)) == before
    store.full = False
    (reply,) = book.commit([scene.reserve(scene.order())], scene.now_ms)
    assert (reply.error, reply.entry.seq) == (None, 9)


def test_views_that_cannot_be_written_lag_and_are_made_good(scene, tmp_path: Path, caplog) -> None:
    views = Views(tmp_path / "views.sqlite")
    book = _open(Store.sqlite(tmp_path / "book.sqlite", "NORMAL"), scene, views)
    book.commit(scene.opening(), scene.now_ms)
    with views.datastore.transaction(commit=True) as cursor:
        cursor.execute("CREATE TRIGGER full BEFORE INSERT ON view_rows BEGIN SELECT RAISE(ABORT, 'full'); END")
    (reply,) = book.commit([scene.reserve(scene.order())], scene.now_ms)
    assert reply.error is None
    assert "the views lag behind the book" in caplog.text
    with views.datastore.transaction(commit=True) as cursor:
        cursor.execute("DROP TRIGGER full")
    book.commit([scene.void(scene.order())], scene.now_ms)
    report = replay(SQLiteSource(tmp_path / "book.sqlite"), key=scene.vkey, views=tmp_path / "views.sqlite")
    book.close()
    assert (report.problem, report.views_seq) == (None, 10)
