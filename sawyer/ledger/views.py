"""The live views: every projection's rows in `views.sqlite`, brought up to the book in batches. Owns their storage.

The rows say themselves how far they go (`audit_chain`, `head`) and change in one transaction: no entry counts twice,
none is left out. The file holds nothing that the book does not: delete it, and opening the book makes it again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec
from eventsourcing.persistence import PersistenceError
from eventsourcing.sqlite import SQLiteCursor

from sawyer.errors import SawyerError, ViewDiffers
from sawyer.ledger.store_sqlite import open_datastore
from sawyer.ledger.tables import (
    FIRST_VIEWS_SCHEMA,
    SELECT_SCHEMA,
    VIEWS_SCHEMA,
    VIEWS_TABLE,
    SchemaRow,
    is_damage,
    schema_problem,
)
from sawyer.projections.audit_chain import HEAD, AuditChain, HeadRow
from sawyer.projections.fold import ROWS_VERSION
from sawyer.schemas.base import UNREADABLE

ViewRow = tuple[str, str, bytes | None]
"""(view, key, canonical row); None: the row is gone."""
_SET: Final = "INSERT OR REPLACE INTO view_rows VALUES (?,?,?)"
_REMOVE: Final = "DELETE FROM view_rows WHERE view=? AND key=?"
SELECT_VERSION: Final = "PRAGMA user_version"
SELECT_HEAD: Final = f"SELECT row FROM view_rows WHERE view='{AuditChain.name}' AND key='{HEAD}'"  # noqa: S608 (our own)


class Views:
    """The writer's handle. Readers open the file themselves, read-only (source.py)."""

    def __init__(self, path: Path) -> None:
        """Open or create the file; views of another version, or without a head, are made anew. Raises ViewDiffers if
        the file is damaged, or is neither empty nor views (then nothing was written to it), SawyerError if it cannot be
        opened."""
        self._path = path
        what = f"cannot open the views {path}"
        with self._naming(what):
            self._check_ours()
        self.datastore = open_datastore(path, "NORMAL")
        try:
            with self._transaction(what, commit=True) as cursor:
                _prepare(cursor)
        except BaseException:
            self.close()
            raise

    def head(self) -> HeadRow:
        """The entry up to which the rows are folded; seq 0 for none. Raises ViewDiffers, SawyerError."""
        with self._transaction("cannot read the views", commit=False) as cursor:
            return _head(cursor)

    def write(self, rows: Iterable[ViewRow], seq: int) -> None:
        """Set these rows, which fold the book up to entry `seq`, in one transaction. Raises ViewDiffers, SawyerError if
        the database cannot, or if the views are at `seq` or beyond already: another writer was faster."""
        values: Sequence[ViewRow] = list(rows)
        with self._transaction("cannot write the views", commit=True) as cursor:
            position = _head(cursor).seq
            if position >= seq:
                raise SawyerError(f"the views are at entry {position} already, not before {seq}")
            cursor.executemany(_SET, [row for row in values if row[2] is not None])
            cursor.executemany(_REMOVE, [(view, key) for view, key, row in values if row is None])

    def clear(self) -> None:
        """Take all rows out, to be made again from the book. Raises SawyerError."""
        with self._transaction("cannot clear the views", commit=True) as cursor:
            cursor.execute("DELETE FROM view_rows")

    def close(self) -> None:
        self.datastore.close()

    def _check_ours(self) -> None:
        """Raises ViewDiffers for a file that we may not write in: opening it for writing would change it already."""
        if not self._path.exists():
            return
        if not self._path.is_file():
            raise ViewDiffers(f"{self._path} is no file")
        uri = f"file:{quote(str(self._path.resolve()))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            connection.execute("BEGIN")
            version = connection.execute(SELECT_VERSION).fetchone()[0]
            problem = _views_problem(version, connection.execute(SELECT_SCHEMA).fetchall())
        if problem:
            raise ViewDiffers(f"{self._path} holds no views: {problem}")

    @contextmanager
    def _transaction(self, what: str, *, commit: bool) -> Iterator[SQLiteCursor]:
        with self._naming(what), self.datastore.transaction(commit=commit) as cursor:
            yield cursor

    @contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        """What fails in here names this file in its hint."""
        try:
            yield
        except ViewDiffers as error:
            raise ViewDiffers(error.message, hint=self._hint(_HINT_WRONG), details=error.details) from error
        except (PersistenceError, sqlite3.Error) as error:
            if is_damage(error):
                raise ViewDiffers(f"{what}: {error}", hint=self._hint(_HINT_WRONG)) from error
            raise SawyerError(f"{what}: {error}", hint=self._hint(_HINT)) from error

    def _hint(self, text: str) -> str:
        return text.format(file=self._path)


def read_head(found: tuple[bytes] | None) -> HeadRow:
    """The head row as SELECT_HEAD finds it; seq 0 if there is none. Raises ViewDiffers if it is damaged."""
    if found is None:
        return HeadRow()
    try:
        head = msgspec.json.decode(found[0], type=HeadRow)
    except (*UNREADABLE, TypeError) as error:
        raise ViewDiffers(f"the head of the views cannot be read: {error}") from error
    if head.seq < 1:
        raise ViewDiffers(f"the head of the views is at entry {head.seq}")
    return head


def _views_problem(version: int, found: Sequence[SchemaRow]) -> str:
    """Why a file is neither empty nor views that some Sawyer made, in words; "" if it is."""
    rows = frozenset((kind, name, sql) for kind, name, sql in found)
    if (version == 0 and rows in (frozenset(), FIRST_VIEWS_SCHEMA)) or rows == VIEWS_SCHEMA:
        return ""
    return schema_problem(rows, VIEWS_SCHEMA)


def _prepare(cursor: SQLiteCursor) -> None:
    """In one transaction with the look at what is there: another process may have been faster than we."""
    cursor.execute(SELECT_VERSION)
    version = cursor.fetchone()[0]
    cursor.execute(SELECT_SCHEMA)
    problem = _views_problem(version, cursor.fetchall())
    if problem:
        raise ViewDiffers(f"this file holds no views: {problem}")
    if version == ROWS_VERSION and _head(cursor).seq:
        return
    for table in ("view_rows", "tracking"):  # tracking: version 0
        cursor.execute(f"DROP TABLE IF EXISTS {table}")
    cursor.execute(VIEWS_TABLE)
    cursor.execute(f"PRAGMA user_version={ROWS_VERSION}")


def _head(cursor: SQLiteCursor) -> HeadRow:
    cursor.execute(SELECT_HEAD)
    return read_head(cursor.fetchone())


_HINT: Final = "The book is safe. Check the disk; {file} may be deleted, and is made again from the book."
_HINT_WRONG: Final = (
    "It is left as it is. If it is something else, name another file. If it held views: stop what writes them, delete "
    "{file}, and start that again: they are made from the book."
)
