"""Books and views as replay reads them: read-only, one snapshot, beside a running writer. Judges no entry.

sqlite3 directly: the library's recorder opens every file for writing and would switch its journal mode. Books of
other forms: source_ndjson.py, source_postgres.py, and JetStream's copy in sawyer/bookkeeper/journal_source.py.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

from sawyer.errors import BookCorrupt, SawyerError, UsageError, VerificationError, ViewDiffers
from sawyer.ledger.entry import CHECKPOINT_STREAM, StoredRow, check_row_id
from sawyer.ledger.source_ndjson import NdjsonSource, is_ndjson
from sawyer.ledger.store import is_postgres, needing_driver
from sawyer.ledger.tables import BOOK_SCHEMA, SELECT_SCHEMA, VIEWS_SCHEMA, is_damage, schema_problem
from sawyer.ledger.views import SELECT_HEAD, SELECT_VERSION, read_head
from sawyer.ledger.wanted import Wanted
from sawyer.projections.fold import ROWS_VERSION


class Source(Protocol):
    """A book to replay."""

    def size_rows(self) -> int:
        """About how many rows there are, for a progress bar."""

    def rows(self) -> Generator[StoredRow, None, None]:
        """Every row in the order of writing, as one snapshot. Raises VerificationError for rows that are none. Close it
        before what was read is judged: it may say then that the file changed meanwhile."""


def source_of(text: str) -> Source:
    """The book that a person means: `postgresql://...`, a SQLite file, or an exported NDJSON file; a file is known by
    what it holds. Raises UsageError if there is none or for another address, MissingExtra without PostgreSQL's driver,
    SawyerError if the file cannot be read."""
    if is_postgres(text):
        with needing_driver():
            from sawyer.ledger.source_postgres import PostgresSource  # noqa: PLC0415 (an extra, which may be missing)
        return PostgresSource(text)
    if "://" in text:
        raise UsageError(
            f"no book is read from {text.partition('://')[0]}://",
            hint="Name a SQLite file, an NDJSON file, or postgresql://USER@HOST/DATABASE.",
        )
    path = Path(text)
    if path.is_dir():
        raise UsageError(f"no book at {path}: it is a folder", hint="Name a file in it, or give --home for a home.")
    if not path.is_file():
        raise UsageError(f"no book at {path}", hint="Give --home or --book, or start the network first.")
    return NdjsonSource(path) if is_ndjson(path) else SQLiteSource(path)


class SQLiteSource:
    """A book in a SQLite file."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError if there is no such file."""
        if not path.is_file():
            raise UsageError(f"no book at {path}", hint="Give --home or --book, or start the network first.")
        self.path = path

    def size_rows(self) -> int:
        with _read_only(self.path) as connection:
            if _schema_problem(connection, BOOK_SCHEMA):
                return 0
            return int(connection.execute("SELECT COUNT(*) FROM stored_events").fetchone()[0])

    def rows(self) -> Generator[StoredRow, None, None]:
        query = "SELECT rowid, originator_id, originator_version, topic, state FROM stored_events ORDER BY rowid"
        with _read_only(self.path) as connection:
            problem = _schema_problem(connection, BOOK_SCHEMA)
            if problem:
                raise BookCorrupt(f"{self.path} is no book: {problem}", seq=0)
            for number, (row_id, stream, version, topic, state) in enumerate(connection.execute(query), start=1):
                texts = isinstance(stream, str) and isinstance(topic, str)
                if not (texts and isinstance(version, int) and isinstance(state, bytes)):
                    raise BookCorrupt(f"row {number} (version {version!r} of {stream!r}) is no entry", seq=0)
                yield StoredRow(stream, version, topic, state)
                check_row_id(number, row_id)  # after it was judged: what is missing is best named by the chain

    def search(self, wanted: Wanted, *, newest_first: bool = False) -> Generator[StoredRow, None, None]:
        """See Searchable."""
        tests, values = ["originator_id != ?"], [CHECKPOINT_STREAM]
        if wanted.kind:
            tests.append("instr(topic || '.', ?) = 1")
            values.append(f"{wanted.kind}.")
        if wanted.stream and not wanted.texts:
            tests.append("originator_id = ?")
            values.append(wanted.stream)
        order = "rowid DESC" if newest_first else "rowid"
        query = f"{_SELECT_ENTRIES} WHERE {' AND '.join(tests)} ORDER BY {order}"
        with _read_only(self.path) as connection:
            rows = _entry_rows(connection, query, values)
            yield from (row for row in rows if wanted.fits(row))  # texts: twice as fast as SQLite's instr

    def entry_from(self, number: int) -> StoredRow | None:
        """See Searchable."""
        query = f"{_SELECT_ENTRIES} WHERE rowid >= ? AND originator_id != ? ORDER BY rowid LIMIT 1"
        with _read_only(self.path) as connection:
            return next(_entry_rows(connection, query, (number, CHECKPOINT_STREAM)), None)


