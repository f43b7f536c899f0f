"""Two small books that `Book` writes from fixed keys and times: the worked example of docs/ledger-format.md, and one in
which every kind of entry stands. The same bytes whenever they are made."""

from __future__ import annotations

from typing import Final

from corpus import cast

from sawyer.economy.periods import days_from_civil
from sawyer.ledger.book import Book
from sawyer.ledger.commands import VerifiedCommand
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.store import Store
from sawyer.schemas.events import NodeRows

Commits = list[tuple[int, list[VerifiedCommand]]]
"""(time, commands) of each commit."""
SECOND: Final = 1_000
MINUTE: Final = 60_000
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
SNAPSHOT_ENTRIES: Final = 17
"""So that one snapshot is taken in the middle of the long story and one at its end."""


def day(month: int, of_month: int) -> int:
    """Midnight of a day of 2026, UTC, in milliseconds since 1970."""
    return days_from_civil(2026, month, of_month) * DAY


def example() -> list[StoredRow]:
    """The worked example: nine entries, three commits."""
    at, prices = day(1, 1), cast.sheet("2026-01", "f32")
    asked = cast.order(1, at + HOUR, prices, max_tokens=3)
    receipt = cast.Receipts().of(asked, "f32", "node-a", 56)
    commits: Commits = [
        (at, [cast.founding(at)]),
        (
            at + SECOND,
            [
                cast.add_key("router", "router", "router"),
                cast.by_operator(cast.model("f32")),
                cast.by_operator(prices),
                cast.node("node-a", "bob", 2000),
                cast.account("alice"),
                cast.grant("in-0001", at, 500_000),
            ],
        ),
        (at + HOUR, [cast.reserve(asked, prices, "f32", 5), cast.complete(asked, 5, 3, 7, (receipt,), (1500,))]),
    ]
    store = Store.in_memory()
    book = opened(store, snapshot_entries=1000)
    for at_ms, commands in commits:
        _commit(book, commands, at_ms)
    return list(store.rows())


def whole() -> list[StoredRow]:
    """A book with an entry of every kind: founding, three requests with three ends, new keys for everybody, new weights
    and prices, a month that expires under a hold, an erasure, two snapshots, and a request that is still open."""
    store = Store.in_memory()
    book = opened(store, SNAPSHOT_ENTRIES)
    receipts = cast.Receipts()
    for act in (_founding, _first_requests, _new_keys, _february, _march):
        act(book, receipts)
    return list(store.rows())


def _founding(book: Book, _: cast.Receipts) -> None:
    at = day(1, 1)
    members = [
        cast.add_key("router", "router", "router"),
        cast.by_operator(cast.model("f32")),
        cast.by_operator(JANUARY),
        cast.node("node-a", "bob", 2000),
        cast.node("node-b", "carol", 0),
        cast.account("alice"),
    ]
    _commit(book, [cast.founding(at)], at)
    _commit(book, members, at + SECOND)
    _commit(book, [cast.grant("in-0001", at, 500_000, sealed="alice@example.org")], at + MINUTE)


def _first_requests(book: Book, receipts: cast.Receipts) -> None:
    """The first is completed, the second voided, the third left alone until it expires."""
    at = day(1, 2)
    asked = cast.order(1, at, JANUARY, max_tokens=8)
    work = (receipts.of(asked, "f32", "node-a", 40), receipts.of(asked, "f32", "node-b", 24))
    _commit(book, [cast.reserve(asked, JANUARY, "f32", 5)], at)
    _commit(book, [cast.complete(asked, 5, 3, 8, work, (1500, 900), finish="stop")], at + SECOND)
    asked = cast.order(2, at + MINUTE, JANUARY, max_tokens=100)
    _commit(book, [cast.reserve(asked, JANUARY, "f32", 20)], at + MINUTE)
    _commit(book, [cast.void(asked, "expert_unavailable")], at + 2 * MINUTE)
    asked = cast.order(3, at + HOUR, JANUARY, max_tokens=100)
    _commit(book, [cast.reserve(asked, JANUARY, "f32", 20)], at + HOUR)
    _commit(book, book.expire(at + HOUR + 10 * MINUTE), at + HOUR + 10 * MINUTE)


