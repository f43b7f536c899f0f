"""What every book must do, whatever holds its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sawyer.errors import BookCorrupt, UnknownAccount, WriterFenced
from sawyer.identity.keys import Key
from sawyer.ledger.book import Book
from sawyer.ledger.checkpoint import Checkpoint, Verifier
from sawyer.ledger.store import Store, open_store
from sawyer.schemas.messages import MAX_BUCKETS_TOLD

Reopen = Callable[[], Book]
DAY_MS = 86_400_000


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def reopen(request, scene, tmp_path: Path) -> Iterator[Reopen]:
    """Opens the one book of this test again, as another process would: same rows, no shared memory."""
    opened: list[Book] = []
    memory = Store.in_memory()
    where = request.getfixturevalue("postgres_url") if request.param == "postgres" else tmp_path / "book.sqlite"

    def open_again() -> Book:
        store = memory if request.param == "memory" else open_store(where, "NORMAL")
        opened.append(Book(store, network=scene.network, operator=scene.operator, ledger_key=scene.keys["ledger"]))
        return opened[-1]

    yield open_again
    for book in opened:
        book.close()


@pytest.fixture
def founded(reopen: Reopen, scene) -> Book:
    book = reopen()
    replies = book.commit(scene.opening(), scene.now_ms)
    assert all(reply.error is None for reply in replies)
    return book


def test_reserve_then_complete_moves_tokens_once(founded: Book, scene) -> None:
    order = scene.order()
    founded.commit([scene.reserve(order)], scene.now_ms)
    held = founded.balance("alice", scene.now_ms)
    founded.commit([scene.complete(order, output_tokens=2)], scene.now_ms)
    after = founded.balance("alice", scene.now_ms)
    assert (held.available, held.held, held.consumed) == (499_992, 8, 0)
    assert (after.available, after.held, after.consumed, after.granted) == (499_993, 0, 7, 500_000)


def test_reply_names_entry_and_decision_of_a_completed_request(founded: Book, scene) -> None:
    order = scene.order()
    reserve, complete = founded.commit([scene.reserve(order), scene.complete(order)], scene.now_ms)
    assert reserve.entry.seq == 9
    assert complete.entry.seq == 10
    assert [(part.grant, part.tokens) for part in complete.entry.decided.debited] == [("january", 8)]
    assert [(part.host, part.rows, part.work) for part in complete.entry.decided.credits] == [("bob", 56, 56 * 221)]


def test_reopened_book_has_same_root_balance_and_answers(founded: Book, reopen: Reopen, scene) -> None:
    order = scene.order()
    complete = scene.complete(order)
    founded.commit([scene.reserve(order), complete], scene.now_ms)
    again = reopen()
    assert (again.size, again.root, again.checkpoint()) == (founded.size, founded.root, founded.checkpoint())
    assert again.balance("alice", scene.now_ms) == founded.balance("alice", scene.now_ms)
    assert again.network(1) == founded.network(1)
    assert again.members() == founded.members()
    assert again.completed(order.body.request) == founded.completed(order.body.request)


def test_repeated_command_returns_same_entry_in_same_batch_later_and_after_reopening(
    founded: Book, reopen: Reopen, scene
) -> None:
    order = scene.order()
    reserve = scene.reserve(order)
    first, same_batch = founded.commit([reserve, reserve], scene.now_ms)
    (later,) = founded.commit([reserve], scene.now_ms + 1)
    (reopened,) = reopen().commit([reserve], scene.now_ms + 2)
    assert not first.repeated
    assert [reply.repeated for reply in (same_batch, later, reopened)] == [True, True, True]
    assert first.entry == same_batch.entry == later.entry == reopened.entry
    assert founded.balance("alice", scene.now_ms).held == 8


def test_same_request_with_other_content_is_refused_in_same_batch_and_later(founded: Book, scene) -> None:
    order = scene.order()
    other = scene.reserve(order, input_tokens=4)
    first, same_batch = founded.commit([scene.reserve(order), other], scene.now_ms)
    (later,) = founded.commit([other], scene.now_ms)
    assert first.error is None
    assert (same_batch.error.code, later.error.code) == ("request_conflict", "request_conflict")
    assert founded.balance("alice", scene.now_ms).held == 8


def test_double_spend_in_one_batch_holds_only_what_is_there(reopen: Reopen, scene) -> None:
    book = reopen()
    book.commit(scene.opening(tokens=10), scene.now_ms)
    one, two = book.commit([scene.reserve(scene.order(1)), scene.reserve(scene.order(2))], scene.now_ms)
    assert one.error is None
    assert (two.error.code, two.error.details) == ("budget_too_small", {"needed": "8", "available": "2"})
    assert book.balance("alice", scene.now_ms).available == 2


def test_refused_command_leaves_the_rest_of_its_batch(founded: Book, scene) -> None:
    good, bad = scene.order(1), scene.order(2, price_sheet="00" * 32)
    replies = founded.commit([scene.reserve(bad), scene.reserve(good)], scene.now_ms)
    assert [reply.error is None for reply in replies] == [False, True]
    assert founded.size == 9


def test_batch_of_refusals_writes_no_checkpoint(founded: Book, scene) -> None:
    before = founded.checkpoint()
    founded.commit([scene.grant("march", 1, by="mallory")], scene.now_ms)
    assert founded.checkpoint() == before


def test_second_writer_is_fenced_writes_nothing_and_then_sees_all(founded: Book, reopen: Reopen, scene) -> None:
    second = reopen()
    founded.commit([scene.reserve(scene.order(1))], scene.now_ms)
    with pytest.raises(WriterFenced):
        second.commit([scene.grant("february", 100), scene.account("dave", "mallory")], scene.now_ms)
    assert (second.size, second.root) == (founded.size, founded.root)
    assert second.balance("alice", scene.now_ms) == founded.balance("alice", scene.now_ms)


def test_fenced_writer_on_other_streams_is_fenced_too(founded: Book, reopen: Reopen, scene) -> None:
    """No stream of the two batches is the same: only the checkpoint stream stands between them."""
    second = reopen()
    founded.commit([scene.account("dave", "mallory")], scene.now_ms)
    with pytest.raises(WriterFenced):
        second.commit([scene.reserve(scene.order(1))], scene.now_ms)


def test_checkpoint_verifies_with_the_key_the_network_tells(founded: Book) -> None:
    told = founded.network(1)
    checkpoint = Checkpoint.verify(told.checkpoint, Verifier.parse(told.ledger_vkey))
    assert (checkpoint.origin, checkpoint.size, checkpoint.root.hex()) == (told.network, told.size, founded.root)


def test_expire_releases_due_holds_and_only_those(founded: Book, scene) -> None:
    early, late = scene.order(1), scene.order(2)
    founded.commit([scene.reserve(early, hold_ms=1_000), scene.reserve(late, hold_ms=5_000)], scene.now_ms)
    assert founded.expire(scene.now_ms + 999) == []
    due = founded.expire(scene.now_ms + 1_000)
    (reply,) = founded.commit(due, scene.now_ms + 1_000)
    assert reply.error is None
    assert [part.tokens for part in reply.entry.decided.released] == [8]
    assert founded.balance("alice", scene.now_ms).held == 8
    assert founded.expire(scene.now_ms + 1_000) == []


def test_time_of_entries_never_runs_backwards_when_the_clock_does(founded: Book, scene) -> None:
    (later,) = founded.commit([scene.account("dave", "mallory")], scene.now_ms + 5_000)
    (earlier,) = founded.commit([scene.grant("february", 1)], scene.now_ms)
    assert later.entry.ts_ms == earlier.entry.ts_ms == scene.now_ms + 5_000


def test_balance_of_unknown_account_is_refused(founded: Book, scene) -> None:
    for ask in (founded.balance, founded.account):
        with pytest.raises(UnknownAccount):
            ask("nobody", scene.now_ms)


def test_account_tells_key_entry_balance_and_each_grant_the_soonest_to_expire_first(founded: Book, scene) -> None:
    founded.commit([scene.grant("february", 10, start_ms=DAY_MS, end_ms=31 * DAY_MS)], scene.now_ms)
    founded.commit([scene.reserve(scene.order())], scene.now_ms)
    told = founded.account("alice", scene.now_ms)
    assert (told.account, told.key, told.opened) == ("alice", scene.keys["alice"].id, 7)
    assert told.balance == founded.balance("alice", scene.now_ms)
    assert (told.grants, [bucket.grant for bucket in told.buckets]) == (2, ["january", "february"])
    january, february = told.buckets
    assert (february.granted, february.available, february.held, february.consumed) == (10, 10, 0, 0)
    assert (february.valid_from_ms, february.expires_ms) == (scene.now_ms + DAY_MS, scene.now_ms + 31 * DAY_MS)
    assert (january.seq, february.seq) == (8, 9)
    assert january.held == told.balance.held > 0
    assert january.granted == january.available + january.held


def test_account_with_many_grants_tells_those_that_expire_soonest(founded: Book, scene) -> None:
    names = [f"grant-{number}" for number in range(MAX_BUCKETS_TOLD)]
    founded.commit([scene.grant(name, 1) for name in names], scene.now_ms)
    told = founded.account("alice", scene.now_ms)
    assert told.grants == 1 + MAX_BUCKETS_TOLD
    assert [bucket.grant for bucket in told.buckets] == ["january", *names[:-1]]


def test_members_are_told_by_name(founded: Book, scene) -> None:
    members = founded.members()
    assert [(node.node, node.host, node.key) for node in members.nodes] == [
        ("node-a", "bob", scene.keys["node-a"].id),
        ("node-b", "carol", scene.keys["node-b"].id),
    ]
    assert members.routers == (("router", scene.keys["router"].id),)


def test_book_of_another_network_is_not_opened_nor_written_to(founded: Book, scene) -> None:
    """Two networks in one database: who came first keeps it."""
    size = founded.size
    with pytest.raises(BookCorrupt, match="expected log"):
        Book(founded._store, network="sawyer-net/00000001", operator=scene.operator, ledger_key=scene.keys["ledger"])
    assert founded.size == size


def test_book_of_another_ledger_key_is_not_opened(founded: Book, reopen: Reopen, scene, tmp_path: Path) -> None:
    stranger = Key.from_raw(bytes([77]) * 32)
    with pytest.raises(BookCorrupt, match="no valid signature"):
        Book(founded._store, network=scene.network, operator=scene.operator, ledger_key=stranger)