class ViewsSnapshot:
    """The live views as they stood at one moment. Open it before the book: views are written after the book, so then
    the book has every entry that the views have. `version` other than ROWS_VERSION: rows of another Sawyer, which mean
    something else; `position` is 0 then."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Raises ViewDiffers if these are no views."""
        self._connection = connection
        self.position = 0
        self.version: int = connection.execute(SELECT_VERSION).fetchone()[0]
        if self.version != ROWS_VERSION:
            return
        problem = _schema_problem(connection, VIEWS_SCHEMA)
        if problem:
            raise ViewDiffers(f"views.sqlite holds no views: {problem}")
        self.position = read_head(connection.execute(SELECT_HEAD).fetchone()).seq

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[ViewsSnapshot]:
        """Raises UsageError if there is no such file, VerificationError if it cannot be read as views."""
        if not path.is_file():
            raise UsageError(f"no views at {path}", hint="Start the bookkeeper once: it makes them from the book.")
        with _read_only(path) as connection:
            yield cls(connection)

    def names(self) -> set[str]:
        return {str(name) for (name,) in self._connection.execute("SELECT DISTINCT view FROM view_rows")}

    def rows(self, view: str) -> Iterator[tuple[str, bytes]]:
        """(key, row bytes) in order of key."""
        query = "SELECT key, row FROM view_rows WHERE view=? ORDER BY key"
        for key, row in self._connection.execute(query, (view,)):
            yield str(key), row if isinstance(row, bytes) else repr(row).encode()


_SELECT_ENTRIES: Final = "SELECT rowid, originator_id, originator_version, topic, state FROM stored_events"


def _entry_rows(connection: sqlite3.Connection, query: str, values: Sequence[object]) -> Iterator[StoredRow]:
    """The rows that a query over the book's table finds. Raises BookCorrupt for one that is no entry."""
    problem = _schema_problem(connection, BOOK_SCHEMA)
    if problem:
        raise BookCorrupt(f"this is no book: {problem}", seq=0)
    for row_id, stream, version, topic, state in connection.execute(query, values):
        texts = isinstance(stream, str) and isinstance(topic, str)
        if not (texts and isinstance(version, int) and isinstance(state, bytes)):
            raise BookCorrupt(f"row {row_id} (version {version!r} of {stream!r}) is no entry", seq=0)
        yield StoredRow(stream, version, topic, state)


def _schema_problem(connection: sqlite3.Connection, expected: frozenset[tuple[str, str, str | None]]) -> str:
    return schema_problem(connection.execute(SELECT_SCHEMA), expected)


@contextmanager
def _read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection in one read transaction, of the file itself: SQLite looks for its -wal beside the name it is given.
    A folder that cannot be written, and holds no -wal, has no writer that SQLite could see, and no place for SQLite's
    lock: only there it is told that nobody will change the file, and we look afterwards whether that was true."""
    path = path.resolve()
    alone = not os.access(path.parent, os.W_OK) and not _beside(path)
    before = _stamp(path)
    uri = f"file:{quote(str(path))}?{'immutable=1' if alone else 'mode=ro'}"
    try:
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)) as connection:
            connection.execute("BEGIN")
            yield connection
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter: SQLite's own message quotes what is damaged
        if isinstance(error, sqlite3.Error) and not is_damage(error):
            raise SawyerError(f"cannot read {path}: {error}", hint=_HINT) from error
        raise VerificationError(
            f"{path} is damaged, or no database: {error}", hint="Compare it with another copy."
        ) from error
    finally:
        if alone and _stamp(path) != before:
            raise SawyerError(f"{path} was changed while it was read", hint=_HINT)


def _beside(path: Path) -> bool:
    return any(path.with_name(path.name + suffix).exists() for suffix in ("-wal", "-journal"))


def _stamp(path: Path) -> tuple[int, int, int, bool]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino, _beside(path)


_HINT: Final = (
    "This says nothing about what the file holds. Copy it, with -wal, -shm and -journal if they are there, to a folder "
    "that you may write to, and run this on the copy."
)
