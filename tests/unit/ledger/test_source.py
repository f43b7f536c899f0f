"""Reading a book's file: through links, beside a writer, in folders that cannot be written; files that are no book."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from sawyer.errors import BookCorrupt, SawyerError, VerificationError
from sawyer.ledger.replay import replay
from sawyer.ledger.source import SQLiteSource
from sawyer.ledger.tables import BOOK_TABLE


@pytest.fixture
def home(scene, tmp_path: Path) -> Path:
    """The folder of a closed book of 12 entries."""
    book = scene.open(tmp_path, views=False)
    scene.work(book, 2)
    book.close()
    return tmp_path


@pytest.fixture
def sealed(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, where we may not write to the folder (root may write anywhere, so it is told that it may not)."""
    monkeypatch.setattr("sawyer.ledger.source.os.access", lambda *_: False)
    return home


def sql(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_book_behind_a_link_is_read_as_new_as_it_is(scene, tmp_path: Path) -> None:
    """SQLite looks for the -wal file beside the name that it is given."""
    book = scene.open(tmp_path, views=False)
    scene.work(book, 1)
    sql(tmp_path / "book.sqlite", "PRAGMA wal_checkpoint(FULL)")
    scene.work(book, 2, start=10)
    link = tmp_path / "elsewhere" / "book.sqlite"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "book.sqlite")
    size = book.size
    assert replay(SQLiteSource(link), key=scene.vkey).entries == size == 14
    book.close()


def test_writer_commits_while_a_replay_reads_and_the_replay_sees_what_was_there(home: Path, scene) -> None:
    rows = SQLiteSource(home / "book.sqlite").rows()
    first = next(rows)
    book = scene.open(home, views=False)
    scene.work(book, 3, start=10)
    read = [first, *rows]
    book.close()
    assert sum(not row.is_checkpoint for row in read) == 12
    assert replay(SQLiteSource(home / "book.sqlite"), key=scene.vkey).entries == 18


def test_sealed_folder_is_read_without_leaving_a_file(sealed: Path, scene) -> None:
    before = sorted(path.name for path in sealed.iterdir())
    assert replay(SQLiteSource(sealed / "book.sqlite"), key=scene.vkey).entries == 12
    assert sorted(path.name for path in sealed.iterdir()) == before


@pytest.mark.parametrize("at", [0, 5, 16])
def test_file_that_changes_while_a_sealed_folder_is_read_is_never_called_wrong(sealed: Path, scene, at: int) -> None:
    """Half of one state and half of another says nothing of either."""
    path = sealed / "book.sqlite"
    whole = path.read_bytes()

    class Changing(SQLiteSource):
        def rows(self):
            with closing(super().rows()) as rows:
                for number, row in enumerate(rows):
                    if number == at:
                        path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
                    yield row

    with pytest.raises(SawyerError, match="was changed while it was read") as caught:
        replay(Changing(path), key=scene.vkey)
    assert not isinstance(caught.value, VerificationError)


def test_sealed_folder_with_a_wal_is_not_read_past_it(sealed: Path, scene) -> None:
    """What a crashed writer left is part of the book: SQLite is never told to look away from it."""
    (sealed / "book.sqlite-wal").write_bytes(b"")
    assert replay(SQLiteSource(sealed / "book.sqlite"), key=scene.vkey).entries == 12
    assert (sealed / "book.sqlite-shm").exists()


def test_book_that_a_crash_left_half_written_cannot_be_read_and_is_not_called_wrong(home: Path, scene) -> None:
    """A rollback journal must be played back first, which a reader may not do."""
    path = home / "book.sqlite"
    sql(path, "PRAGMA journal_mode=DELETE")
    program = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size=1')\n"
        "c.execute('BEGIN')\n"
        "c.execute('DELETE FROM stored_events WHERE rowid > 3')\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    assert (home / "book.sqlite-journal").stat().st_size
    with pytest.raises(SawyerError, match="cannot read") as caught:
        replay(SQLiteSource(path), key=scene.vkey)
    assert caught.value.exit_code == 1
    assert "-journal" in caught.value.hint


SCHEMAS = {
    "trigger": ["CREATE TRIGGER t AFTER INSERT ON stored_events BEGIN DELETE FROM stored_events WHERE rowid=1; END"],
    "second table": ["CREATE TABLE notes (a)"],
    "view": ["CREATE VIEW v AS SELECT * FROM stored_events"],
    "index": ["CREATE INDEX i ON stored_events (topic)"],
    "no primary key": [
        "ALTER TABLE stored_events RENAME TO old",
        BOOK_TABLE.replace(", PRIMARY KEY (originator_id, originator_version)", ""),
        "INSERT INTO stored_events SELECT * FROM old ORDER BY rowid",
        "DROP TABLE old",
    ],
}


@pytest.mark.parametrize("change", SCHEMAS)
def test_book_with_another_schema_is_refused_by_replay_and_writer(home: Path, scene, change: str) -> None:
    """Without its primary key a book has no fence: two writers would fork it."""
    sql(home / "book.sqlite", *SCHEMAS[change])
    report = replay(SQLiteSource(home / "book.sqlite"), key=scene.vkey)
    assert "that Sawyer did not make" in report.problem.why
    with pytest.raises(BookCorrupt, match="that Sawyer did not make"):
        scene.open(home, views=False)


@pytest.mark.parametrize("row_id", [2**63 - 1, 1000, 0, -1])
def test_row_with_another_number_is_refused_by_replay_and_writer(home: Path, scene, row_id: int) -> None:
    """After the highest number there is, SQLite appends rows in no order at all."""
    which = "MAX" if row_id > 0 else "MIN"
    change = f"UPDATE stored_events SET rowid={row_id} WHERE rowid=(SELECT {which}(rowid) FROM stored_events)"
    sql(home / "book.sqlite", change)
    report = replay(SQLiteSource(home / "book.sqlite"), key=scene.vkey)
    assert f"got row {row_id}" in report.problem.why
    with pytest.raises(BookCorrupt, match="expected"):
        scene.open(home, views=False)


def test_table_of_a_new_book_is_the_one_the_library_writes_to(home: Path) -> None:
    """The library's recorder inserts by position: its own table must have the columns of ours."""
    from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore

    recorder = SQLiteApplicationRecorder(SQLiteDatastore(":memory:"))
    assert [text.replace(" IF NOT EXISTS", "") for text in recorder.create_table_statements] == [BOOK_TABLE]


def test_row_whose_columns_are_of_other_types_is_wrong_and_numbered(home: Path, scene) -> None:
    sql(home / "book.sqlite", "UPDATE stored_events SET topic=x'ff' WHERE rowid=4")
    assert "row 4 (version" in replay(SQLiteSource(home / "book.sqlite"), key=scene.vkey).problem.why


def test_text_that_is_no_utf8_is_wrong_and_no_crash(home: Path, scene) -> None:
    sql(home / "book.sqlite", "UPDATE stored_events SET topic=CAST(x'ff' AS TEXT) WHERE rowid=4")
    assert "is damaged" in replay(SQLiteSource(home / "book.sqlite"), key=scene.vkey).problem.why
