"""Copies of a book: whole, of one moment, beside a running writer; put back without losing what was there."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import closing
from itertools import islice
from pathlib import Path
from threading import Event, Semaphore, Thread

import pytest

from sawyer.errors import BookCorrupt, SawyerError, UsageError
from sawyer.ledger import backup
from sawyer.ledger.backup import Compared, back_up, compare, fill, put_in_place, rebuild
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.source import SQLiteSource
from sawyer.ledger.store import Store

BATCH = 8


def batch(number: int) -> list[StoredRow]:
    return [
        *(StoredRow(f"thing:{number}-{at}", 1, "thing.happened.v1", b"x" * 500) for at in range(BATCH - 1)),
        StoredRow("log:checkpoints", number + 1, "checkpoint", b"note"),
    ]


def write(path: Path, batches: int, first: int = 0) -> list[StoredRow]:
    with closing(Store.sqlite(path, "NORMAL")) as store:
        for number in range(first, first + batches):
            store.append(batch(number))
        return list(store.rows())


def names(folder: Path) -> list[str]:
    """Without what SQLite leaves beside a file that was only read."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(("-wal", "-shm")))


class Rows:
    """A book in a list."""

    def __init__(self, rows: list[StoredRow]) -> None:
        self._rows = rows

    def size_rows(self) -> int:
        return len(self._rows)

    def rows(self):
        yield from self._rows


def test_backup_is_one_file_with_every_row_in_order(tmp_path: Path) -> None:
    rows = write(tmp_path / "book.sqlite", 30)
    (tmp_path / "new").mkdir()
    back_up(tmp_path / "book.sqlite", tmp_path / "new" / "copy.sqlite")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["copy.sqlite"]
    assert list(SQLiteSource(tmp_path / "new" / "copy.sqlite").rows()) == rows
    assert (tmp_path / "new" / "copy.sqlite").stat().st_mode & 0o777 == 0o600


def test_backup_beside_a_writer_is_a_whole_prefix_and_the_writer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "STEP_PAGES", 5)
    book = tmp_path / "book.sqlite"
    write(book, 100)
    stop, commits, steps = Event(), Semaphore(0), []

    def work() -> None:
        with closing(Store.sqlite(book, "NORMAL")) as store:
            for number in range(100, 100_000):
                store.append(batch(number))
                commits.release()
                if stop.is_set():
                    return

    def step(done: int, total: int) -> None:
        """The next pages are copied only after another commit."""
        steps.append(commits.acquire(timeout=30))

    writer = Thread(target=work)
    writer.start()
    try:
        back_up(book, tmp_path / "copy.sqlite", step)
    finally:
        stop.set()
        writer.join()
    copied = list(SQLiteSource(tmp_path / "copy.sqlite").rows())
    assert len(copied) % BATCH == 0
    assert copied == list(islice(SQLiteSource(book).rows(), len(copied)))
    assert len(steps) > 10
    assert all(steps)


def test_backup_has_what_is_only_in_the_log_of_a_crashed_writer(tmp_path: Path) -> None:
    store = Store.sqlite(tmp_path / "book.sqlite")
    store.append(batch(0))
    back_up(tmp_path / "book.sqlite", tmp_path / "copy.sqlite")
    assert len(list(SQLiteSource(tmp_path / "copy.sqlite").rows())) == BATCH
    store.close()


def test_backup_never_takes_the_place_of_a_file(tmp_path: Path) -> None:
    write(tmp_path / "book.sqlite", 1)
    (tmp_path / "copy.sqlite").write_bytes(b"precious")
    with pytest.raises(UsageError, match="exists"):
        back_up(tmp_path / "book.sqlite", tmp_path / "copy.sqlite")
    assert (tmp_path / "copy.sqlite").read_bytes() == b"precious"


def test_backup_makes_no_folder(tmp_path: Path) -> None:
    write(tmp_path / "book.sqlite", 1)
    with pytest.raises(UsageError, match="there is no folder"):
        back_up(tmp_path / "book.sqlite", tmp_path / "typo" / "copy.sqlite")
    assert not (tmp_path / "typo").exists()


@pytest.fixture
def linkless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without hard links, such as a USB stick."""

    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)


def test_backup_to_a_disk_without_hard_links_is_whole(tmp_path: Path, linkless: None) -> None:
    rows = write(tmp_path / "book.sqlite", 30)
    back_up(tmp_path / "book.sqlite", tmp_path / "copy.sqlite")
    assert list(SQLiteSource(tmp_path / "copy.sqlite").rows()) == rows
    assert (tmp_path / "copy.sqlite").stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["book.sqlite", "copy.sqlite"]


def test_backup_to_a_disk_without_hard_links_never_takes_the_place_of_a_file(
    tmp_path: Path, linkless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes while it is copied, too."""
    write(tmp_path / "book.sqlite", 1)

    def meanwhile(done: int, total: int) -> None:
        (tmp_path / "copy.sqlite").write_bytes(b"precious")

    with pytest.raises(SawyerError, match="File exists"):
        back_up(tmp_path / "book.sqlite", tmp_path / "copy.sqlite", meanwhile)
    assert (tmp_path / "copy.sqlite").read_bytes() == b"precious"


