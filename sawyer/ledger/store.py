"""Where the book's bytes lie: eventsourcing's recorders, one transaction a batch. Knows rows, not what they mean.

The library's recorder is used directly and not through its Application (docs/adr/0002): an entry's bytes are signed
bytes that no mapper may touch, and one batch spans many streams. Recorders are constructed here, never through the
library's factory, which would let environment variables choose the database.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from eventsourcing.persistence import (
    ApplicationRecorder,
    IntegrityError,
    OperationalError,
    PersistenceError,
    StoredEvent,
)
from eventsourcing.popo import POPOApplicationRecorder
from eventsourcing.sqlite import (
    SQLiteApplicationRecorder,
    SQLiteConnection,
    SQLiteConnectionPool,
    SQLiteDatastore,
)

from sawyer.errors import BookCorrupt, SawyerError, WriterFenced
from sawyer.ledger.entry import StoredRow, check_row_id
from sawyer.ledger.tables import BOOK_SCHEMA, BOOK_TABLE, SELECT_SCHEMA, schema_problem

Synchronous = Literal["FULL", "NORMAL"]
"""FULL: a commit is on the disk before it returns. NORMAL: a power cut may lose the last commits, never corrupt."""
PAGE_ROWS: Final = 1000


class Store:
    """The rows of one book, in the order in which they were written."""

    def __init__(self, recorder: ApplicationRecorder, datastore: SQLiteDatastore | None = None) -> None:
        self._recorder = recorder
        self._datastore = datastore

    @classmethod
    def sqlite(cls, path: Path, synchronous: Synchronous = "FULL") -> Store:
        """The book in this file, created if missing. Raises SawyerError if it cannot be opened, BookCorrupt if it holds
        more or less than the one table of a book."""
        datastore = open_datastore(path, synchronous)
        recorder = _Recorder(datastore)
        try:
            recorder.create_table()
            problem = recorder.schema_problem()
        except PersistenceError as error:
            datastore.close()
            raise _failed(f"cannot open the book {path}", error) from error
        if problem:
            datastore.close()
            raise BookCorrupt(f"{path} is no book: {problem}")
        return cls(recorder, datastore)

    @classmethod
    def in_memory(cls) -> Store:
        """A book that ends with the process: for tests and simulations."""
        return cls(POPOApplicationRecorder())

    def append(self, rows: Sequence[StoredRow]) -> None:
        """Write all rows or none, durably. Raises WriterFenced if one of them stands there already: somebody else has
        written since; SawyerError if the database cannot."""
        events = [StoredEvent(row.stream, row.version, row.topic, row.state) for row in rows]
        try:
            self._recorder.insert_events(events)
        except IntegrityError as error:
            raise WriterFenced("another writer has written to this book") from error
        except PersistenceError as error:
            raise _failed("cannot write to the book", error) from error

    def rows(self) -> Iterator[StoredRow]:
        """Every row from the first on. Raises BookCorrupt if they are not numbered 1, 2, 3, ..."""
        start = 1
        while True:
            try:
                page = self._recorder.select_notifications(start, PAGE_ROWS)
            except PersistenceError as error:
                raise _failed("cannot read the book", error) from error
            for number, row in enumerate(page, start):
                yield StoredRow(str(row.originator_id), row.originator_version, row.topic, row.state)
                check_row_id(number, row.id)  # after it was judged: what is missing is best named by the chain
            if len(page) < PAGE_ROWS:
                return
            start = page[-1].id + 1

    def row(self, stream: str, version: int) -> StoredRow:
        """One row that is known to be there. Raises SawyerError if it is not."""
        try:
            found = self._recorder.select_events(stream, gt=version - 1, limit=1)
        except PersistenceError as error:
            raise _failed("cannot read the book", error) from error
        if not found or found[0].originator_version != version:
            raise SawyerError(f"version {version} of stream {stream} is gone from the book")
        return StoredRow(stream, version, found[0].topic, found[0].state)

    def close(self) -> None:
        if self._datastore is not None:
            self._datastore.close()


class _Recorder(SQLiteApplicationRecorder):
    """The library's recorder over the table as Sawyer has it."""

    def construct_create_table_statements(self) -> list[str]:
        return [BOOK_TABLE.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS")]

    def schema_problem(self) -> str:
        with self.datastore.transaction(commit=False) as cursor:
            cursor.execute(SELECT_SCHEMA)
            return schema_problem(cursor.fetchall(), BOOK_SCHEMA)


class _Pool(SQLiteConnectionPool):
    """Connections that say how durable a commit is; SQLite's own default depends on how it was built."""

    def __init__(self, db_name: str, synchronous: Synchronous) -> None:
        super().__init__(db_name=db_name)
        self._synchronous = synchronous

    def _create_connection(self) -> SQLiteConnection:
        try:
            connection = super()._create_connection()
            connection.cursor().execute(f"PRAGMA synchronous={self._synchronous}")
        except sqlite3.Error as error:  # the library lets some through as they are
            raise OperationalError(error) from error
        return connection


def open_datastore(path: Path, synchronous: Synchronous) -> SQLiteDatastore:
    """A SQLite file in WAL mode with readable stream names; its folder is made if missing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _failed(f"cannot make the folder {path.parent}", error) from error
    name = str(path.absolute())
    datastore = SQLiteDatastore(name, originator_id_type="text")
    datastore.pool = _Pool(name, synchronous)
    return datastore


def _failed(what: str, error: Exception) -> SawyerError:
    return SawyerError(f"{what}: {error}", hint="Check that the disk has space and the file may be read and written.")
