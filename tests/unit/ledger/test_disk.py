"""Disks that are full in the middle of a batch, files and folders that may not be written: a clear error, no half
entry, and the book goes on when it can."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sawyer.errors import SawyerError
from sawyer.ledger.replay import replay
from sawyer.ledger.source import SQLiteSource
from sawyer.ledger.store_sqlite import SQLiteStore

WRITER = Path(__file__).with_name("disk_writer.py")


def run(*arguments: str | Path) -> list[str]:
    done = subprocess.run([sys.executable, WRITER, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_disk_that_is_full_anywhere_in_a_batch_leaves_nothing_of_it_and_the_next_one_stands(
    scene, tmp_path: Path
) -> None:
    said = run("full", tmp_path)
    assert len(said) > 5
    assert all("cannot write to the book" in line for line in said)
    report = replay(SQLiteSource(tmp_path / "book.sqlite"), key=scene.vkey)
    assert (report.problem, report.entries) == (None, 8 + 20 * (len(said) + 1))


def test_database_that_may_not_grow_says_that_it_is_full(scene, tmp_path: Path) -> None:
    book = scene.open(tmp_path, views=False)
    book.commit(scene.opening(50_000_000), scene.now_ms)
    failed = 0
    for more in range(60):
        batch = [scene.reserve(scene.order(at)) for at in range(20 * more, 20 * more + 20)]
        before = (book.size, book.root)
        pages = _pragma(book._store, "page_count")
        _pragma(book._store, f"max_page_count={pages + more}")
        try:
            book.commit(batch, scene.now_ms)
            break
        except SawyerError as error:
            failure = error
        assert "database or disk is full" in failure.message
        assert "space" in failure.hint
        failed += 1
        assert (book.size, book.root) == before
        _pragma(book._store, "max_page_count=1000000")
        assert {reply.repeated for reply in book.commit(batch, scene.now_ms)} == {False}
    book.close()
    assert failed > 1
    report = replay(SQLiteSource(tmp_path / "book.sqlite"), key=scene.vkey)
    assert (report.problem, report.entries) == (None, 8 + 20 * (failed + 1))


def _pragma(store: SQLiteStore, text: str) -> int:
    with store._datastore.transaction(commit=False) as cursor:
        cursor.execute(f"PRAGMA {text}")
        return int(cursor.fetchone()[0])


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that others can reach: tests that run as root become `nobody` to be refused anything."""
    made = Path(tempfile.mkdtemp(prefix="sawyer-disk-"))
    made.chmod(0o755)
    yield made
    made.chmod(0o755)
    shutil.rmtree(made)


@pytest.mark.parametrize("sealed", ["file", "folder", "both", "no folder"])
def test_book_that_may_not_be_written_is_refused_and_unchanged(scene, folder: Path, sealed: str) -> None:
    if sealed != "no folder":
        book = scene.open(folder, views=False)
        scene.work(book, 2)
        book.close()
        before = (folder / "book.sqlite").read_bytes()
        (folder / "book.sqlite").chmod(0o444 if sealed in ("file", "both") else 0o666)
    folder.chmod(0o777 if sealed == "file" else 0o555)
    (said,) = run("readonly", folder if sealed != "no folder" else folder / "new")
    assert re.match("refused: cannot (open the book|make the folder|write to the book)", said)
    folder.chmod(0o755)
    if sealed == "no folder":
        return
    assert (folder / "book.sqlite").read_bytes() == before
    (folder / "book.sqlite").chmod(0o644)
    book = scene.open(folder, views=False)
    scene.work(book, 1, start=10)
    book.close()
    assert replay(SQLiteSource(folder / "book.sqlite"), key=scene.vkey).problem is None


def test_clock_that_jumps_back_takes_the_book_back_nowhere(scene, tmp_path: Path) -> None:
    """Also over a restart: the book's time is the later one of the clock's and its last entry's."""
    book = scene.open(tmp_path, views=False)
    scene.work(book, 1)
    book.commit([scene.grant("february", 10)], scene.now_ms + 1_000_000)
    book.close()
    book = scene.open(tmp_path, views=False)
    (reply,) = book.commit([scene.account("dave", "mallory")], scene.now_ms - 10_000_000)
    assert (reply.error, reply.entry.ts_ms) == (None, scene.now_ms + 1_000_000)
    book.close()
    assert replay(SQLiteSource(tmp_path / "book.sqlite"), key=scene.vkey).problem is None
