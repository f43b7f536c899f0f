"""Where the book's bytes lie: what every store must do, and which one an address means. Knows rows, not their meaning.

A store is eventsourcing's recorder, one transaction a batch. It is used directly and not through its Application
(docs/adr/0002): an entry's bytes are signed bytes that no mapper may touch, and one batch spans many streams. Recorders
are constructed in code, never through the library's factory, which would let environment variables choose the database.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, Generic, Literal, Protocol, TypeVar

from eventsourcing.persistence import IntegrityError, StoredEvent
from eventsourcing.popo import POPOApplicationRecorder

from sawyer.errors import BookCorrupt, MissingExtra, UsageError, WriterFenced
from sawyer.ledger.entry import StoredRow

Synchronous = Literal["FULL", "NORMAL"]
"""FULL: a commit is on the disk before it returns. NORMAL: a power cut may lose the last commits, never corrupt."""
PAGE_ROWS: Final = 1000
"""How many rows are read at once."""


class Store(Protocol):
    """The rows of one book, in the order in which they were written. Every call raises SawyerError if the database
    cannot; the next call may work again."""

    @staticmethod
    def sqlite(path: Path, synchronous: Synchronous = "FULL") -> Store:
        """The book in this SQLite file, created if missing. Raises SawyerError if it cannot be opened, BookCorrupt if
        it holds more or less than the one table of a book."""
        from sawyer.ledger.store_sqlite import SQLiteStore  # noqa: PLC0415 (each store is one file, and knows this one)

        return SQLiteStore(path, synchronous)

    @staticmethod
    def in_memory() -> Store:
        """A book that ends with the process: for tests and simulations."""
        return MemoryStore()

    def append(self, rows: Sequence[StoredRow]) -> None:
        """Write all rows or none, durably. Raises WriterFenced if one of them stands there already: somebody else has
        written since."""

    def rows(self, after: int = 0, page_rows: int = PAGE_ROWS) -> Iterator[StoredRow]:
        """Every row whose number in the table is above `after`, in order, `page_rows` read at once. Raises BookCorrupt
        where rows are numbered without gaps (SQLite) and one is missing."""

    def streams(self, names: Sequence[str]) -> dict[str, list[StoredRow]]:
        """All rows of each of these short streams, by version; a stream that is not there has no key. One round trip
        for all of them: the writer asks this of each batch."""

    def row(self, stream: str, version: int) -> StoredRow:
        """One row that is known to be there. Raises BookCorrupt if it is not."""

    def last(self, stream: str) -> StoredRow | None:
        """The row with the highest version of this stream, or None."""

    def number(self, stream: str, version: int) -> int:
        """The number in the table of a row that is known to be there. Raises BookCorrupt if it is not."""

    def size(self) -> int:
        """How many rows there are, and a little more where numbers have gaps (PostgreSQL). Cheap."""

    def close(self) -> None:
        """Let go of the database. Closing twice is harmless."""


def open_store(where: Path | str, synchronous: Synchronous = "FULL") -> Store:
    """The book at this place: a file's path, or `postgresql://...`. Raises UsageError for another kind of address,
    MissingExtra if PostgreSQL's driver is not installed, SawyerError if it cannot be opened, BookCorrupt if there is
    something else."""
    text = str(where)
    if is_postgres(text):
        with needing_driver():
            from sawyer.ledger.store_postgres import PostgresStore  # noqa: PLC0415 (an extra, which may be missing)
        return PostgresStore(text, synchronous)
    if "://" in text:
        raise UsageError(
            f"no book can be kept at {text.partition('://')[0]}://",
            hint="Name a SQLite file, or postgresql://USER@HOST/DATABASE.",
        )
    return Store.sqlite(Path(text), synchronous)


def is_postgres(where: Path | str) -> bool:
    """True for the address of a PostgreSQL database."""
    return str(where).startswith(("postgresql://", "postgres://"))


@contextmanager
def needing_driver() -> Iterator[None]:
    """Raises MissingExtra if what is imported in here is not installed."""
    try:
        yield
    except ImportError as error:
        raise MissingExtra(
            f"this book lies in PostgreSQL, and its driver cannot be loaded: {error}",
            hint="pip install 'sawyer[postgres]'",
        ) from error


class _Recorder(Protocol):
    """What a store over a database needs of its recorder, beside appending and paging."""

    def select_events(
        self,
        originator_id: str,
        *,
        gt: int | None = ...,
        lte: int | None = ...,
        desc: bool = ...,
        limit: int | None = ...,
    ) -> Sequence[StoredEvent]:
        """Rows of a stream."""

    def select_number(self, stream: str, version: int) -> int | None:
        """The number in the table of one row, or None."""

    def max_notification_id(self) -> int | None:
        """The highest number in the table."""


_RecorderT = TypeVar("_RecorderT", bound=_Recorder)


class RecordedStore(Store, Generic[_RecorderT]):
    """A store over a database: what it asks of its recorder in the same way, whichever database that is."""

    _recorder: _RecorderT

    @abstractmethod
    def _asking(self, what: str) -> AbstractContextManager[None]:
        """Turns the database's own errors into ours, saying what was asked."""

    def row(self, stream: str, version: int) -> StoredRow:
        """See Store.row."""
        with self._asking("cannot read the book"):
            found = self._recorder.select_events(stream, gt=version - 1, lte=version)
        if not found:
            raise gone(stream, version)
        return row_of(found[0])

    def last(self, stream: str) -> StoredRow | None:
        """See Store.last."""
        with self._asking("cannot read the book"):
            found = self._recorder.select_events(stream, desc=True, limit=1)
        return row_of(found[0]) if found else None

    def number(self, stream: str, version: int) -> int:
        """See Store.number."""
        with self._asking("cannot read the book"):
            found = self._recorder.select_number(stream, version)
        if found is None:
            raise gone(stream, version)
        return found

    def size(self) -> int:
        """See Store.size."""
        with self._asking("cannot read the book"):
            return self._recorder.max_notification_id() or 0


