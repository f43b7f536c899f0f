"""One book in which everything happens that a book can hold: the writer, its restarts and replay agree about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sawyer.ledger.book import Book
from sawyer.ledger.entry import decode_entry
from sawyer.ledger.replay import At, ReplayReport, replay
from sawyer.ledger.source import SQLiteSource
from sawyer.schemas.events import KINDS, Sealed

KEYS = ("ledger-2", "ledger-3")
NOTE = Sealed(subject="alice", nonce="0a" * 24, box="c2VhbGVk")


def say(book: Book, scene, *commands) -> None:
    for asked in commands:
        (reply,) = book.commit([asked], scene.now_ms)
        assert reply.error is None, reply.error


def live(book: Book, scene) -> None:
    """Members, tokens, requests of every end, then each key that can change changes, and the old tokens expire."""
    first, second, third, fourth = (scene.order(number) for number in range(1, 5))
    say(book, scene, *scene.members(), scene.grant("january", 500, end_ms=700_000, sealed=(NOTE,)))
    say(book, scene, scene.reserve(first), scene.complete(first), scene.reserve(second), scene.void(second))
    say(book, scene, scene.reserve(third), scene.rotate("node", "node-a", "node-a-2"))
    say(book, scene, scene.complete(third, receipts=(scene.delivered(scene.receipt(third, 56, key="node-a-2")),)))
    say(book, scene, scene.reserve(fourth), scene.rotate("account", "alice", "alice-2"), scene.erase())
    say(book, scene, scene.add_key("router", "router-2"), scene.revoke("router", since_ms=scene.now_ms))
    say(book, scene, scene.add_key("ledger", "ledger-2"), scene.add_key("operator", "operator-2"))
    scene.now_ms += 650_000
    say(book, scene, *book.expire(scene.now_ms))
    scene.now_ms += 100_000
    say(book, scene, *book.expire(scene.now_ms))
    february = scene.say(scene.grant("february", 500).body, "operator-2", by="operator")
    say(book, scene, february, scene.add_key("ledger", "ledger-3", by="operator-2"))
    fifth = scene.order(5, key="alice-2")
    say(book, scene, scene.reserve(fifth, signer="router-2", by="router-2"))


def verify(folder: Path, scene) -> ReplayReport:
    source, views = SQLiteSource(folder / "book.sqlite"), folder / "views.sqlite"
    return replay(source, key=scene.vkey, operator=scene.operator, views=views, workers=1)


@pytest.fixture
def folder(scene, tmp_path: Path) -> Path:
    book = scene.open(tmp_path, successors=KEYS, snapshot_entries=10)
    live(book, scene)
    book.close()
    return tmp_path


def test_story_holds_every_kind_of_entry(folder: Path, scene) -> None:
    book = scene.open(folder, successors=KEYS)
    kinds = {decode_entry(raw).kind for raw in book.entry_bytes(1, book.size)}
    book.close()
    assert kinds == KINDS.keys()


def test_replay_accepts_all_that_the_writer_wrote_and_the_views_it_kept(folder: Path, scene) -> None:
    report = verify(folder, scene)
    assert report.problem is None, report.problem
    assert report.views_seq == report.entries > 25


def test_book_that_is_opened_after_every_entry_is_the_same_book(folder: Path, scene, tmp_path_factory) -> None:
    """A start from the disk, and from a snapshot, before each command: not one decision differs."""
    scene.now_ms -= 750_000
    scene.receipts.clear()
    other = tmp_path_factory.mktemp("restless")

    class Restless:
        """A book that is opened for each call."""

        def __getattr__(self, name: str):
            def call(*args):
                book = scene.open(other, successors=KEYS, snapshot_entries=10)
                try:
                    return getattr(book, name)(*args)
                finally:
                    book.close()

            return call

    live(Restless(), scene)
    one, two = (scene.open(each, successors=KEYS) for each in (folder, other))
    assert (one.size, one.root, one._state.digest()) == (two.size, two.root, two._state.digest())
    one.close()
    two.close()
    assert verify(other, scene).problem is None


def test_balance_as_of_an_entry_is_the_fold_of_that_prefix(folder: Path, scene, judge_of) -> None:
    """`--at` of replay, at every entry, against a writer that has seen no more."""
    book = scene.open(folder, successors=KEYS)
    entries = [decode_entry(raw) for raw in book.entry_bytes(1, book.size)]
    book.close()
    judge = judge_of(scene)
    for entry in entries:
        judge.state.apply(entry)
        row = judge.state.balances.account("alice")
        if row is None or entry.seq % 5:
            continue
        report = replay(SQLiteSource(folder / "book.sqlite"), key=scene.vkey, at=At(seq=entry.seq), workers=1)
        (told,) = report.balances
        found = (told.granted, told.available, told.held, told.consumed, told.expired)
        available = judge.state.balances.available("alice", entry.ts_ms)
        assert found == (row.granted, available, row.held, row.consumed, row.expired)
