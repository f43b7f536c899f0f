"""How a node enters the book: once, with a key that is on disk before the book knows it, and nowhere if it never
does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.protocol import Message
from sawyer.errors import Busy, NotAuthorised, SawyerError, UsageError
from sawyer.identity.keys import load, load_or_create
from sawyer.ids import HostId, NetworkId, NodeId
from sawyer.node.registration import NodeIdentity, refused_file, register
from sawyer.schemas import subjects
from sawyer.schemas.base import encode_canonical
from sawyer.schemas.events import Decided, NodeRegistered
from sawyer.schemas.messages import EntryRef, LedgerCommand, LedgerReply, MembersReply

NETWORK = NetworkId("sawyer-net/3f9a1c22")
ENTRY = EntryRef(seq=7, leaf="ab" * 32, kind="node.registered.v1", ts_ms=1, decided=Decided())


class Book:
    """The bookkeeper's side: knows members, records or refuses, and looks at the key file when it is asked to."""

    def __init__(self, bus: MemoryBus, file: Path) -> None:
        self.bus, self.file = bus, file
        self.members: list[NodeRegistered] = []
        self.refusal: SawyerError | None = None
        self.records_though_refused = False
        self.recorded: list[NodeRegistered] = []
        self.key_was_kept: list[bool] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await self.bus.subscribe(subjects.query("members"), lambda each: self._reply(each, self._members()))
        await self.bus.subscribe(subjects.all_ledger(), lambda each: self._reply(each, self._record(each)))

    def _members(self) -> bytes:
        return MembersReply(nodes=tuple(self.members), routers=(), seq=1).canonical()

    def _record(self, message: Message) -> bytes:
        self.key_was_kept.append(self.file.exists())
        command = LedgerCommand.model_validate_json(message.data)
        if self.records_though_refused:
            self.members.append(NodeRegistered.parse(encode_canonical(command.body)))
        if self.refusal is not None:
            return LedgerReply.refused(self.refusal).canonical()
        self.recorded.append(NodeRegistered.parse(encode_canonical(command.body)))
        return LedgerReply(entry=ENTRY, repeated=False).canonical()

    def _reply(self, message: Message, data: bytes) -> None:
        self.tasks.add(asyncio.create_task(self.bus.publish(message.reply, data)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "node-a.nk"


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus(MemoryNetwork())


@pytest.fixture
async def book(bus: MemoryBus, file: Path) -> Book:
    made = Book(bus, file)
    await made.start()
    return made


def files(key: Path) -> list[Path]:
    """What lies where keys are kept."""
    return list(key.parent.glob("*"))


def identity(file: Path) -> NodeIdentity:
    return NodeIdentity.open(NodeId("node-a"), HostId("bob"), file)


async def test_new_key_is_on_disk_before_the_book_knows_it(bus: MemoryBus, book: Book, file: Path) -> None:
    me = identity(file)
    assert files(file) == []
    known = await register(bus, NETWORK, me, "AMD EPYC™")
    assert book.key_was_kept == [True]
    assert book.recorded == [known]
    assert (known.node, known.host, known.key) == ("node-a", "bob", me.key.id)
    assert known.device == "AMD EPYC?"
    assert load(file).id == me.key.id
    assert identity(file) == NodeIdentity(me.node, me.host, me.key, None)


async def test_known_node_is_not_registered_again(bus: MemoryBus, book: Book, file: Path) -> None:
    book.members = [await register(bus, NETWORK, identity(file), "CPU")]
    assert await register(bus, NETWORK, identity(file), "CPU") == book.members[0]
    assert len(book.recorded) == 1


async def test_refused_registration_sets_the_new_key_aside_and_says_where(
    bus: MemoryBus, book: Book, file: Path
) -> None:
    book.refusal = NotAuthorised("node-a is registered with another key")
    me = identity(file)
    with pytest.raises(NotAuthorised) as refused:
        await register(bus, NETWORK, me, "CPU")
    assert files(file) == [refused_file(file)]
    assert str(refused_file(file)) in refused.value.hint
    assert load(refused_file(file)).id == me.key.id


async def test_refusal_by_somebody_else_costs_no_key_that_the_book_has(bus: MemoryBus, book: Book, file: Path) -> None:
    book.refusal, book.records_though_refused = NotAuthorised("no, says an impostor"), True
    me = identity(file)
    known = await register(bus, NETWORK, me, "CPU")
    assert known.key == me.key.id
    assert files(file) == [file]
    assert load(file).id == me.key.id


async def test_key_that_was_refused_is_tried_again_and_kept_when_it_is_known(
    bus: MemoryBus, book: Book, file: Path
) -> None:
    book.refusal = NotAuthorised("no")
    first = identity(file)
    for _ in range(3):
        with pytest.raises(NotAuthorised):
            await register(bus, NETWORK, identity(file), "CPU")
    again = identity(file)
    assert again.key.id == load(refused_file(file)).id
    assert again.key.id != first.key.id, "the first was never kept"
    book.refusal = None
    book.members = [
        NodeRegistered(
            network=NETWORK, node="node-a", host="bob", key=again.key.id, device="x", memory_mb=1, promised_us=0
        )
    ]
    await register(bus, NETWORK, again, "CPU")
    assert files(file) == [file]
    assert load(file).id == again.key.id


async def test_node_registered_for_another_host_than_was_chosen_is_refused(
    bus: MemoryBus, book: Book, file: Path
) -> None:
    book.members = [await register(bus, NETWORK, identity(file), "CPU")]
    chosen = NodeIdentity.open(NodeId("node-a"), HostId("maria"), file, host_chosen=True)
    with pytest.raises(UsageError, match="node-a is registered for bob, not for maria"):
        await register(bus, NETWORK, chosen, "CPU")
    default = NodeIdentity.open(NodeId("node-a"), HostId("maria"), file)
    assert (await register(bus, NETWORK, default, "CPU")).host == "bob"


async def test_refused_registration_keeps_a_key_that_was_there(bus: MemoryBus, book: Book, file: Path) -> None:
    key = load_or_create(file)
    book.refusal = NotAuthorised("node-a is registered with another key")
    with pytest.raises(NotAuthorised):
        await register(bus, NETWORK, identity(file), "CPU")
    assert load(file).id == key.id


async def test_key_that_another_process_made_meanwhile_is_not_overwritten(
    bus: MemoryBus, book: Book, file: Path
) -> None:
    me = identity(file)
    other = load_or_create(file)
    with pytest.raises(Busy, match=r"node-a\.nk"):
        await register(bus, NETWORK, me, "CPU")
    assert load(file).id == other.id
    assert book.recorded == []


@pytest.mark.parametrize(("promised_us", "recorded"), [(None, 0), (0, 0), (2500, 2500)])
async def test_promise_is_recorded_with_the_node(
    bus: MemoryBus, book: Book, file: Path, promised_us: int | None, recorded: int
) -> None:
    me = NodeIdentity.open(NodeId("node-a"), HostId("bob"), file, promised_us=promised_us)
    assert (await register(bus, NETWORK, me, "CPU")).promised_us == recorded


async def test_promise_cannot_be_changed_later(bus: MemoryBus, book: Book, file: Path) -> None:
    def promising(promised_us: int | None) -> NodeIdentity:
        return NodeIdentity.open(NodeId("node-a"), HostId("bob"), file, promised_us=promised_us)

    book.members = [await register(bus, NETWORK, promising(2500), "CPU")]
    assert await register(bus, NETWORK, promising(None), "CPU") == book.members[0]
    assert await register(bus, NETWORK, promising(2500), "CPU") == book.members[0]
    with pytest.raises(UsageError, match=r"with the promise of 2\.5 ms, and that cannot be changed"):
        await register(bus, NETWORK, promising(3000), "CPU")
    book.members = [book.members[0].changed(promised_us=0)]
    with pytest.raises(UsageError, match="with no promise"):
        await register(bus, NETWORK, promising(2500), "CPU")
