"""The live views: every projection's rows in `views.sqlite`, written after each commit of the book. Owns their storage.

The rows say themselves how far they go (`audit_chain`, `head`) and change in one transaction: no entry counts twice,
none is left out. The file holds nothing that the book does not: delete it, and opening the book makes it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from eventsourcing.persistence import PersistenceError
from eventsourcing.sqlite import SQLiteCursor

from sawyer.errors import SawyerError, ViewDiffers
from sawyer.ledger.store import open_datastore
from sawyer.ledger.tables import SELECT_SCHEMA, VIEWS_SCHEMA, VIEWS_TABLE, is_damage, schema_problem
from sawyer.projections.audit_chain import HEAD, AuditChain, HeadRow
from sawyer.projections.fold import ROWS_VERSION

ViewRow = tuple[str, str, bytes]
"""(view, key, canonical row)."""
SELECT_VERSION: Final = "PRAGMA user_version"
SELECT_HEAD: Final = f"SELECT row FROM view_rows WHERE view='{AuditChain.name}' AND key='{HEAD}'"  # noqa: S608 (our own)


class Views:
    """The writer's handle. Readers open the file themselves, read-only (source.py)."""

    def __init__(self, path: Path) -> None:
        """Open or create the file; views of another version, or without a head, are made anew. Raises ViewDiffers if
        the file is damaged or no views, SawyerError if it cannot be opened."""
        self.datastore = open_datastore(path, "NORMAL")
        try:
            with self._transaction(f"cannot open the views {path}", commit=True) as cursor:
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
            cursor.executemany("INSERT OR REPLACE INTO view_rows VALUES (?,?,?)", values)

    def close(self) -> None:
        self.datastore.close()

    @contextmanager
    def _transaction(self, what: str, *, commit: bool) -> Iterator[SQLiteCursor]:
        try:
            with self.datastore.transaction(commit=commit) as cursor:
                yield cursor
        except PersistenceError as error:
            if is_damage(error):
                raise ViewDiffers(f"{what}: {error}") from error
            raise SawyerError(f"{what}: {error}", hint=_HINT) from error


def read_head(found: tuple[bytes] | None) -> HeadRow:
    """The head row as SELECT_HEAD finds it; seq 0 if there is none. Raises ViewDiffers if it is damaged."""
    if found is None:
        return HeadRow()
    try:
        head = msgspec.json.decode(found[0], type=HeadRow)
    except (msgspec.MsgspecError, TypeError, UnicodeDecodeError) as error:
        raise ViewDiffers(f"the head of the views cannot be read: {error}") from error
    if head.seq < 1:
        raise ViewDiffers(f"the head of the views is at entry {head.seq}")
    return head


def _prepare(cursor: SQLiteCursor) -> None:
    cursor.execute(SELECT_VERSION)
    if cursor.fetchone()[0] == ROWS_VERSION:
        cursor.execute(SELECT_SCHEMA)
        problem = schema_problem(cursor.fetchall(), VIEWS_SCHEMA)
        if problem:
            raise ViewDiffers(f"views.sqlite holds no views: {problem}")
        if _head(cursor).seq:
            return
    for table in ("view_rows", "tracking"):  # tracking: version 1
        cursor.execute(f"DROP TABLE IF EXISTS {table}")
    cursor.execute(VIEWS_TABLE)
    cursor.execute(f"PRAGMA user_version={ROWS_VERSION}")


def _head(cursor: SQLiteCursor) -> HeadRow:
    cursor.execute(SELECT_HEAD)
    return read_head(cursor.fetchone())


_HINT: Final = "The book is safe. Check the disk; views.sqlite may be deleted, and is made again from the book."