def test_former_book_is_kept_on_a_disk_without_hard_links(tmp_path: Path, linkless: None) -> None:
    former, made = write(tmp_path / "book.sqlite", 3), write(tmp_path / "made.sqlite", 5)
    assert put_in_place(tmp_path / "made.sqlite", tmp_path / "book.sqlite") == tmp_path / "book.sqlite.former-1"
    assert list(SQLiteSource(tmp_path / "book.sqlite").rows()) == made
    assert list(SQLiteSource(tmp_path / "book.sqlite.former-1").rows()) == former
    assert names(tmp_path) == ["book.sqlite", "book.sqlite.former-1"]


@pytest.mark.parametrize("content", [b"", b"plain text, long enough to be looked at" * 100])
def test_file_that_is_no_book_is_not_backed_up(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "book.sqlite").write_bytes(content)
    with pytest.raises(BookCorrupt):
        back_up(tmp_path / "book.sqlite", tmp_path / "copy.sqlite")
    assert names(tmp_path) == ["book.sqlite"]


def test_missing_book_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no book at"):
        back_up(tmp_path / "book.sqlite", tmp_path / "copy.sqlite")


def test_backup_that_fails_midway_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "STEP_PAGES", 5)
    write(tmp_path / "book.sqlite", 100)

    def full(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(SawyerError, match="No space left on device") as caught:
        back_up(tmp_path / "book.sqlite", tmp_path / "copy.sqlite", full)
    assert caught.value.hint
    assert names(tmp_path) == ["book.sqlite"]


def test_rebuilt_book_has_the_rows_of_its_source(tmp_path: Path) -> None:
    rows = [row for number in range(300) for row in batch(number)]
    told: list[tuple[int, int]] = []
    rebuild(Rows(rows), tmp_path / "made.sqlite", lambda done, total: told.append((done, total)))
    assert list(SQLiteSource(tmp_path / "made.sqlite").rows()) == rows
    assert told[-1] == (len(rows), len(rows))
    assert names(tmp_path) == ["made.sqlite"]


def test_row_that_stands_twice_in_a_source_is_wrong_and_no_fence(tmp_path: Path) -> None:
    with pytest.raises(BookCorrupt, match="stands twice"):
        rebuild(Rows([*batch(0), batch(0)[0]]), tmp_path / "made.sqlite")


def test_store_that_holds_rows_is_not_filled(tmp_path: Path) -> None:
    store = Store.in_memory()
    fill(Rows(batch(0)), store)
    assert list(store.rows()) == batch(0)
    with pytest.raises(UsageError, match=f"holds {BATCH} rows"):
        fill(Rows(batch(1)), store)
    assert list(store.rows()) == batch(0)


@pytest.mark.parametrize(
    ("older", "newer", "expected"),
    [
        (0, 0, Compared(0, 0, False, same=True)),
        (0, 5, Compared(0, 0, False)),
        (5, 5, Compared(5, 0, False, same=True)),
        (3, 5, Compared(3, 0, False)),
        (5, 3, Compared(3, 2, False)),
        (5, 0, Compared(0, 5, False)),
    ],
)
def test_books_of_one_past_are_compared(older: int, newer: int, expected: Compared) -> None:
    rows = batch(0)
    assert compare(Rows(rows[:older]), Rows(rows[:newer])) == expected


def test_book_that_went_another_way_is_told_from_a_shorter_one() -> None:
    ours, theirs = [*batch(0), *batch(1)], [*batch(0), *batch(2)]
    assert compare(Rows(ours), Rows(theirs)) == Compared(BATCH, BATCH, True)


def test_book_is_put_in_place_and_the_former_one_kept_whole(tmp_path: Path) -> None:
    """What only its log has too: the writer was killed."""
    book = tmp_path / "book.sqlite"
    former = write(book, 3)
    made = write(tmp_path / "made.sqlite", 5)
    assert put_in_place(tmp_path / "made.sqlite", book) == tmp_path / "book.sqlite.former-1"
    assert list(SQLiteSource(book).rows()) == made
    assert list(SQLiteSource(tmp_path / "book.sqlite.former-1").rows()) == former
    write(tmp_path / "made.sqlite", 1)
    assert put_in_place(tmp_path / "made.sqlite", book) == tmp_path / "book.sqlite.former-2"


def test_log_of_a_former_book_that_is_damaged_is_never_played_into_the_new_one(tmp_path: Path) -> None:
    book = tmp_path / "book.sqlite"
    book.write_bytes(b"damaged " * 1000)
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"book.sqlite{suffix}").write_bytes(b"old")
    rows = write(tmp_path / "made.sqlite", 2)
    put_in_place(tmp_path / "made.sqlite", book)
    assert list(SQLiteSource(book).rows()) == rows
    assert (tmp_path / "book.sqlite.former-1-wal").read_bytes() == b"old"


def test_book_that_a_writer_has_open_is_not_replaced(tmp_path: Path) -> None:
    book = tmp_path / "book.sqlite"
    write(tmp_path / "made.sqlite", 2)
    with closing(Store.sqlite(book)) as store:
        store.append(batch(0))
        with pytest.raises(UsageError, match="open") as caught:
            put_in_place(tmp_path / "made.sqlite", book)
        assert "bookkeeper" in caught.value.hint
        store.append(batch(1))
    assert len(list(SQLiteSource(book).rows())) == 2 * BATCH
    assert sqlite3.connect(book).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_first_book_of_a_home_has_no_former(tmp_path: Path) -> None:
    write(tmp_path / "made.sqlite", 1)
    assert put_in_place(tmp_path / "made.sqlite", tmp_path / "book.sqlite") is None
    assert names(tmp_path) == ["book.sqlite"]
