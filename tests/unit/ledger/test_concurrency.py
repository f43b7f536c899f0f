"""Sixty-four threads at one account: never overdrawn, and no debit lost or counted twice."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from sawyer.ledger.audit import Accounts
from sawyer.ledger.book import Book
from sawyer.ledger.commands import VerifiedCommand
from sawyer.ledger.entry import decode_entry
from sawyer.ledger.store import Store
from sawyer.schemas.events import InferenceCompleted, NodeRows
from sawyer.schemas.messages import LedgerReply

CLIENTS = 64
EACH = 3
"""Requests of one client, of 8 tokens each."""
BUDGET = 900
"""Tokens: not enough for all of them at once."""


def requests(scene, client: int) -> list[tuple[VerifiedCommand, VerifiedCommand]]:
    """What a client's router says: a reservation and its end, every third a failure."""
    made = []
    for number in range(client * EACH, (client + 1) * EACH):
        order = scene.order(number)
        rows = (NodeRows(node="node-a", rows=56),)
        end = scene.void(order) if number % 3 == 0 else scene.complete(order, receipts=(), unreceipted=rows)
        made.append((scene.reserve(order), end))
    return made


def act(book: Book, now_ms: int, asked: list[tuple[VerifiedCommand, VerifiedCommand]]) -> list[LedgerReply]:
    """One client's life: everything is sent twice, as by somebody who lost the first answer. What ended, in order."""
    told = []
    for reserve, end in asked:
        (held,) = book.commit([reserve], now_ms)
        if held.error is not None:
            assert held.error.code == "budget_too_small"
            continue
        (again,) = book.commit([reserve], now_ms)
        assert (again.repeated, again.entry) == (True, held.entry)
        first, second = book.commit([end, end], now_ms)
        (third,) = book.commit([end], now_ms)
        assert first.entry == second.entry == third.entry
        told.append(first)
    return told


def test_64_threads_never_overdraw_one_account_and_lose_or_double_no_debit(scene) -> None:
    store = Store.in_memory()
    book = Book(store, network=scene.network, operator=scene.operator, ledger_key=scene.keys["ledger"])
    book.commit(scene.opening(tokens=BUDGET), scene.now_ms)
    lives = [requests(scene, client) for client in range(CLIENTS)]
    together = threading.Barrier(CLIENTS)

    def live(asked: list[tuple[VerifiedCommand, VerifiedCommand]]) -> list[LedgerReply]:
        together.wait()
        return act(book, scene.now_ms, asked)

    with ThreadPoolExecutor(CLIENTS) as threads:
        told = [reply for replies in threads.map(live, lives) for reply in replies]
    entries = [decode_entry(raw) for raw in book.entry_bytes(1, book.size)]
    told_seqs = Counter(reply.entry.seq for reply in told)
    assert max(told_seqs.values()) == 1
    assert set(told_seqs) == {
        entry.seq for entry in entries if entry.stream.startswith("request:") and entry.version == 2
    }
    debits = sum(isinstance(entry.body, InferenceCompleted) for entry in entries)
    balance = book.balance("alice", scene.now_ms)
    assert (balance.consumed, balance.held) == (8 * debits, 0)
    assert balance.available == BUDGET - 8 * debits
    assert debits > BUDGET // 8 // 2
    accounts = Accounts()
    for entry in entries:
        accounts.post(entry)
    accounts.check_rows(book._state)
    assert accounts.lowest >= 0
    again = Book(store, network=scene.network, operator=scene.operator, ledger_key=scene.keys["ledger"])
    assert again._state.digest() == book._state.digest()


def test_readers_beside_a_writer_see_only_what_adds_up(scene) -> None:
    """A balance is of one moment: between two commits, never inside one."""
    book = Book(Store.in_memory(), network=scene.network, operator=scene.operator, ledger_key=scene.keys["ledger"])
    book.commit(scene.opening(tokens=BUDGET), scene.now_ms)
    asked = [command for client in range(8) for pair in requests(scene, client) for command in pair]
    done = threading.Event()

    def look() -> int:
        looked = 0
        while not done.is_set() or not looked:
            told = book.balance("alice", scene.now_ms)
            assert told.available + told.held + told.consumed == told.granted == BUDGET
            looked += 1
        return looked

    with ThreadPoolExecutor(4) as threads:
        watching = [threads.submit(look) for _ in range(4)]
        for command in asked:
            book.commit([command], scene.now_ms)
        done.set()
        assert all(each.result() for each in watching)
