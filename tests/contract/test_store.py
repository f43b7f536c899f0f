"""What every store must do: ours over memory, SQLite and PostgreSQL, and what the library asks of its own recorders."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import TestCase
from uuid import uuid4

import pytest
from eventsourcing.tests.persistence import ApplicationRecorderTestCase, NonInterleavingNotificationIDsBaseCase

from sawyer.errors import BookCorrupt, SawyerError, WriterFenced
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.postgres import Address, Connections
from sawyer.ledger.store import PAGE_ROWS, Store, open_store
from sawyer.ledger.store_postgres import open_recorder
from sawyer.ledger.store_sqlite import NAMES_AT_ONCE, BookRecorder, open_datastore

Open = Callable[[], Store]
BACKENDS = ["memory", "sqlite", "postgres"]


def row(stream: str, version: int = 1, state: bytes = b"{}") -> StoredRow:
    return StoredRow(stream, version, "thing.happened.v1", state)


@pytest.fixture(params=BACKENDS)
def where(request, tmp_path: Path) -> Path | str | None:
    """Where the book of this test lies; None: in memory."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return tmp_path / "book.sqlite" if request.param == "sqlite" else None


@pytest.fixture
def reopen(where: Path | str | None) -> Iterator[Open]:
    """Opens the one store of this test again, as another process would."""
    memory = Store.in_memory()
    opened: list[Store] = []

    def open_again() -> Store:
        opened.append(memory if where is None else open_store(where, "NORMAL"))
        return opened[-1]

    yield open_again
    for store in opened:
        store.close()


@pytest.fixture
def store(reopen: Open) -> Store:
    return reopen()


def test_rows_come_back_as_they_were_and_in_order(store: Store, reopen: Open) -> None:
    state = bytes(range(256)) * 8
    rows = [row("b"), row("a", 1, state), row("b", 2, b""), row("log:checkpoints", 1)]
    store.append(rows[:3])
    store.append(rows[3:])
    assert list(store.rows()) == list(reopen().rows()) == rows


def test_empty_store_has_nothing(store: Store) -> None:
    assert list(store.rows()) == []
    assert (store.size(), store.last("a"), store.streams(["a"]), store.streams([])) == (0, None, {}, {})


def test_batch_with_a_row_that_stands_there_is_fenced_and_leaves_nothing(store: Store, reopen: Open) -> None:
    store.append([row("a"), row("log:checkpoints")])
    other = reopen()
    with pytest.raises(WriterFenced):
        other.append([row("b"), row("c"), row("log:checkpoints")])
    assert list(store.rows()) == [row("a"), row("log:checkpoints")]
    assert store.streams(["b", "c"]) == {}
    other.append([row("b"), row("log:checkpoints", 2)])
    assert list(store.rows())[2:] == [row("b"), row("log:checkpoints", 2)]


def test_batch_that_holds_one_row_twice_is_fenced_whole(store: Store) -> None:
    with pytest.raises(WriterFenced):
        store.append([row("a"), row("b"), row("a")])
    assert list(store.rows()) == []


def test_streams_tells_all_rows_of_those_that_exist(store: Store) -> None:
    store.append([row("request:1"), row("request:2"), row("other"), row("request:1", 2)])
    asked = ["request:2", "request:0", "request:1", "request:2"]
    assert store.streams(asked) == {
        "request:1": [row("request:1"), row("request:1", 2)],
        "request:2": [row("request:2")],
    }


@pytest.mark.parametrize("count", [1, 2, 3, NAMES_AT_ONCE - 1, NAMES_AT_ONCE, NAMES_AT_ONCE + 1, 3 * NAMES_AT_ONCE])
def test_streams_finds_each_of_many_names(store: Store, count: int) -> None:
    rows = [row(f"request:{number}") for number in range(count)]
    store.append(rows)
    names = [each.stream for each in rows]
    assert store.streams([*names, *(f"no:{name}" for name in names)]) == {each.stream: [each] for each in rows}


def test_names_that_mean_something_to_sql_or_differ_in_case_are_only_names(store: Store) -> None:
    names = ["a'; DROP TABLE stored_events; --", "%", "A", "a", "a ", "é", "e\u0301"]
    store.append([row(name) for name in names])
    assert store.streams(names).keys() == set(names)
    assert [store.number(name, 1) for name in names] == list(range(1, len(names) + 1))


def test_last_is_the_highest_version_and_row_is_the_one_asked_for(store: Store) -> None:
    store.append([row("a", version, b"%d" % version) for version in range(1, 13)])
    assert store.last("a") == row("a", 12, b"12")
    assert store.row("a", 3) == row("a", 3, b"3")


