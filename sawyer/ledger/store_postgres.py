"""A book in PostgreSQL: eventsourcing's recorder in a schema of its own, one transaction a batch.

The library locks the table while it inserts, so that rows are numbered in the order in which they are committed; the
numbers have gaps where a batch was refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, ParamSpec, TypeVar, cast

import psycopg
from eventsourcing.domain import EventSourcingError
from eventsourcing.persistence import IntegrityError, Notification, StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg.rows import DictRow
from psycopg.sql import SQL, Composed, Identifier

from sawyer.errors import BookCorrupt, WriterFenced
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.postgres import (
    LOCK_TIMEOUT_S,
    TABLE,
    Address,
    Connections,
    check_durable,
    failed,
    is_gone,
    is_made,
    table_problem,
)
from sawyer.ledger.store import PAGE_ROWS, RecordedStore, Synchronous, event_of, row_of

P = ParamSpec("P")
T = TypeVar("T")


class PostgresStore(RecordedStore["BookRecorder"]):
    """The table `stored_events` of one schema, which holds one book."""

    def __init__(self, url: str, synchronous: Synchronous = "FULL") -> None:
        """Open the schema, or make it and its table. Raises UsageError for an address that is none or a server that
        forgets, UnreachableError, SawyerError if this user may not, BookCorrupt if the table is another one."""
        address = Address.parse(url)
        self._shown = address.shown
        self._connections = Connections(address, synchronous)
        try:
            with self._asking("cannot open the book"):
                if synchronous == "FULL":
                    with self._connections.connection() as connection:
                        check_durable(connection, address.shown)
                self._recorder = open_recorder(address, self._connections)
                with self._connections.connection() as connection:
                    problem = table_problem(connection, address.schema)
            if problem:
                raise BookCorrupt(f"{address.shown} is no book: {problem}")
        except BaseException:
            self._connections.close()
            raise

    def append(self, rows: Sequence[StoredRow]) -> None:
        """Once and never again: whether a batch whose connection broke was committed is not known, and trying it again
        would meet its own rows. Whoever reads the book again knows."""
        with self._asking("cannot write to the book"):
            try:
                self._recorder.insert_events([event_of(row) for row in rows])
            except IntegrityError as error:
                raise WriterFenced("another writer has written to this book") from error

    def rows(self, after: int = 0, page_rows: int = PAGE_ROWS) -> Iterator[StoredRow]:
        while True:
            page = self._read_notifications(after, page_rows)
            yield from map(row_of, page)
            if len(page) < page_rows:
                return
            after = page[-1].id

    def _read_notifications(self, after: int, page_rows: int) -> Sequence[Notification]:
        with self._asking("cannot read the book"):
            return self._recorder.select_notifications(after, page_rows, inclusive_of_start=False)

    def streams(self, names: Sequence[str]) -> dict[str, list[StoredRow]]:
        with self._asking("cannot read the book"):
            found = self._recorder.select_streams(names)
        return {name: list(group) for name, group in groupby(found, lambda row: row.stream)}

    def close(self) -> None:
        self._connections.close()

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except (EventSourcingError, psycopg.Error) as error:
            raise failed(what, self._shown, error) from error


class BookRecorder(PostgresApplicationRecorder):
    """The library's recorder without its ten attempts at everything. Reading is tried a second time if the connection
    broke, perhaps while nobody used it; writing is not (`PostgresStore.append`)."""

    def __init__(self, datastore: PostgresDatastore) -> None:
        super().__init__(datastore, events_table_name=TABLE)
        made = ("CREATE TABLE", "CREATE UNIQUE INDEX")  # not the type and the function that the library inserts through
        self.sql_create_statements = [each for each in self.sql_create_statements if each.as_string().startswith(made)]
        table = SQL("{}.{}").format(Identifier(datastore.schema), Identifier(TABLE))
        self._select_streams = SQL(
            "SELECT originator_id, originator_version, topic, state FROM {} "
            "WHERE originator_id = ANY(%s) ORDER BY originator_id, originator_version"
        ).format(table)
        self._insert = SQL(
            "INSERT INTO {} (originator_id, originator_version, topic, state) "
            "SELECT * FROM unnest(%b::text[], %b::bigint[], %b::text[], %b::bytea[]) RETURNING notification_id"
        ).format(table)
        self._select_number = SQL(
            "SELECT notification_id FROM {} WHERE originator_id = %s AND originator_version = %s"
        ).format(table)

    def insert_events(self, stored_events: Sequence[StoredEvent], **_: Any) -> Sequence[int] | None:
        """As the library's, once; without its pipeline, which says "pipeline aborted" where the server said why, and
        with columns for an array of composite values, which takes psycopg four times as long."""
        if not stored_events:
            return []
        with (
            self.datastore.get_connection() as connection,
            connection.transaction(),
            connection.cursor() as cursor,
        ):
            self._lock_table(cursor)
            self._notify_channel(cursor)
            columns = zip(
                *[(e.originator_id, e.originator_version, e.topic, e.state) for e in stored_events], strict=True
            )
            cursor.execute(self._insert, [list(column) for column in columns], prepare=True)
            return [row["notification_id"] for row in cursor.fetchall()]

    def select_events(self, *args: Any, **kwargs: Any) -> Sequence[StoredEvent]:
        """As the library's, at most twice."""
        return _twice(_bare(PostgresApplicationRecorder.select_events), self, *args, **kwargs)

    def select_notifications(self, *args: Any, **kwargs: Any) -> Sequence[Notification]:
        """As the library's, at most twice."""
        return _twice(_bare(PostgresApplicationRecorder.select_notifications), self, *args, **kwargs)

    def max_notification_id(self) -> int | None:
        """As the library's, at most twice."""
        found: int | None = _twice(_bare(PostgresApplicationRecorder.max_notification_id), self)
        return found

    def select_streams(self, names: Sequence[str]) -> list[StoredRow]:
        """All rows of these streams; those of one stand together, by version."""
        found = _twice(self._fetch, self._select_streams, (list(names),)) if names else []
        return [
            StoredRow(row["originator_id"], row["originator_version"], row["topic"], bytes(row["state"]))
            for row in found
        ]

    def select_number(self, stream: str, version: int) -> int | None:
        """The number in the table of this version, if it is there."""
        found = _twice(self._fetch, self._select_number, (stream, version))
        return int(found[0]["notification_id"]) if found else None

    def _fetch(self, query: Composed, parameters: tuple[Any, ...]) -> list[DictRow]:
        with self.datastore.get_connection() as connection:
            return connection.execute(query, parameters, prepare=True).fetchall()


def open_recorder(address: Address, connections: Connections) -> BookRecorder:
    """The library's recorder over our connections; schema and table are made if the schema has no book. Raises
    psycopg.Error, and what the library makes of it."""
    datastore = PostgresDatastore(
        "", "", "", "", "", schema=address.schema, lock_timeout=LOCK_TIMEOUT_S, originator_id_type="text"
    )
    datastore.pool = cast(Any, connections)
    with connections.connection() as connection:
        made = is_made(connection, address.schema)
    recorder = BookRecorder(datastore)
    if not made:
        recorder.create_table()
    return recorder


def _bare(method: Callable[P, T]) -> Callable[P, T]:
    """The library's method without its decorator, which tries ten times."""
    return cast(Callable[P, T], inspect.unwrap(method))


def _twice(ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return ask(*args, **kwargs)
    except (EventSourcingError, psycopg.Error) as error:
        if not is_gone(error):
            raise
    return ask(*args, **kwargs)
