"""PostgreSQL for a book: what its address means, connections to it, and what its table must be. Knows no entries.

Connections are our own and not the library's pool (psycopg_pool): that one connects in background threads, says "no
connection after 5 s" where the server said why, and waits longer and longer for a server that came back.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Final, Literal
from urllib.parse import parse_qsl, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, dict_row
from psycopg.sql import SQL, Identifier

from sawyer.errors import SawyerError, UnreachableError, UsageError

Connection = psycopg.Connection[DictRow]

TABLE: Final = "stored_events"
DEFAULT_SCHEMA: Final = "public"
CONNECT_TIMEOUT_S: Final = 5
LOCK_TIMEOUT_S: Final = 5
"""How long a writer waits for another one that is inserting."""
STATEMENT_TIMEOUT_MS: Final = 60_000
SILENCE_MS: Final = 30_000
"""A server from which nothing comes for so long, not even by TCP, is gone."""
IDLE_CONNECTIONS: Final = 2
"""How many stay open: the writer's, and that of who reads beside it."""
_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_PORTS: Final = re.compile(r"[0-9,]*")
_WRITE: Final = (
    "Write postgresql://USER@HOST/DATABASE, with ?schema=NAME for another schema than public. In a password @ is %40, "
    "/ is %2F, ? is %3F."
)


@dataclass(frozen=True)
class Address:
    """A database, and the schema in it that holds one book. `shown` is the address without its secrets."""

    conninfo: str
    schema: str
    shown: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """`postgresql://USER@HOST:PORT/DATABASE?schema=NAME`, with whatever else libpq understands; what is left out
        libpq takes from its own variables and files (PGPASSWORD, ~/.pgpass). Raises UsageError, which repeats nothing
        of the address: any part of it may be a password that was written without escapes."""
        base, _, query = url.partition("?")
        given = parse_qsl(query, keep_blank_values=True)
        schema = dict(given).get("schema", DEFAULT_SCHEMA)
        rest = urlencode([(name, value) for name, value in given if name != "schema"])
        try:
            read = {name: str(value) for name, value in conninfo_to_dict(f"{base}?{rest}" if rest else base).items()}
        except psycopg.Error:
            raise UsageError("this is not the address of a PostgreSQL database", hint=_WRITE) from None
        user, host, port, database = (read.get(name, "") for name in ("user", "host", "port", "dbname"))
        if "@" in host + database or not _PORTS.fullmatch(port):
            raise UsageError("the address of the PostgreSQL database cannot be read", hint=_WRITE)
        if not _SCHEMA.fullmatch(schema):
            raise UsageError("a schema's name is lower-case letters, digits and _", hint=_WRITE)
        shown = f"postgresql://{user}@{host}" if user else f"postgresql://{host}"
        shown += (f":{port}" if port else "") + f"/{database}"
        return cls(make_conninfo(**read), schema, shown if schema == DEFAULT_SCHEMA else f"{shown}?schema={schema}")


class Connections:
    """Connections to one database, opened when they are needed. Stands where the library has its pool. One that broke
    is dropped, and the next call opens another."""

    def __init__(self, address: Address, synchronous: Literal["FULL", "NORMAL"]) -> None:
        self._conninfo = make_conninfo(
            address.conninfo,
            client_encoding="UTF8",
            connect_timeout=CONNECT_TIMEOUT_S,
            tcp_user_timeout=SILENCE_MS,
            application_name="sawyer",
        )
        self._settings = (
            f"SET synchronous_commit={'on' if synchronous == 'FULL' else 'off'};"
            f"SET statement_timeout={STATEMENT_TIMEOUT_MS};"
            f"SET idle_in_transaction_session_timeout={STATEMENT_TIMEOUT_MS};"
            f"SET search_path={address.schema}"
        )
        self._idle: deque[Connection] = deque()
        self._lock = Lock()
        self._closed = False

    def open(self, *_: object) -> None:
        """Nothing to do: they open when they are needed (the library asks)."""

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """One that nobody else uses meanwhile, in autocommit mode. Raises psycopg.Error."""
        connection = self._take()
        try:
            yield connection
        finally:
            self._put(connection)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = list(self._idle), deque()
        for connection in idle:
            connection.close()

    def _take(self) -> Connection:
        with self._lock:
            if self._closed:
                raise psycopg.OperationalError("the book is closed")
            if self._idle:
                return self._idle.pop()  # the one used last: its statements are prepared, its pages warm
        connection = psycopg.connect(self._conninfo, autocommit=True, row_factory=dict_row)
        try:
            connection.execute(self._settings)
        except BaseException:
            connection.close()
            raise
        return connection

    def _put(self, connection: Connection) -> None:
        dropped = [connection]
        with self._lock:
            if connection.closed:  # the server left: it left the others too
                dropped += self._idle
                self._idle.clear()
            elif not self._closed and len(self._idle) < IDLE_CONNECTIONS:
                self._idle.append(connection)
                return
        for each in dropped:
            each.close()


_COLUMNS: Final = {
    "originator_id": ("text", True),
    "originator_version": ("bigint", True),
    "topic": ("text", False),
    "state": ("bytea", False),
    "notification_id": ("bigint", True),
}
"""Name -> type, NOT NULL: the table as eventsourcing 9.5 makes it, frozen here whatever version of it runs."""
_KEYS: Final = {"PRIMARY KEY (originator_id, originator_version)", "UNIQUE INDEX (notification_id)"}

