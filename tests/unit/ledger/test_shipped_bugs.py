"""Bugs that other ledgers shipped, and the package before this one: each tried here, under the name it was known by."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from sawyer.errors import MalformedMessage, NotAuthorised, RefusedError, WriterFenced
from sawyer.ledger.book import Book
from sawyer.ledger.commands import check, command
from sawyer.ledger.decide import decide
from sawyer.ledger.store import open_store
from sawyer.schemas.events import NodeRows

LATER_MS = 40 * 86_400_000


def codes(book: Book, scene, *commands) -> list[str | None]:
    return [reply.error and reply.error.code for reply in book.commit(commands, scene.now_ms)]


# --- other ledgers ----------------------------------------------------------------------------------------------------


def test_formance_stack_1633_one_request_key_twice_in_one_batch_does_not_crash(book: Book, scene) -> None:
    reserve = scene.reserve(scene.order())
    other = scene.reserve(scene.order(content="ee" * 32))
    assert codes(book, scene, reserve, reserve, other, scene.grant("more", 1)) == [None, None, "request_conflict", None]
    assert book.balance("alice", scene.now_ms).held == 8


def test_fountain_1126_expiry_of_a_gift_claws_back_no_paid_tokens(book: Book, scene) -> None:
    """The gift dies first, half spent; what was paid for stays whole, and so does what was consumed."""
    assert codes(book, scene, scene.grant("gift", 16, end_ms=1_000, paid_uusd=0)) == [None]
    order = scene.order()
    book.commit([scene.reserve(order), scene.complete(order)], scene.now_ms)
    scene.now_ms += 1_000
    due = book.expire(scene.now_ms)
    assert [(asked.body.grant, asked.body.tokens) for asked in due] == [("gift", 8)]
    assert codes(book, scene, *due) == [None]
    balance = book.balance("alice", scene.now_ms)
    assert (balance.available, balance.consumed, balance.expired) == (500_000, 8, 8)


def test_fountain_1126_two_reasons_to_take_tokens_away_take_them_once(book: Book, scene) -> None:
    """A hold that ends and a grant that expires at once: what the one released the other does not take again."""
    book.commit([scene.reserve(scene.order(), hold_ms=600_000)], scene.now_ms)
    scene.now_ms += LATER_MS
    due = book.expire(scene.now_ms)
    assert codes(book, scene, *due, *due, *due[::-1]) == [None] * 6
    assert [reply.repeated for reply in book.commit(due, scene.now_ms)] == [True, True]
    balance = book.balance("alice", scene.now_ms)
    assert (balance.granted, balance.available, balance.held, balance.expired) == (500_000, 0, 0, 500_000)


def test_preloop_767_lot_that_a_live_reservation_holds_does_not_expire_under_it(book: Book, scene) -> None:
    scene.now_ms += 30 * 86_400_000 - 1_000
    order = scene.order()
    book.commit([scene.reserve(order)], scene.now_ms)
    scene.now_ms += 1_000
    assert codes(book, scene, *book.expire(scene.now_ms)) == [None]
    assert book.balance("alice", scene.now_ms).held == 8
    (reply,) = book.commit([scene.complete(order)], scene.now_ms)
    assert [(part.grant, part.tokens) for part in reply.entry.decided.debited] == [("january", 8)]


def test_marten_4952_no_entry_is_skipped_by_the_views_when_two_writers_append(scene, tmp_path: Path) -> None:
    """The one that is behind is fenced, reads what it missed, and goes on; the views have every entry, once."""
    first = scene.open(tmp_path)
    assert codes(first, scene, *scene.opening()) == [None] * 8
    writers, fenced = (first, scene.open(tmp_path)), 0
    for number in range(12):
        writer, asked = writers[number % 2], scene.reserve(scene.order(number))
        try:
            writer.commit([asked], scene.now_ms)
        except WriterFenced:
            fenced += 1
            assert codes(writer, scene, asked) == [None]
        if number % 3:
            writer.catch_up()
    assert fenced >= 10
    for writer in writers:
        writer.close()
    book = scene.open(tmp_path, views=False)
    folded = {(fold.name, key): row for fold in book._state.folds for key, row in fold.encoded_rows()}
    assert book.size == 20
    book.close()
    with sqlite3.connect(tmp_path / "views.sqlite") as views:
        lived = {(view, key): row for view, key, row in views.execute("SELECT view, key, row FROM view_rows")}
    views.close()
    assert lived == folded


def test_marten_3705_numbers_that_a_failed_write_used_up_are_no_gap_in_the_book(
    scene, postgres_url: str, tmp_path: Path
) -> None:
    """PostgreSQL counts rows that were rolled back; entries are numbered inside what is signed. From the first entry
    and from a snapshot beside such a gap."""

    def opened(snapshots: Path | None = None) -> Book:
        store = open_store(postgres_url, "NORMAL")
        return Book(
            store, network=scene.network, operator=scene.operator, ledger_key=scene.keys["ledger"],
            snapshots=snapshots, snapshot_entries=9,
        )  # fmt: skip

    first, second = opened(tmp_path / "snapshot.bin"), opened()
    assert codes(first, scene, *scene.opening()) == [None] * 8
    with pytest.raises(WriterFenced):
        second.commit(scene.opening(), scene.now_ms)
    assert codes(first, scene, scene.grant("after", 1)) == [None]
    assert codes(first, scene, scene.grant("later", 1)) == [None]
    assert (tmp_path / "snapshot.bin").is_file()
    books = [first, second, opened(), opened(tmp_path / "snapshot.bin")]
    assert [(book.size, book._state.digest()) for book in books[2:]] == [(11, first._state.digest())] * 2
    for book in books:
        book.close()


@pytest.mark.parametrize("key", ["alice", "router", "operator", "node-a", "mallory"])
def test_tigerbeetle_253_nobody_but_the_ledger_times_a_hold_out(judge, scene, key: str) -> None:
    order = scene.order()
    judge.write(scene.reserve(order))
    with pytest.raises(NotAuthorised, match="expected the ledger"):
        decide(judge.state, scene.expiry(order, key=key), scene.now_ms + 600_000)


def test_tigerbeetle_253_no_hold_is_timed_out_before_its_end_not_even_by_the_ledger(judge, scene) -> None:
    order = scene.order()
    judge.write(scene.reserve(order))
    with pytest.raises(RefusedError, match="the hold runs until"):
        decide(judge.state, scene.expiry(order), scene.now_ms + 599_999)


def test_tigerbeetle_253_hold_that_is_over_is_still_posted_until_the_ledger_says_so(judge, scene) -> None:
    """No silent clock: router and ledger never disagree about what a hold is."""
    order = scene.order()
    judge.write(scene.reserve(order))
    judge.write(scene.complete(order), now_ms=scene.now_ms + 600_001)
    assert judge.state.balances.account("alice").consumed == 8


# --- the package before this one --------------------------------------------------------------------------------------


def test_retry_does_not_pay_a_host_twice(judge, scene) -> None:
    """The block was sent again, and answered again: one receipt counts, whichever the router used."""
    order = scene.order()
    receipt = scene.receipt(order, 56)
    judge.write(scene.reserve(order))
    twice = scene.complete(order, receipts=(receipt, receipt))
    with pytest.raises(RefusedError, match="once"):
        decide(judge.state, twice, scene.now_ms)
    judge.write(scene.complete(order, receipts=(receipt,)))
    second = scene.order(2)
    judge.write(scene.reserve(second))
    stolen = scene.receipt(second, 56).changed(body=receipt.body, signature=receipt.signature)
    with pytest.raises(NotAuthorised, match="is for request"):
        decide(judge.state, scene.complete(second, receipts=(stolen,)), scene.now_ms)
    assert judge.state.payouts.hosts["bob"].rows == 56


def test_balance_does_not_go_below_zero_whatever_is_asked(book: Book, scene) -> None:
    """It stood at -98,000,000 once."""
    asked = [scene.reserve(scene.order(number, max_tokens=249_995)) for number in range(5)]
    assert codes(book, scene, *asked) == [None, None, "budget_too_small", "budget_too_small", "budget_too_small"]
    assert book.balance("alice", scene.now_ms).available == 0


def test_first_debit_after_a_restart_works(scene, tmp_path: Path) -> None:
    book = scene.open(tmp_path)
    order = scene.order()
    assert codes(book, scene, *scene.opening(), scene.reserve(order)) == [None] * 9
    book.close()
    again = scene.open(tmp_path)
    assert codes(again, scene, scene.complete(order)) == [None]
    assert again.balance("alice", scene.now_ms).consumed == 8
    again.close()


@pytest.mark.parametrize("changes", [{"output_tokens": 0}, {"output_tokens": -1}, {"output_tokens": 0.5}])
def test_empty_answer_is_not_billed(scene, changes: dict[str, object]) -> None:
    """A completion without output is no fact that the book has words for: such a request is voided, for nothing."""
    made = command(scene.complete(scene.order()).body, "router", scene.keys["router"])
    broken = made.model_copy(update={"body": {**made.body, **changes}})
    with pytest.raises(MalformedMessage, match="output_tokens"):
        check(broken)


def test_failed_request_costs_nothing_and_earns_nothing(judge, scene) -> None:
    order = scene.order()
    judge.write(scene.reserve(order), scene.void(order))
    assert judge.state.balances.account("alice").consumed == 0
    assert (judge.state.payouts.hosts, judge.state.payouts.earned_uusd) == ({}, 0)


def test_cancelled_request_is_billed_for_what_was_sent(judge, scene) -> None:
    order = scene.order(max_tokens=100)
    judge.write(scene.reserve(order))
    (entry,) = judge.write(scene.complete(order, output_tokens=2))
    assert sum(part.tokens for part in entry.decided.debited) == 7
    assert sum(part.tokens for part in entry.decided.released) == 98


def test_host_whose_answer_was_not_used_earns_nothing_for_it(judge, scene) -> None:
    order = scene.order()
    judge.write(scene.reserve(order))
    (entry,) = judge.write(scene.complete(order, receipts=(), unreceipted=(NodeRows(node="node-a", rows=56),)))
    assert (entry.decided.credits, judge.state.payouts.hosts) == ((), {})
