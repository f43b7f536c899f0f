"""Books and views as replay reads them: read-only, one snapshot, beside a running writer. Judges nothing.

sqlite3 directly: the library's recorder opens every file for writing and would switch its journal mode.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from sawyer.errors import SawyerError, UsageError, VerificationError
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.views import APPLICATION


class Source(Protocol):
    """A book to replay."""

    def size_rows(self) -> int:
        """About how many rows there are, for a progress bar."""

    def rows(self) -> Iterator[StoredRow]:
        """Every row in the order of writing, as one snapshot. Raises VerificationError for rows that are none."""


class SQLiteSource:
    """A book in a SQLite file."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError if there is no such file."""
        if not path.is_file():
            raise UsageError(f"no book at {path}", hint="Give --home or --book, or start the network first.")
        self.path = path

    def size_rows(self) -> int:
        with _read_only(self.path) as connection:
            return int(connection.execute("SELECT COALESCE(MAX(rowid), 0) FROM stored_events").fetchone()[0])

    def rows(self) -> Iterator[StoredRow]:
        query = "SELECT originator_id, originator_version, topic, state FROM stored_events ORDER BY rowid"
        with _read_only(self.path) as connection:
            for stream, version, topic, state in connection.execute(query):
                texts = isinstance(stream, str) and isinstance(topic, str)
                if not (texts and isinstance(version, int) and isinstance(state, bytes)):
                    raise VerificationError(f"the row after version {version!r} of {stream!r} is no entry")
                yield StoredRow(stream, version, topic, state)


class ViewsSnapshot:
    """The live views as they stood at one moment. Open it before the book: views are written after the book, so then
    the book has every entry that the views have."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        query = "SELECT notification_id FROM tracking WHERE application_name=?"
        found = connection.execute(query, (APPLICATION,)).fetchone()
        self.position: int = int(found[0]) if found else 0

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[ViewsSnapshot]:
        """Raises UsageError if there is no such file, VerificationError if it cannot be read as views."""
        if not path.is_file():
            raise UsageError(f"no views at {path}", hint="Start the bookkeeper once: it makes them from the book.")
        with _read_only(path) as connection:
            yield cls(connection)

    def names(self) -> set[str]:
        return {name for (name,) in self._connection.execute("SELECT DISTINCT view FROM view_rows")}

    def rows(self, view: str) -> Iterator[tuple[str, bytes]]:
        """(key, row bytes) in order of key."""
        query = "SELECT key, row FROM view_rows WHERE view=? ORDER BY key"
        for key, row in self._connection.execute(query, (view,)):
            yield str(key), row if isinstance(row, bytes) else repr(row).encode()


@contextmanager
def _read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection in one read transaction. It leaves no files behind: where no writer has the file open (there is no
    -wal file) SQLite is told that nobody will change it, and afterwards we look whether that was true."""
    wal = path.with_name(path.name + "-wal")
    quiet = not wal.exists()
    before = _stamp(path)
    uri = f"file:{quote(str(path.absolute()))}?{'immutable=1' if quiet else 'mode=ro'}"
    try:
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)) as connection:
            connection.execute("BEGIN")
            yield connection
    except sqlite3.Error as error:
        _require_unchanged(path, before, quiet)
        raise VerificationError(
            f"cannot read {path}: {error}",
            hint="It is damaged, or not a file of Sawyer's. Compare with another copy.",
        ) from error
    _require_unchanged(path, before, quiet)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _require_unchanged(path: Path, before: tuple[int, int], quiet: bool) -> None:
    if quiet and _stamp(path) != before:
        raise SawyerError(f"{path} was changed while it was read", hint="A writer started just now: run this again.")