def _new_keys(book: Book, _: cast.Receipts) -> None:
    """Everybody takes another key. The ledger's signs checkpoints from the next commit on."""
    at = day(1, 15)
    _commit(book, [cast.rotate("node", "node-a", "node-a-2"), cast.rotate("account", "alice", "alice-2")], at)
    lost = cast.revoke("router", "stolen", since_ms=at - HOUR)
    _commit(book, [cast.add_key("router", "router-2", "router-2"), lost], at + MINUTE)
    _commit(book, [cast.add_key("ledger", "ledger", "ledger-2")], at + 2 * MINUTE)
    _commit(book, [cast.add_key("operator", "operator", "operator-2")], at + 3 * MINUTE)
    _commit(book, [cast.revoke("operator", "retired", by="operator-2")], at + 4 * MINUTE)
    _commit(book, [cast.revoke("alice", "replaced", by="operator-2")], at + 5 * MINUTE)


def _february(book: Book, receipts: cast.Receipts) -> None:
    """New weights and prices, and a second bucket beside January's."""
    at, by = day(2, 1), "operator-2"
    published = [cast.by_operator(cast.model("q8"), by), cast.by_operator(FEBRUARY, by)]
    _commit(book, [*published, cast.grant("in-0002", at, 500_000, by=by)], at)
    asked = cast.order(4, at + HOUR, FEBRUARY, max_tokens=600_000, key="alice-2")
    work = (receipts.of(asked, "q8", "node-a", 3_199_920, key="node-a-2"),)
    rest = (NodeRows(node="node-b", rows=1_600_000),)
    done = cast.complete(asked, 100_000, 499_990, 599_990, work, (3000,), unreceipted=rest, router="router-2")
    _commit(book, [cast.reserve(asked, FEBRUARY, "q8", 100_000, router="router-2"), done], at + HOUR)


def _march(book: Book, receipts: cast.Receipts) -> None:
    """January's tokens expire while some are held; alice is erased, given a few, and asks again."""
    end, by = day(3, 1), "operator-2"
    asked = cast.order(5, end - 5 * MINUTE, FEBRUARY, max_tokens=20_000, key="alice-2")
    _commit(book, [cast.reserve(asked, FEBRUARY, "q8", 5, router="router-2")], end - 5 * MINUTE)
    _commit(book, book.expire(end), end)
    work = (receipts.of(asked, "q8", "node-a", 20, key="node-a-2"), receipts.of(asked, "q8", "node-b", 28))
    cancelled = cast.complete(asked, 5, 2, 6, work, (7000, 900), router="router-2", finish="cancelled")
    _commit(book, [cancelled], end + MINUTE)
    _commit(book, [cast.erase(by), cast.gift("sorry", end, end + DAY, 1_000, by=by)], end + HOUR)
    asked = cast.order(6, end + 2 * HOUR, FEBRUARY, max_tokens=100, key="alice-2")
    held = cast.reserve(asked, FEBRUARY, "q8", 20, router="router-2")
    _commit(book, [cast.account("bea"), held], end + 2 * HOUR)


def opened(store: Store, snapshot_entries: int) -> Book:
    """The writer, with the ledger's two keys."""
    return Book(
        store, network=cast.NETWORK, operator=cast.OPERATOR, ledger_key=cast.KEYS["ledger"],  # type: ignore[arg-type]
        successors=(cast.KEYS["ledger-2"],), snapshot_entries=snapshot_entries,
    )  # fmt: skip


def _commit(book: Book, commands: list[VerifiedCommand], at_ms: int) -> None:
    for asked, reply in zip(commands, book.commit(commands, at_ms), strict=True):
        assert reply.entry is not None, f"{asked.kind}: {reply.error}"
        assert not reply.repeated, asked.kind


JANUARY: Final = cast.sheet("2026-01", "f32")
FEBRUARY: Final = cast.sheet("2026-02", "f32", "q8")