def test_row_that_is_gone_is_corrupt(store: Store) -> None:
    store.append([row("a")])
    for ask in (store.row, store.number):
        for stream, version in (("a", 2), ("a", 0), ("b", 1)):
            with pytest.raises(BookCorrupt, match=f"version {version} of stream {stream} is gone"):
                ask(stream, version)


@pytest.mark.parametrize("extra", [-1, 0, 1, PAGE_ROWS + 1])
def test_rows_after_a_number_are_all_that_follow_it(store: Store, extra: int) -> None:
    rows = [row("a", version) for version in range(1, PAGE_ROWS + extra + 1)]
    store.append(rows)
    assert list(store.rows()) == rows
    assert list(store.rows(after=store.number("a", 7))) == rows[7:]
    assert list(store.rows(after=store.number("a", len(rows)))) == []
    assert store.size() == len(rows)


def test_rows_after_a_refused_batch_follow_on(store: Store) -> None:
    """PostgreSQL leaves a gap in its numbers there; what was asked for is found all the same."""
    store.append([row("a")])
    with pytest.raises(WriterFenced):
        store.append([row("x"), row("y"), row("a")])
    store.append([row("b"), row("c")])
    assert list(store.rows(after=store.number("a", 1))) == [row("b"), row("c")]
    assert list(store.rows(after=store.number("b", 1))) == [row("c")]
    assert store.size() >= 3


def test_rows_that_are_written_while_a_reader_reads_are_read_in_order(store: Store, reopen: Open) -> None:
    first = [row("a", version) for version in range(1, 2 * PAGE_ROWS)]
    store.append(first)
    rows = reopen().rows()
    read = [next(rows)]
    store.append([row("b")])
    assert [*read, *rows] == [*first, row("b")]


def test_of_many_writers_of_one_version_one_wins(reopen: Open) -> None:
    stores = [reopen() for _ in range(8)]
    barrier, won = threading.Barrier(len(stores)), []

    def write(number: int) -> None:
        barrier.wait()
        try:
            stores[number].append([row(f"entry:{number}"), row("log:checkpoints")])
        except WriterFenced:
            return
        won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert list(stores[0].rows()) == [row(f"entry:{won[0]}"), row("log:checkpoints")]


def test_store_that_was_closed_says_so_and_closing_twice_is_harmless(store: Store, where: Path | str | None) -> None:
    store.close()
    store.close()
    if where is None:
        return  # memory stays as long as its object
    for ask in (store.size, lambda: store.append([row("a")]), lambda: list(store.rows()), lambda: store.streams(["a"])):
        with pytest.raises(SawyerError):
            ask()


class LibraryCase:
    """What the library's test cases need here: streams of a book have names, not UUIDs, and whatever is closed at the
    end is closed after the threads that read it, which `test_concurrent_no_conflicts` stops without waiting for them
    (SQLite crashes the process when a connection in use is closed)."""

    def new_originator_id(self) -> str:
        return str(uuid4())

    def close_after_readers(self, close: Callable[[], None]) -> None:
        def wait_and_close() -> None:
            for thread in threading.enumerate():
                if "read_continuously" in thread.name:
                    thread.join()
            close()

        self.addCleanup(wait_and_close)


class SQLiteRecorderTest(LibraryCase, ApplicationRecorderTestCase[BookRecorder], TestCase):
    """The library's own tests of what a recorder must do, over ours."""

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "book.sqlite"

    def create_recorder(self) -> BookRecorder:
        datastore = open_datastore(self.path, "NORMAL")
        self.close_after_readers(datastore.close)
        recorder = BookRecorder(datastore)
        recorder.create_table()
        return recorder


class SQLiteNumbersTest(LibraryCase, NonInterleavingNotificationIDsBaseCase, TestCase):
    insert_num = 1000
    folder = SQLiteRecorderTest.folder
    create_recorder = SQLiteRecorderTest.create_recorder


class PostgresRecorderTest(LibraryCase, ApplicationRecorderTestCase, TestCase):
    EXPECT_CONTIGUOUS_NOTIFICATION_IDS = False

    @pytest.fixture(autouse=True)
    def schema(self, postgres_url: str) -> None:
        self.url = postgres_url

    def create_recorder(self):
        address = Address.parse(self.url)
        connections = Connections(address, "NORMAL")
        self.close_after_readers(connections.close)
        return open_recorder(address, connections)


class PostgresNumbersTest(LibraryCase, NonInterleavingNotificationIDsBaseCase, TestCase):
    insert_num = 1000
    schema = PostgresRecorderTest.schema
    create_recorder = PostgresRecorderTest.create_recorder


del ApplicationRecorderTestCase, NonInterleavingNotificationIDsBaseCase  # pytest would collect them too