class MemoryStore(Store):
    """The library's plain Python recorder."""

    def __init__(self) -> None:
        self._recorder = POPOApplicationRecorder()

    def append(self, rows: Sequence[StoredRow]) -> None:
        try:
            self._recorder.insert_events([event_of(row) for row in rows])
        except IntegrityError as error:
            raise WriterFenced("another writer has written to this book") from error

    def rows(self, after: int = 0, page_rows: int = PAGE_ROWS) -> Iterator[StoredRow]:
        while page := self._recorder.select_notifications(after, page_rows, inclusive_of_start=False):
            yield from map(row_of, page)
            after = page[-1].id

    def streams(self, names: Sequence[str]) -> dict[str, list[StoredRow]]:
        found = {name: [row_of(event) for event in self._recorder.select_events(name)] for name in names}
        return {name: rows for name, rows in found.items() if rows}

    def row(self, stream: str, version: int) -> StoredRow:
        for event in self._recorder.select_events(stream, gt=version - 1, lte=version):
            return row_of(event)
        raise gone(stream, version)

    def last(self, stream: str) -> StoredRow | None:
        rows = self._recorder.select_events(stream, desc=True, limit=1)
        return row_of(rows[0]) if rows else None

    def number(self, stream: str, version: int) -> int:
        for number, row in enumerate(self.rows(), start=1):
            if (row.stream, row.version) == (stream, version):
                return number
        raise gone(stream, version)

    def size(self) -> int:
        return self._recorder.max_notification_id() or 0

    def close(self) -> None:
        """The rows stay while the object does: another Book may be opened on it."""


def event_of(row: StoredRow) -> StoredEvent:
    """The library's name for a row."""
    return StoredEvent(row.stream, row.version, row.topic, row.state)


def row_of(event: StoredEvent) -> StoredRow:
    """Our name for what the library found."""
    return StoredRow(str(event.originator_id), event.originator_version, event.topic, event.state)


def gone(stream: str, version: int) -> BookCorrupt:
    return BookCorrupt(f"version {version} of stream {stream} is gone from the book")
