"""Witnesses in a whole network: nodes cosign the real book's checkpoints over a real server."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from sawyer.bookkeeper.service import Bookkeeper
from sawyer.bookkeeper.witnessing import OFFER_FOR_MS, Witnessing
from sawyer.bus.calls import record
from sawyer.cli.founding import pinned_network
from sawyer.clock import ManualClock, SystemClock
from sawyer.engine.experts import FAST
from sawyer.errors import SplitView
from sawyer.identity.keys import load, load_or_create
from sawyer.ids import HostId, NodeId
from sawyer.ledger.book import Book
from sawyer.ledger.checkpoint import Checkpoint, Verifier
from sawyer.ledger.commands import command
from sawyer.ledger.keyring import node_cosigner
from sawyer.ledger.witness import witnessed
from sawyer.model.files import FilesHere
from sawyer.node.agent import Hosting, NodeAgent, NodeIdentity
from sawyer.node.hosting import share
from sawyer.node.receipts import ReceiptLog
from sawyer.node.registration import register
from sawyer.node.witness import HELD_FILE, CheckpointWitness
from sawyer.schemas.events import AccountOpened
from sawyer.schemas.messages import CosignReply


async def keep_book(founded, clock: ManualClock) -> Witnessing:
    """The bookkeeper over the home's book, with a file for cosignatures and a clock for its offers."""
    pin, home = pinned_network(founded.home), founded.home
    book = Book.open(
        home.book, network=founded.network, operator=pin.operator, ledger_key=load(home.ledger_key), views=home.views
    )
    founded.stack.callback(book.close)
    made = Witnessing(book, clock, home.cosigned)
    bus = await founded.connect("bookkeeper")
    await founded.start("bookkeeper", bus, Bookkeeper(bus, book, SystemClock(), witnessing=made))
    return made


async def stop_book(founded) -> None:
    await founded.parts["bookkeeper"].stop()
    founded.parts["bookkeeper"].part._book.close()


class Watched(CheckpointWitness):
    """Tells when it has asked, and handed a line in."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.asked = asyncio.Event()

    async def ask_once(self) -> CosignReply | None:
        reply = await super().ask_once()
        self.asked.set()
        return reply


async def open_accounts(founded, names: list[str]) -> None:
    for name in names:
        key = load_or_create(founded.home.account_key(name))
        body = AccountOpened(network=founded.network, account=name, key=key.id)
        await record(founded.bus, command(body, name, key))


@pytest.fixture
async def witnessing(founded, clock: ManualClock) -> Witnessing:
    await stop_book(founded)
    return await keep_book(founded, clock)


@pytest.fixture
def me(founded) -> NodeIdentity:
    return NodeIdentity(NodeId("node-1"), HostId("bob"), load_or_create(founded.home.node_key("node-1")))


@pytest.fixture
async def witness(founded, me: NodeIdentity, clock: ManualClock) -> Watched:
    """Of node-1, which is registered and serves nothing."""
    bus = await founded.connect("node-1")
    await register(bus, founded.network, me, "CPU")
    pin, folder = pinned_network(founded.home), founded.home.witness("node-1")
    return Watched(bus, me.node, me.key, pin, folder, clock)


async def test_node_that_serves_cosigns_and_the_home_keeps_its_line(
    founded, witnessing: Witnessing, witness: Watched, me: NodeIdentity
) -> None:
    artifacts, home = founded.artifacts, founded.home
    bus = await founded.connect("node-1")
    hosting = Hosting(FilesHere(artifacts), share(artifacts.layout, 0, 1), "cpu", 1, FAST)
    receipts = ReceiptLog(founded.network, me.node, me.key, home.path / "receipts" / "node-1.json")
    await founded.start("node-1", bus, NodeAgent(bus, me, hosting, receipts, SystemClock(), "test", witness))
    async with asyncio.timeout(20):
        await witness.asked.wait()
    note = home.cosigned.read_text()
    found = Checkpoint.verify(note, Verifier.parse(pinned_network(home).ledger_vkey))
    cosigner = node_cosigner(founded.network, "node-1", me.key.id)
    assert list(witnessed(note, [cosigner])) == [cosigner]
    assert Checkpoint.read((home.witness("node-1") / HELD_FILE).read_text()) == found


async def test_witness_follows_a_book_that_grows_by_more_than_a_block_of_its_tree(
    founded, witnessing: Witnessing, witness: Watched, clock: ManualClock
) -> None:
    cosigned = await witness.ask_once()
    assert cosigned is not None
    for count in (1, 2, 300):
        await open_accounts(founded, [f"a{count}-{number}" for number in range(count)])
        clock.advance(OFFER_FOR_MS)
        size = cosigned.size + count
        cosigned = await witness.ask_once()
        assert cosigned == CosignReply(size=size, witnesses=1)


async def test_book_that_was_restored_and_written_otherwise_is_a_split_view(
    founded, witnessing: Witnessing, witness: Watched, clock: ManualClock, tmp_path: Path
) -> None:
    home = founded.home
    await stop_book(founded)
    shutil.copy(home.book, tmp_path)
    await keep_book(founded, clock)
    await open_accounts(founded, ["honest"])
    clock.advance(OFFER_FOR_MS)
    assert await witness.ask_once() is not None
    await stop_book(founded)
    shutil.copy(tmp_path / home.book.name, home.book)
    for path in home.path.glob("views.sqlite*"):
        path.unlink()
    await keep_book(founded, clock)
    await open_accounts(founded, ["otherwise"])
    with pytest.raises(SplitView):
        await witness.ask_once()
