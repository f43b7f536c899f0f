"""The live views: every projection's rows in `views.sqlite`, written after each commit of the book. Owns their storage.

A view and its position change in one transaction (eventsourcing's tracking): no entry counts twice, none is left out.
The file holds nothing that the book does not: delete it, and opening the book makes it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
from eventsourcing.persistence import PersistenceError, Tracking
from eventsourcing.sqlite import SQLiteTrackingRecorder

from sawyer.errors import SawyerError
from sawyer.ledger.store import open_datastore
from sawyer.projections.audit_chain import HEAD, AuditChain, HeadRow

APPLICATION: Final = "sawyer"
ViewRow = tuple[str, str, bytes]
"""(view, key, canonical row)."""


class Views(SQLiteTrackingRecorder):
    """The writer's handle. Readers open the file themselves, read-only (source.py)."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises SawyerError if that cannot be."""
        super().__init__(open_datastore(path, "NORMAL"))
        try:
            self.create_table()
        except PersistenceError as error:
            self.close()
            raise SawyerError(f"cannot open the views {path}: {error}", hint=_HINT) from error

    def construct_create_table_statements(self) -> list[str]:
        return [
            *super().construct_create_table_statements(),
            "CREATE TABLE IF NOT EXISTS view_rows "
            "(view TEXT, key TEXT, row BLOB, PRIMARY KEY (view, key)) WITHOUT ROWID",
        ]

    def position(self) -> int:
        """The entry up to which the rows are folded; 0 for none. Raises SawyerError."""
        try:
            return self.max_tracking_id(APPLICATION) or 0
        except PersistenceError as error:
            raise SawyerError(f"cannot read the views: {error}", hint=_HINT) from error

    def head(self) -> tuple[int, str]:
        """(seq, leaf) of the entry that the rows themselves say they end with; (0, "") if they do not say."""
        with self.datastore.transaction(commit=False) as cursor:
            cursor.execute("SELECT row FROM view_rows WHERE view=? AND key=?", (AuditChain.name, HEAD))
            found = cursor.fetchone()
        if found is None:
            return 0, ""
        row = msgspec.json.decode(found[0], type=HeadRow)
        return row.seq, row.leaf

    def write(self, rows: Iterable[ViewRow], seq: int) -> None:
        """Set these rows and move to entry `seq`, in one transaction. Raises SawyerError if the database cannot, or if
        the views are at `seq` or beyond already."""
        values: Sequence[ViewRow] = list(rows)
        try:
            with self.datastore.transaction(commit=True) as cursor:
                cursor.executemany("INSERT OR REPLACE INTO view_rows VALUES (?,?,?)", values)
                self._insert_tracking(cursor, Tracking(APPLICATION, seq))
        except PersistenceError as error:
            raise SawyerError(f"cannot write the views: {error}", hint=_HINT) from error

    def close(self) -> None:
        self.datastore.close()


_HINT: Final = "The book is safe. Check the disk; views.sqlite may be deleted, and is made again from the book."