_SELECT_TABLE: Final = """
SELECT c.oid, c.relkind::text, c.relpersistence::text, c.relhasrules, c.relhassubclass, c.relispartition,
       c.relrowsecurity,
       (SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = c.oid) AS triggers,
       (SELECT count(*) FROM pg_inherits i WHERE i.inhrelid = c.oid) AS parents
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = 'stored_events'
"""
_SELECT_COLUMNS: Final = """
SELECT a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS required,
       coalesce(l.collisdeterministic, true) AS exact, coalesce(pg_get_expr(d.adbin, d.adrelid), '') AS filled
FROM pg_attribute a
LEFT JOIN pg_collation l ON l.oid = a.attcollation
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_SELECT_KEYS: Final = """
SELECT i.indisprimary AS is_primary, i.indisunique AS is_unique, i.indisvalid AS is_valid,
       i.indpred IS NULL AND i.indexprs IS NULL AS is_plain,
       array_to_string(
           ARRAY(SELECT pg_get_indexdef(i.indexrelid, k, true) FROM generate_series(1, i.indnkeyatts) k), ', '
       ) AS columns
FROM pg_index i WHERE i.indrelid = %s
"""
_SELECT_CHECKS: Final = (
    "SELECT conname::text AS name FROM pg_constraint WHERE conrelid = %s AND contype NOT IN ('p', 'n')"
)


def is_made(connection: Connection, schema: str) -> bool:
    """True if there is a table to judge; else the schema is made if it is missing. Raises psycopg.Error."""
    if connection.execute(_SELECT_TABLE, (schema,)).fetchone() is not None:
        return True
    if connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone() is None:
        connection.execute(SQL("CREATE SCHEMA IF NOT EXISTS {}").format(Identifier(schema)))
    return False


def table_problem(connection: Connection, schema: str) -> str:
    """The first difference of the table of books from the one that Sawyer makes, in words; "" if there is none. A
    trigger, a missing key or a column more changes what the table does while every entry in it still verifies."""
    table = connection.execute(_SELECT_TABLE, (schema,)).fetchone()
    if table is None:
        return "it has no table 'stored_events'"
    plain = {"relkind": "r", "relpersistence": "p"} | dict.fromkeys(
        ("relhasrules", "relhassubclass", "relispartition", "relrowsecurity"), False
    )
    for name, expected in {**plain, "triggers": 0, "parents": 0}.items():
        if table[name] != expected:
            return f"its table is not a plain one: {name} is {table[name]}, expected {expected}"
    return _columns_problem(connection, table["oid"]) or _keys_problem(connection, table["oid"])


def _columns_problem(connection: Connection, table: int) -> str:
    found = connection.execute(_SELECT_COLUMNS, (table,)).fetchall()
    columns = {row["name"]: (row["type"], row["required"]) for row in found}
    for name in sorted(columns.keys() ^ _COLUMNS.keys()):
        return f"it has a column {name!r} that Sawyer did not make" if name in columns else f"it has no column {name!r}"
    if list(columns) != list(_COLUMNS):
        return f"its columns stand in another order: {', '.join(columns)}"
    for row in found:
        expected = _COLUMNS[row["name"]]
        if columns[row["name"]] != expected or not row["exact"]:
            return f"its column {row['name']!r} is {columns[row['name']]} or compares inexactly, expected {expected}"
        if bool(row["filled"]) != (row["name"] == "notification_id") or "nextval(" not in (row["filled"] or "nextval("):
            return f"its column {row['name']!r} is filled by {row['filled']!r}"
    return ""


def _keys_problem(connection: Connection, table: int) -> str:
    keys = set()
    for row in connection.execute(_SELECT_KEYS, (table,)).fetchall():
        kind = "PRIMARY KEY" if row["is_primary"] else "UNIQUE INDEX" if row["is_unique"] else "INDEX"
        keys.add(f"{kind} ({row['columns']})" + ("" if row["is_valid"] and row["is_plain"] else " that is partial"))
    for key in sorted(keys ^ _KEYS):
        return f"it has {key}, which Sawyer did not make" if key in keys else f"it has no {key}"
    for row in connection.execute(_SELECT_CHECKS, (table,)).fetchall():
        return f"it has a constraint {row['name']!r} that Sawyer did not make"
    return ""


def check_durable(connection: Connection, shown: str) -> None:
    """Raises UsageError if this server says that a commit is done before it is on the disk."""
    for name in ("fsync", "full_page_writes"):
        found = connection.execute(f"SHOW {name}").fetchone()
        if found is not None and found[name] != "on":
            raise UsageError(
                f"the server at {shown} runs with {name}={found[name]}: a power cut can destroy the book",
                hint=f"Set {name}=on in postgresql.conf, or say that you accept it: SAWYER_LEDGER_DURABILITY=normal.",
            )


def is_gone(error: BaseException) -> bool:
    """True if the server is not there any more, or does not let us in. eventsourcing wraps psycopg's errors: the cause
    counts."""
    cause = _cause(error)
    state = "" if cause is None or cause.sqlstate is None else cause.sqlstate
    return isinstance(cause, psycopg.OperationalError) and (not state or state.startswith(("08", "28", "57P")))


def failed(what: str, shown: str, error: BaseException) -> SawyerError:
    """What a failure of PostgreSQL means, in its own words."""
    words = " ".join(str(error).split())
    if is_gone(error):
        return UnreachableError(
            f"{what}: PostgreSQL at {shown} is not there: {words}",
            hint="Check that it runs and lets this user in (psql), then try again.",
        )
    return SawyerError(
        f"{what}: {words} ({shown})", hint="Check the server's log, its disk and the rights of this user."
    )


def _cause(error: BaseException | None) -> psycopg.Error | None:
    while error is not None and not isinstance(error, psycopg.Error):
        error = error.__cause__
    return error
