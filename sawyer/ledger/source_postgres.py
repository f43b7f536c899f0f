"""A book in PostgreSQL as replay reads it: one read-only snapshot, beside a running writer. Judges no entry."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Final

import psycopg
from psycopg.sql import SQL, Composed, Identifier

from sawyer.errors import BookCorrupt, UsageError
from sawyer.ledger.entry import CHECKPOINT_STREAM, StoredRow
from sawyer.ledger.postgres import TABLE, Address, Connection, Connections, failed, table_problem
from sawyer.ledger.wanted import Wanted

PAGE_ROWS: Final = 1000
"""How many rows the server sends at once."""
_SELECT: Final = SQL(
    "SELECT notification_id, originator_id, originator_version, topic, state FROM {} ORDER BY notification_id"
)
_SEARCH: Final = SQL(
    "SELECT originator_id, originator_version, topic, state FROM {} WHERE {} ORDER BY notification_id {}"
)
_ENTRY_FROM: Final = SQL(
    "SELECT originator_id, originator_version, topic, state FROM {} "
    "WHERE notification_id >= %s AND originator_id <> %s ORDER BY notification_id LIMIT 1"
)
_SELECT_MAX: Final = SQL("SELECT max(notification_id) AS size FROM {}")


class PostgresSource:
    """The book in one schema of a PostgreSQL database."""

    def __init__(self, url: str) -> None:
        """Nothing is connected yet. Raises UsageError for an address that is none."""
        self._address = Address.parse(url)
        self._table = Identifier(self._address.schema, TABLE)

    def size_rows(self) -> int:
        """Raises UsageError if there is no book, UnreachableError, SawyerError."""
        with self._snapshot() as connection:
            found = connection.execute(_SELECT_MAX.format(self._table)).fetchone()
            return int(found["size"] or 0) if found else 0

    def rows(self) -> Generator[StoredRow, None, None]:
        """Numbers may have gaps here: a batch that was refused leaves one."""
        with self._snapshot() as connection, connection.cursor("rows") as cursor:
            cursor.itersize = PAGE_ROWS
            for row in cursor.execute(_SELECT.format(self._table)):
                number, stream, version, topic, state = row.values()
                if topic is None or state is None:
                    raise BookCorrupt(f"row {number} (version {version} of {stream!r}) is no entry", seq=0)
                yield StoredRow(stream, version, topic, state)

    def search(self, wanted: Wanted, *, newest_first: bool = False) -> Generator[StoredRow, None, None]:
        """See Searchable."""
        tests: list[SQL | Composed] = [SQL("originator_id <> %s")]
        values: list[str | bytes] = [CHECKPOINT_STREAM, *wanted.texts]
        places = [SQL("position(%s::bytea in state) > 0")] * len(wanted.texts)
        if wanted.stream:
            places.append(SQL("originator_id = %s"))
            values.append(wanted.stream)
        if places:
            tests.append(SQL("({})").format(SQL(" OR ").join(places)))
        if wanted.kind:
            tests.append(SQL("starts_with(topic || '.', %s)"))
            values.append(f"{wanted.kind}.")
        order = SQL("DESC") if newest_first else SQL("ASC")
        query = _SEARCH.format(self._table, SQL(" AND ").join(tests), order)
        with self._snapshot() as connection, connection.cursor("found") as cursor:
            cursor.itersize = PAGE_ROWS
            for row in cursor.execute(query, values):
                yield StoredRow(*row.values())

    def entry_from(self, number: int) -> StoredRow | None:
        """See Searchable."""
        with self._snapshot() as connection:
            found = connection.execute(_ENTRY_FROM.format(self._table), (number, CHECKPOINT_STREAM)).fetchone()
            return StoredRow(*found.values()) if found else None

    @contextmanager
    def _snapshot(self) -> Iterator[Connection]:
        """A connection in one read-only transaction, of a table that is a book's."""
        shown = self._address.shown
        try:
            with closing(Connections(self._address, "FULL")) as connections, connections.connection() as connection:
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                connection.read_only = True
                with connection.transaction():
                    problem = table_problem(connection, self._address.schema)
                    if "no table" in problem:
                        raise UsageError(f"no book at {shown}", hint="Check the database and ?schema=NAME.")
                    if problem:
                        raise BookCorrupt(f"{shown} is no book: {problem}", seq=0)
                    yield connection
        except psycopg.Error as error:
            raise failed("cannot read the book", shown, error) from error
