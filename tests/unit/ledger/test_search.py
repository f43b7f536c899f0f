"""Finding entries: over a database that searches, and over one that does not, the answer is the same."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import pytest

from sawyer.errors import BookCorrupt, UsageError
from sawyer.ledger import search
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.search import Searchable, about_account, about_host, about_node, matching, newest, row_of
from sawyer.ledger.source import SQLiteSource, source_of
from sawyer.ledger.store import open_store
from sawyer.ledger.wanted import Wanted


class Lines:
    """A source that can only be read from its first row on."""

    def __init__(self, source: SQLiteSource) -> None:
        self._source = source

    def size_rows(self) -> int:
        return self._source.size_rows()

    def rows(self) -> Generator[StoredRow, None, None]:
        return self._source.rows()


@pytest.fixture
def path(book, scene, tmp_path) -> Path:
    """A book with six requests of alice."""
    scene.work(book, 6)
    book.close()
    return tmp_path / "book.sqlite"


@pytest.fixture(params=["sqlite", "postgres", "lines"])
def source(request, path):
    found = SQLiteSource(path)
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
        with closing(open_store(url)) as store, closing(found.rows()) as rows:
            store.append(list(rows))
        return source_of(url)
    return found if request.param == "sqlite" else Lines(found)


def seqs(rows) -> list[int]:
    with closing(rows):
        return [search.place_of(row).seq for row in rows]


def every(path: Path) -> list[int]:
    return seqs(matching(SQLiteSource(path), Wanted()))


def test_databases_search_and_lines_do_not(source) -> None:
    assert isinstance(source, Searchable) is not isinstance(source, Lines)


def test_every_entry_and_no_checkpoint_is_found_if_nothing_is_asked(source) -> None:
    found = seqs(matching(source, Wanted()))
    assert found == list(range(1, len(found) + 1))


@pytest.mark.parametrize(
    ("wanted", "kinds"),
    [
        (Wanted(kind="account.opened"), {"account.opened.v1"}),
        (Wanted(kind="account.opened.v1"), {"account.opened.v1"}),
        (Wanted(kind="tokens"), {"tokens.granted.v1", "tokens.reserved.v1"}),
        (Wanted(kind="token"), set()),
        (Wanted(stream="account:alice"), {"account.opened.v1", "tokens.granted.v1"}),
        (about_host("carol"), {"node.registered.v1"}),
        (about_host("bob"), {"node.registered.v1", "inference.completed.v1"}),
        (about_node("node-a"), {"node.registered.v1", "inference.completed.v1"}),
        (about_host("bob", kind="inference.completed"), {"inference.completed.v1"}),
        (
            about_account("alice"),
            {"account.opened.v1", "tokens.granted.v1", "tokens.reserved.v1", "inference.completed.v1",
             "reservation.voided.v1"},
        ),
        (about_account("alic"), set()),
    ],
)  # fmt: skip
def test_search_finds_the_kinds_that_were_meant(source, wanted, kinds) -> None:
    with closing(matching(source, wanted)) as rows:
        assert {row.topic for row in rows} == kinds


def test_newest_are_the_last_that_pass_and_the_newest_is_last(source, path) -> None:
    assert [entry.seq for entry in newest(source, Wanted(), 3)] == every(path)[-3:]
    hers = newest(source, about_account("alice", "account.opened"), 3)
    assert [entry.kind for entry in hers] == ["account.opened.v1"]
    assert newest(source, Wanted(), 3, accept=lambda entry: entry.seq < 3)[-1].seq == 2


def test_newest_of_a_time_are_those_decided_in_it(scene, tmp_path) -> None:
    book = scene.open(tmp_path)
    scene.work(book, 1)
    early = scene.now_ms
    size = book.size
    scene.now_ms += 1000
    scene.work(book, 1, start=2)
    book.close()
    full = SQLiteSource(tmp_path / "book.sqlite")
    for source in (full, Lines(full)):
        found = [entry.seq for entry in newest(source, Wanted(), 100, since_ms=early + 1)]
        assert found
        assert min(found) == size + 1
        assert [entry.seq for entry in newest(source, Wanted(), 100, until_ms=early + 1)] == list(range(1, size + 1))
        assert newest(source, Wanted(), 100, since_ms=early + 1, until_ms=early + 1000) == []


def test_every_entry_is_found_by_its_number(source, path) -> None:
    assert [search.place_of(row_of(source, seq)).seq for seq in every(path)] == every(path)


def test_number_beyond_the_end_says_how_many_there_are(source, path) -> None:
    last = every(path)[-1]
    with pytest.raises(UsageError, match=f"the book has {last}"):
        row_of(source, last + 1)


@pytest.mark.parametrize("state", [b"not an entry", b'{"seq":1,"ts_ms":0}', b'{"seq":9999,"ts_ms":0}'])
def test_entry_that_lies_about_its_number_is_found_where_it_stands(path, state) -> None:
    """As replay counts, so that what replay complains of can be looked at."""
    seq = every(path)[-2]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "UPDATE stored_events SET state = ? WHERE state = ?", (state, row_of(SQLiteSource(path), seq).state)
        )
    for source in (SQLiteSource(path), Lines(SQLiteSource(path))):
        row = row_of(source, seq)
        assert row.state == state
        with pytest.raises(BookCorrupt, match=f"entry {seq} cannot be read"):
            search.read(row, source)


def test_row_that_holds_no_bytes_is_named(path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE stored_events SET state = 'text' WHERE topic = 'account.opened.v1'")
    with pytest.raises(BookCorrupt, match="is no entry"):
        newest(SQLiteSource(path), Wanted(), 100)
