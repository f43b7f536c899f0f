"""PostgreSQL: addresses that keep their secrets, tables that are no book's, servers that stop, lie, or make us wait."""

from __future__ import annotations

import signal
import subprocess
import sys
import traceback
from contextlib import closing

import psycopg
import pytest

from sawyer.errors import BookCorrupt, MissingExtra, SawyerError, UnreachableError, UsageError, WriterFenced
from sawyer.ledger import postgres as ours
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.postgres import Address
from sawyer.ledger.source import source_of
from sawyer.ledger.source_postgres import PostgresSource
from sawyer.ledger.store import open_store
from sawyer.ledger.store_postgres import PostgresStore

ROW = StoredRow("a", 1, "thing.happened.v1", b"{}")


def schema_of(url: str) -> str:
    return url.rpartition("=")[2]


def next_row(store: PostgresStore, stream: str = "a") -> StoredRow:
    last = store.last(stream)
    return StoredRow(stream, last.version + 1 if last else 1, "thing.happened.v1", b"{}")


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "schema", "shown"),
    [
        ("postgresql://maria@h/ledger", "public", "postgresql://maria@h/ledger"),
        ("postgres://h:5433/ledger?schema=lab", "lab", "postgresql://h:5433/ledger?schema=lab"),
        ("postgresql://maria:s%40c%2Fret@h/d?sslmode=require&schema=a_1", "a_1", "postgresql://maria@h/d?schema=a_1"),
        ("postgresql:///d?host=/run/pg&password=secret", "public", "postgresql:///run/pg/d"),
        ("postgresql://maria:x@[::1]:5432,h2:5433/d", "public", "postgresql://maria@::1,h2:5432,5433/d"),
    ],
)
def test_address_is_read_and_shown_without_its_password(url: str, schema: str, shown: str) -> None:
    address = Address.parse(url)
    assert (address.schema, address.shown) == (schema, shown)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://maria:secret@x@h/d",
        "postgresql://maria:secret/x@h/d",
        "postgresql://maria:secret?x@h/d",
        "postgresql://maria:secret",
        "postgresql://maria:x@h/d?secret=1",
        "postgresql://maria:%zzsecret@h/d",
        "postgresql://maria:x@h/d?schema=Secret",
        "postgresql://maria:x@h/d?schema=a;drop",
        "postgresql://maria:x@h/d?schema=",
    ],
)
def test_address_that_cannot_be_read_is_refused_and_never_repeated(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(url)
    told = "".join(traceback.format_exception(caught.value))
    assert "secret" not in f"{caught.value.message} {caught.value.hint}".lower()
    assert "".join(told.split("open_store(url)")).lower().count("secret") == 0
    assert "%40" in caught.value.hint


@pytest.mark.parametrize("url", ["mysql://h/d", "nats://h", "http://h"])
def test_address_of_something_else_is_refused(url: str) -> None:
    for ask in (open_store, source_of):
        with pytest.raises(UsageError, match="://"):
            ask(url)


def test_missing_driver_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sawyer.ledger.store_postgres", "sawyer.ledger.source_postgres"):
        monkeypatch.setitem(sys.modules, name, None)
    for ask in (open_store, source_of):
        with pytest.raises(MissingExtra, match="driver cannot be loaded") as caught:
            ask("postgresql://h/d")
        assert "sawyer[postgres]" in caught.value.hint


def test_sqlite_works_where_the_driver_is_not_installed() -> None:
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from sawyer.ledger.book import Book\nfrom sawyer.ledger.source import source_of\n"
        "from sawyer.ledger.store import Store\nStore.in_memory().close()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- a server that is not there, or does not let us in ----------------------------------------------------------------


def test_server_that_is_not_there_is_unreachable_and_says_where(tmp_path) -> None:
    url = f"postgresql://maria:secret@{str(tmp_path).replace('/', '%2F')}/ledger"
    for ask in (lambda: open_store(url), lambda: source_of(url).size_rows()):
        with pytest.raises(UnreachableError, match="No such file") as caught:
            ask()
        assert caught.value.hint
        assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_wrong_password_is_told_and_not_repeated(postgres) -> None:
    url = postgres.url.replace("p%40ss", "wrong-secret")
    with pytest.raises(UnreachableError, match="authentication failed") as caught:
        open_store(url)
    assert "wrong-secret" not in "".join(traceback.format_exception(caught.value))


def test_password_is_in_no_message_of_a_failing_store(postgres, postgres_url: str) -> None:
    with closing(open_store(postgres_url)) as store:
        postgres.execute(f"DROP TABLE {schema_of(postgres_url)}.stored_events")
        with pytest.raises(SawyerError, match="does not exist") as caught:
            store.append([ROW])
    assert "p@ss" not in "".join(traceback.format_exception(caught.value))
    assert "test_" in caught.value.message


def test_user_without_rights_is_told(postgres, postgres_url: str) -> None:
    open_store(postgres_url).close()
    name = f"reader_of_{schema_of(postgres_url)}"
    postgres.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    postgres.execute(f"GRANT USAGE ON SCHEMA {schema_of(postgres_url)} TO {name}")
    postgres.execute(f"GRANT SELECT ON {schema_of(postgres_url)}.stored_events TO {name}")
    url = f"postgresql://{name}:x@{postgres_url.partition('@')[2]}"
    assert list(source_of(url).rows()) == []
    with closing(open_store(url)) as store, pytest.raises(SawyerError, match="permission denied") as caught:
        store.append([ROW])
    assert not isinstance(caught.value, UnreachableError)


# --- servers that stop ------------------------------------------------------------------------------------------------


def test_restart_between_two_calls_is_noticed_by_neither_reader_nor_source(postgres, postgres_url: str) -> None:
    with closing(open_store(postgres_url)) as store:
        store.append([ROW])
        with postgres.restarted():
            assert store.streams(["a"]) == {"a": [ROW]}
        assert list(store.rows()) == [ROW]
        assert list(source_of(postgres_url).rows()) == [ROW]


def test_lost_connection_is_a_clear_error_and_the_next_call_writes(postgres, postgres_url: str) -> None:
    with closing(open_store(postgres_url)) as store:
        store.append([ROW])
        postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name='sawyer'")
        with pytest.raises(UnreachableError, match="is not there") as caught:
            store.append([next_row(open_store(postgres_url))])
        assert "try again" in caught.value.hint
        store.append([next_row(store)])
        assert store.size() == 2


def test_stopped_server_is_unreachable_until_it_is_back_with_all_that_was_committed(
    postgres, postgres_url: str
) -> None:
    """SIGQUIT: no shutdown, the server recovers from its log, as after a power cut."""
    with closing(open_store(postgres_url, "FULL")) as store:
        store.append([ROW])
        postgres.stop(signal.SIGQUIT)
        try:
            for ask in (store.size, lambda: store.append([ROW])):
                with pytest.raises(UnreachableError):
                    ask()
        finally:
            postgres.start()
        store.append([next_row(store)])
        assert [row.version for row in store.rows()] == [1, 2]


def test_batch_is_never_tried_twice(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks after the commit would make the second attempt meet its own rows."""
    with closing(open_store(postgres_url)) as store:
        commits = []
        exit_ = psycopg.Transaction.__exit__

        def committed_and_lost(self, *args: object) -> bool | None:
            result = exit_(self, *args)
            commits.append(self)
            raise psycopg.OperationalError("server closed the connection unexpectedly")
            return result

        monkeypatch.setattr(psycopg.Transaction, "__exit__", committed_and_lost)
        with pytest.raises(UnreachableError):
            store.append([ROW])
        monkeypatch.undo()
        assert len(commits) == 1
        assert list(store.rows()) == [ROW]


def test_writer_that_waits_too_long_for_another_gives_up(
    postgres, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sawyer.ledger.store_postgres.LOCK_TIMEOUT_S", 1)
    with closing(open_store(postgres_url)) as store, psycopg.connect(postgres.url) as other:
        other.execute(f"LOCK TABLE {schema_of(postgres_url)}.stored_events IN EXCLUSIVE MODE")
        with pytest.raises(SawyerError, match="lock timeout") as caught:
            store.append([ROW])
        assert not isinstance(caught.value, WriterFenced | UnreachableError)
        assert store.size() == 0
        other.rollback()
        store.append([ROW])


# --- durability -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_server_that_forgets_is_refused_unless_that_is_accepted(postgres, postgres_url: str, setting: str) -> None:
    with postgres.restarted(f"{setting}=off"):
        with pytest.raises(UsageError, match=f"{setting}=off") as caught:
            open_store(postgres_url, "FULL")
        assert "SAWYER_LEDGER_DURABILITY=normal" in caught.value.hint
        open_store(postgres_url, "NORMAL").close()


@pytest.mark.parametrize(("synchronous", "commit"), [("FULL", "on"), ("NORMAL", "off")])
def test_every_connection_is_as_durable_as_asked_whatever_the_server_does_by_itself(
    postgres, postgres_url: str, synchronous: str, commit: str
) -> None:
    with postgres.restarted("synchronous_commit=local"):
        store = open_store(postgres_url, synchronous)
        with closing(store), store._connections.connection() as connection:
            assert connection.execute("SHOW synchronous_commit").fetchone() == {"synchronous_commit": commit}


# --- one schema, one book ---------------------------------------------------------------------------------------------

CHANGES = {
    "trigger": [
        "CREATE FUNCTION {s}.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER t BEFORE INSERT ON {s}.stored_events FOR EACH ROW EXECUTE FUNCTION {s}.f()",
    ],
    "rule": ["CREATE RULE r AS ON INSERT TO {s}.stored_events DO INSTEAD NOTHING"],
    "row security": ["ALTER TABLE {s}.stored_events ENABLE ROW LEVEL SECURITY"],
    "unlogged": ["ALTER TABLE {s}.stored_events SET UNLOGGED"],
    "no primary key": ["ALTER TABLE {s}.stored_events DROP CONSTRAINT stored_events_pkey"],
    "weaker key": [
        "ALTER TABLE {s}.stored_events DROP CONSTRAINT stored_events_pkey",
        "ALTER TABLE {s}.stored_events ADD PRIMARY KEY (originator_id, originator_version, notification_id)",
    ],
    "no numbers' index": ["DROP INDEX {s}.stored_events_notification_id_idx"],
    "another index": ["CREATE INDEX i ON {s}.stored_events (topic)"],
    "partial index": [
        "DROP INDEX {s}.stored_events_notification_id_idx",
        "CREATE UNIQUE INDEX i ON {s}.stored_events (notification_id) WHERE notification_id > 5",
    ],
    "column more": ["ALTER TABLE {s}.stored_events ADD COLUMN note text"],
    "column less": ["ALTER TABLE {s}.stored_events DROP COLUMN topic"],
    "other type": ["ALTER TABLE {s}.stored_events ALTER COLUMN originator_version TYPE numeric"],
    "other filling": ["ALTER TABLE {s}.stored_events ALTER COLUMN notification_id SET DEFAULT 7"],
    "filled state": ["ALTER TABLE {s}.stored_events ALTER COLUMN state SET DEFAULT 'x'"],
    "check": ["ALTER TABLE {s}.stored_events ADD CONSTRAINT c CHECK (topic <> 'x')"],
    "child": ["CREATE TABLE {s}.child () INHERITS ({s}.stored_events)"],
    "names that compare inexactly": [
        'CREATE COLLATION {s}.loose FROM "C"',
        "UPDATE pg_collation SET collisdeterministic = false WHERE oid = '{s}.loose'::regcollation",
        "ALTER TABLE {s}.stored_events ALTER COLUMN originator_id TYPE text COLLATE {s}.loose",
    ],
    "view": ["ALTER TABLE {s}.stored_events RENAME TO t", "CREATE VIEW {s}.stored_events AS SELECT * FROM {s}.t"],
}


@pytest.mark.parametrize("change", CHANGES)
def test_table_that_sawyer_did_not_make_is_refused_by_writer_and_replay(
    postgres, postgres_url: str, change: str
) -> None:
    open_store(postgres_url).close()
    for statement in CHANGES[change]:
        postgres.execute(statement.format(s=schema_of(postgres_url)))
    with pytest.raises(BookCorrupt, match=r"is no book: its? "):
        open_store(postgres_url)
    with pytest.raises(BookCorrupt, match=r"is no book: its? "):
        list(source_of(postgres_url).rows())


def test_books_of_two_schemas_do_not_mix(postgres_url: str) -> None:
    with closing(open_store(postgres_url)) as one, closing(open_store(f"{postgres_url}_other")) as two:
        one.append([ROW])
        assert list(two.rows()) == []
        two.append([ROW, StoredRow("b", 1, "thing.happened.v1", b"{}")])
        assert (one.size(), two.size()) == (1, 2)


def test_table_is_as_the_library_makes_it(postgres_url: str) -> None:
    """If another version of eventsourcing makes another table, judging must follow."""
    with closing(open_store(postgres_url)) as store, store._connections.connection() as connection:
        assert ours.table_problem(connection, schema_of(postgres_url)) == ""


# --- reading ----------------------------------------------------------------------------------------------------------


def test_schema_without_a_book_is_said_to_have_none_and_stays_empty(postgres, postgres_url: str) -> None:
    for ask in (lambda source: source.size_rows(), lambda source: list(source.rows())):
        with pytest.raises(UsageError, match="no book at postgresql://"):
            ask(source_of(postgres_url))
    assert postgres.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", schema_of(postgres_url)) == []


def test_source_reads_one_snapshot_beside_a_writer(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sawyer.ledger.source_postgres.PAGE_ROWS", 2)
    with closing(open_store(postgres_url)) as store:
        store.append([StoredRow("a", version, "t", b"{}") for version in range(1, 8)])
        rows = PostgresSource(postgres_url).rows()
        read = [next(rows)]
        store.append([StoredRow("a", 8, "t", b"{}")])
        assert [row.version for row in [*read, *rows]] == list(range(1, 8))
        assert source_of(postgres_url).size_rows() == 8


@pytest.mark.parametrize("column", ["topic", "state"])
def test_row_without_content_is_wrong_and_numbered(postgres, postgres_url: str, column: str) -> None:
    with closing(open_store(postgres_url)) as store:
        store.append([ROW])
    postgres.execute(f"UPDATE {schema_of(postgres_url)}.stored_events SET {column} = NULL")
    with pytest.raises(BookCorrupt, match="row 1 "):
        list(source_of(postgres_url).rows())
