"""Sixty-four clients at one account over the bus: never overdrawn, and no debit lost or counted twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from sawyer.bookkeeper.service import Bookkeeper
from sawyer.bus.calls import record
from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.clock import ManualClock
from sawyer.errors import BudgetTooSmall, RefusedError
from sawyer.ledger.audit import Accounts
from sawyer.ledger.book import Book
from sawyer.ledger.commands import VerifiedCommand
from sawyer.ledger.entry import decode_entry
from sawyer.ledger.store import Store
from sawyer.schemas.events import InferenceCompleted, NodeRows
from sawyer.schemas.messages import EntryRef, LedgerCommand

CLIENTS = 64
EACH = 3
"""Requests of one client, of 8 tokens each."""
BUDGET = 900
"""Tokens: not enough for all of them at once."""


@pytest.fixture
def book(scene) -> Book:
    made = Book(Store.in_memory(), network=scene.network, operator=scene.operator, ledger_key=scene.keys["ledger"])
    replies = made.commit(scene.opening(tokens=BUDGET), scene.now_ms)
    assert all(reply.error is None for reply in replies)
    return made


@asynccontextmanager
async def serving(book: Book, wire: MemoryNetwork, now_ms: int) -> AsyncIterator[None]:
    bookkeeper, up = Bookkeeper(MemoryBus(wire), book, ManualClock(now_ms)), asyncio.Event()
    running = asyncio.create_task(bookkeeper.run(up.set))
    await up.wait()
    yield
    bookkeeper.stop()
    await running


def asked(verified: VerifiedCommand) -> LedgerCommand:
    body = msgspec.json.decode(verified.statement)
    return LedgerCommand(kind=verified.kind, body=body, attestations=verified.attestations)


def requests(scene, client: int) -> list[tuple[LedgerCommand, LedgerCommand]]:
    """What a client's router says: a reservation and its end, every third a failure."""
    made = []
    for number in range(client * EACH, (client + 1) * EACH):
        order, rows = scene.order(number), (NodeRows(node="node-a", rows=56),)
        end = scene.void(order) if number % 3 == 0 else scene.complete(order, receipts=(), unreceipted=rows)
        made.append((asked(scene.reserve(order)), asked(end)))
    return made


async def live(bus: MemoryBus, said: list[tuple[LedgerCommand, LedgerCommand]]) -> list[EntryRef]:
    """One client's life: every command goes out twice at once, as after a lost answer. Where its requests ended."""
    ended = []
    for reserve, end in said:
        first, second = await asyncio.gather(record(bus, reserve), record(bus, reserve), return_exceptions=True)
        if isinstance(first, BudgetTooSmall) and isinstance(second, BudgetTooSmall):
            continue
        held = {each.seq for each in (first, second) if isinstance(each, EntryRef)}
        assert len(held) == 1
        first, second = await asyncio.gather(record(bus, end), record(bus, end))
        assert first == second
        ended.append(first)
    return ended


async def test_64_clients_never_overdraw_one_account_and_lose_or_double_no_debit(book: Book, scene) -> None:
    wire = MemoryNetwork()
    lives = [requests(scene, client) for client in range(CLIENTS)]
    async with serving(book, wire, scene.now_ms):
        told = [ref for refs in await asyncio.gather(*(live(MemoryBus(wire), said) for said in lives)) for ref in refs]
    entries = [decode_entry(raw) for raw in book.entry_bytes(1, book.size)]
    ends = {entry.seq: entry for entry in entries if entry.stream.startswith("request:") and entry.version == 2}
    assert Counter(ref.seq for ref in told) == Counter(dict.fromkeys(ends, 1))
    debits = sum(isinstance(entry.body, InferenceCompleted) for entry in ends.values())
    balance = book.balance("alice", scene.now_ms)
    assert (balance.consumed, balance.held, balance.available) == (8 * debits, 0, BUDGET - 8 * debits)
    assert debits > BUDGET // 8 // 2
    accounts = Accounts()
    for entry in entries:
        accounts.post(entry)
    accounts.check_rows(book._state)
    assert accounts.lowest >= 0


async def test_messages_delivered_three_times_in_random_order_debit_once(book: Book, scene) -> None:
    """Every message is on the wire at once; what came too early is refused, and sent again by who has no answer."""
    said = [command for client in range(8) for pair in requests(scene, client) for command in pair]
    messages = said * 3
    random.Random(7).shuffle(messages)
    wire = MemoryNetwork()
    bus = MemoryBus(wire)
    async with serving(book, wire, scene.now_ms):
        found = await asyncio.gather(*(record(bus, each) for each in messages), return_exceptions=True)
        assert all(isinstance(each, EntryRef | RefusedError) for each in found)
        ends = await asyncio.gather(*(record(bus, end) for end in said[1::2]))
    kinds = Counter({kind: row.entries for kind, row in book._state.audit.kinds.items()})
    assert kinds["tokens.reserved.v1"] == 24
    assert (kinds["inference.completed.v1"], kinds["reservation.voided.v1"]) == (16, 8)
    assert len({ref.seq for ref in ends}) == 24
    balance = book.balance("alice", scene.now_ms)
    assert (balance.consumed, balance.held) == (16 * 8, 0)


async def test_bookkeeper_that_is_cancelled_leaves_nothing(book, scene) -> None:
    before, wire, up = asyncio.all_tasks(), MemoryNetwork(), asyncio.Event()
    running = asyncio.create_task(Bookkeeper(MemoryBus(wire), book, ManualClock(scene.now_ms)).run(up.set))
    await up.wait()
    running.cancel()
    await asyncio.wait({running})
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
