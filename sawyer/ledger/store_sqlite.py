"""A book in a SQLite file: eventsourcing's recorder, one statement a batch. Also opens the file of the views."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from eventsourcing.domain import EventSourcingError
from eventsourcing.persistence import IntegrityError, InterfaceError, Notification, OperationalError, StoredEvent
from eventsourcing.sqlite import (
    SQLITE3_DEFAULT_LOCK_TIMEOUT,
    SQLiteApplicationRecorder,
    SQLiteConnection,
    SQLiteConnectionPool,
    SQLiteCursor,
    SQLiteDatastore,
)

from sawyer.errors import BookCorrupt, SawyerError, WriterFenced
from sawyer.ledger.entry import StoredRow, check_row_id
from sawyer.ledger.store import PAGE_ROWS, RecordedStore, Synchronous, row_of
from sawyer.ledger.tables import BOOK_SCHEMA, BOOK_TABLE, SELECT_SCHEMA, schema_problem

NAMES_AT_ONCE: Final = 256
"""How many streams one statement asks for. A power of two: see `_padded`."""
CACHED_STATEMENTS: Final = 32
CACHE_KIB: Final = 64 * 1024
"""Pages kept in memory: request ids are random, so each batch touches pages all over the primary key."""
CHECKPOINT_PAGES: Final = 4_000
"""The write-ahead log is folded into the file when it is so long (16 MB)."""
_HINT: Final = "Check that the disk has space and the file may be read and written."


class SQLiteStore(RecordedStore["BookRecorder"]):
    """A file in WAL mode. Rows are numbered by SQLite: 1, 2, 3, ..."""

    def __init__(self, path: Path, synchronous: Synchronous = "FULL") -> None:
        """Open or create the file. Raises SawyerError if it cannot be opened, BookCorrupt if it holds more or less than
        the one table of a book."""
        self._path = path
        self._datastore = open_datastore(path, synchronous, cache_kib=CACHE_KIB)
        self._recorder = BookRecorder(self._datastore)
        try:
            with self._asking(f"cannot open the book {path}"):
                self._recorder.create_table()
                problem = self._recorder.schema_problem()
            if problem:
                raise BookCorrupt(f"{path} is no book: {problem}")
        except BaseException:
            self._datastore.close()
            raise

    def append(self, rows: Sequence[StoredRow]) -> None:
        with self._asking("cannot write to the book"):
            try:
                self._recorder.insert_rows(rows)
            except IntegrityError as error:
                raise WriterFenced("another writer has written to this book") from error

    def rows(self, after: int = 0, page_rows: int = PAGE_ROWS) -> Iterator[StoredRow]:
        number = after
        while True:
            with self._asking("cannot read the book"):
                page = self._recorder.select_notifications(number, page_rows, inclusive_of_start=False)
            for found in page:
                yield row_of(found)
                number += 1
                check_row_id(number, found.id)  # after it was judged: what is missing is best named by the chain
            if len(page) < page_rows:
                return

    def streams(self, names: Sequence[str]) -> dict[str, list[StoredRow]]:
        with self._asking("cannot read the book"):
            found = self._recorder.select_streams(names)
        return {name: [row_of(event) for event in group] for name, group in groupby(found, _stream_of)}

    def close(self) -> None:
        self._datastore.close()

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except (EventSourcingError, sqlite3.Error) as error:  # the library lets some of SQLite's through as they are
            raise SawyerError(f"{what}: {error}", hint=_HINT) from error


class BookRecorder(SQLiteApplicationRecorder):
    """The library's recorder over the table as Sawyer has it, one statement where it has one an event."""

    def construct_create_table_statements(self) -> list[str]:
        return [BOOK_TABLE.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS")]

    def schema_problem(self) -> str:
        """What the file holds that a book does not, or the other way round; "" if nothing."""
        with self.datastore.transaction(commit=False) as cursor:
            cursor.execute(SELECT_SCHEMA)
            return schema_problem(cursor.fetchall(), BOOK_SCHEMA)

    def _insert_events(self, c: SQLiteCursor, stored_events: Sequence[StoredEvent], **_: Any) -> Sequence[int] | None:
        """As the library's, which executes and asks for the row's number once an event. One writer at a time holds
        SQLite's lock, so the numbers of a batch follow each other."""
        rows = [(event.originator_id, event.originator_version, event.topic, event.state) for event in stored_events]
        c.executemany(self.insert_events_statement, rows)
        c.execute("SELECT last_insert_rowid()")
        last = c.fetchone()[0]
        return list(range(last - len(rows) + 1, last + 1))

    def insert_rows(self, rows: Sequence[StoredRow]) -> None:
        """`insert_events` for rows as the book has them: nothing is copied, and nobody asks for their numbers."""
        with self.datastore.transaction(commit=True) as cursor:
            cursor.executemany(self.insert_events_statement, rows)

    def select_streams(self, names: Sequence[str]) -> list[StoredEvent]:
        """All events of these streams; those of one stand together, by version."""
        found: list[StoredEvent] = []
        with self.datastore.transaction(commit=False) as cursor:
            for start in range(0, len(names), NAMES_AT_ONCE):
                asked = _padded(names[start : start + NAMES_AT_ONCE])
                marks = ",".join("?" * len(asked))
                cursor.execute(
                    f"SELECT * FROM {self.events_table_name} WHERE originator_id IN ({marks}) "  # noqa: S608 (our own)
                    "ORDER BY originator_id, originator_version",
                    asked,
                )
                found += [StoredEvent(*row) for row in cursor.fetchall()]
        return found

    def select_number(self, stream: str, version: int) -> int | None:
        """The number in the table of this version, if it is there."""
        with self.datastore.transaction(commit=False) as cursor:
            cursor.execute(
                f"SELECT rowid FROM {self.events_table_name} "  # noqa: S608 (our own)
                "WHERE originator_id=? AND originator_version=?",
                (stream, version),
            )
            found = cursor.fetchone()
            return None if found is None else int(found[0])


class _Pool(SQLiteConnectionPool):
    """Connections that say how durable a commit is (SQLite's own default depends on how it was built), and keep their
    statements. One stays open: only the pages that this connection read itself are still in its memory."""

    def __init__(self, db_name: str, synchronous: Synchronous, cache_kib: int) -> None:
        super().__init__(db_name=db_name, pool_size=1)
        self._pragmas = (
            f"synchronous={synchronous}",
            f"cache_size={-cache_kib}",
            f"wal_autocheckpoint={CHECKPOINT_PAGES}",
        )

    def _create_connection(self) -> SQLiteConnection:
        """As the library's, which keeps one statement and no settings."""
        try:
            connection = sqlite3.connect(
                self.db_name,
                check_same_thread=False,
                isolation_level=None,
                cached_statements=CACHED_STATEMENTS,
                timeout=self.lock_timeout or SQLITE3_DEFAULT_LOCK_TIMEOUT,
            )
        except sqlite3.Error as error:
            raise InterfaceError(error) from error
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            for pragma in self._pragmas:
                connection.execute(f"PRAGMA {pragma}")
        except sqlite3.Error as error:
            connection.close()
            raise OperationalError(error) from error
        connection.row_factory = sqlite3.Row
        return SQLiteConnection(sqlite_conn=connection, max_age=self.max_age)


def open_datastore(path: Path, synchronous: Synchronous, *, cache_kib: int = 2_000) -> SQLiteDatastore:
    """A SQLite file in WAL mode with readable stream names; its folder is made if missing. Nothing is opened yet."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SawyerError(f"cannot make the folder {path.parent}: {error}", hint=_HINT) from error
    name = str(path.absolute())
    datastore = SQLiteDatastore(name, originator_id_type="text")
    datastore.pool = _Pool(name, synchronous, cache_kib)
    return datastore


def _padded(names: Sequence[str]) -> list[str]:
    """As many names as the next power of two, the last one repeated: few statements, so that SQLite keeps them all."""
    wanted = 1 << (len(names) - 1).bit_length()
    return [*names, *[names[-1]] * (wanted - len(names))]


def _stream_of(event: StoredEvent | Notification) -> str:
    return str(event.originator_id)
