"""What the two SQLite files of a book hold, to the letter, and what SQLite's errors say about a file. Reads nothing.

A trigger, a missing primary key or a second table changes what the file does while every entry still verifies: so a
file is judged by its whole schema. The text of BOOK_TABLE is frozen here, whatever version of eventsourcing runs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Final

BOOK_TABLE: Final = (
    "CREATE TABLE stored_events (originator_id TEXT, originator_version INTEGER, topic TEXT, state BLOB, "
    "PRIMARY KEY (originator_id, originator_version))"
)
VIEWS_TABLE: Final = "CREATE TABLE view_rows (view TEXT, key TEXT, row BLOB, PRIMARY KEY (view, key)) WITHOUT ROWID"

SELECT_SCHEMA: Final = "SELECT type, name, sql FROM sqlite_master"
SchemaRow = tuple[str, str, str | None]
"""(type, name, sql)."""
BOOK_SCHEMA: Final[frozenset[SchemaRow]] = frozenset(
    {("table", "stored_events", BOOK_TABLE), ("index", "sqlite_autoindex_stored_events_1", None)}
)
VIEWS_SCHEMA: Final[frozenset[SchemaRow]] = frozenset({("table", "view_rows", VIEWS_TABLE)})
_TRACKING_TABLE: Final = (
    "CREATE TABLE tracking (application_name TEXT, notification_id INTEGER, PRIMARY KEY (application_name)) "
    "WITHOUT ROWID"
)
FIRST_VIEWS_SCHEMA: Final[frozenset[SchemaRow]] = VIEWS_SCHEMA | {("table", "tracking", _TRACKING_TABLE)}
"""Of the views that Sawyer made first, whose version is 0."""
SIDE_FILES: Final = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a file. A -wal that is left beside another file would be played into it."""

_NO_CODE: Final = 0
"""A value that Python cannot read, such as a text that is not UTF-8."""
_DAMAGE: Final = frozenset(
    {_NO_CODE, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
)


def with_side_files(path: Path) -> list[Path]:
    """A SQLite file, and where SQLite may keep something beside it."""
    return [path, *(path.with_name(path.name + suffix) for suffix in SIDE_FILES)]


def schema_problem(found: Iterable[SchemaRow], expected: frozenset[SchemaRow]) -> str:
    """The first difference of a schema from the one that Sawyer creates, in words; "" if there is none."""
    rows = {tuple(row) for row in found}
    for kind, name, sql in sorted(rows - expected, key=str):
        return f"it has a {kind} {name!r} that Sawyer did not make: {sql}"
    for kind, name, _ in sorted(expected - rows, key=str):
        return f"it has no {kind} {name!r}"
    return ""


def is_damage(error: BaseException) -> bool:
    """True if SQLite says that the file is wrong; False if it could not be read (rights, locks, the disk), which says
    nothing about its content. eventsourcing wraps SQLite's errors: the cause counts."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, sqlite3.Error):
        cause = cause.__cause__
    return getattr(cause, "sqlite_errorcode", _NO_CODE) & 0xFF in _DAMAGE
