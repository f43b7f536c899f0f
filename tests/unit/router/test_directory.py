"""Whose heartbeat counts: a member's, by its own key, on its own subject, for this network, newer than the last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.protocol import Message
from sawyer.bus.service import Service
from sawyer.errors import NobodyServes, UnknownModel, WrongManifest
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.ids import ModelId, NodeId
from sawyer.router import directory as module
from sawyer.router.directory import Directory
from sawyer.schemas import subjects
from sawyer.schemas.base import Fact
from sawyer.schemas.messages import HEARTBEAT_KIND, ErrorBody, Heartbeat, MembersReply, NetworkReply, QueryError

MODEL, MANIFEST = ModelId("austen"), "ab" * 32
PATIENCE_S = 10.0


@dataclass
class Office:
    """A bookkeeper that answers two questions, and whoever beats on the bus."""

    bus: MemoryBus
    network: NetworkReply
    members: MembersReply
    asked: list[str] = field(default_factory=list)
    service: Service = field(init=False)

    async def answer(self, message: Message) -> bytes:
        what = message.subject.rsplit(".", 1)[1]
        self.asked.append(what)
        return (self.network if what == "network" else self.members).canonical()

    async def beat(self, beat: Heartbeat, key: Key, *, subject: str = "", kind: str = HEARTBEAT_KIND) -> None:
        raw = sign(beat, kind, beat.node, key).canonical()
        await self.bus.publish(subject or subjects.heartbeat(NodeId(beat.node)), raw)


@pytest.fixture
def replies(keys: dict[str, Key], event_examples: dict[str, Fact], tools: Any) -> tuple[NetworkReply, MembersReply]:
    founded: Any = event_examples["network.founded.v1"]
    network = NetworkReply(
        network="sawyer-net/3f9a1c22", ledger_vkey=founded.ledger_vkey, operator=founded.operator, successors=(),
        mode="test", models=(event_examples["model.published.v1"],), size=5, checkpoint="a signed note", now_ms=1,
    )  # fmt: skip
    nodes = tuple(tools.registered(node, keys[node].id) for node in ("node-a", "node-b"))
    return network, MembersReply(nodes=nodes, routers=(), seq=5)


@pytest.fixture
async def office(replies: tuple[NetworkReply, MembersReply]) -> AsyncIterator[Office]:
    made = Office(MemoryBus(MemoryNetwork()), *replies)
    refuse = lambda error: QueryError(error=ErrorBody.of(error)).canonical()  # noqa: E731
    made.service = Service(made.bus, "sawyer.v1.query.*", made.answer, refuse, limit=8)
    await made.service.start()
    yield made
    await made.service.stop()


@pytest.fixture
async def directory(office: Office, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Directory]:
    monkeypatch.setattr(module, "MEMBERS_EVERY_S", 0.0)
    made = Directory(MemoryBus(office.bus._network), MODEL, MANIFEST)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def fence(office: Office, directory: Directory, keys: dict[str, Key], tools: Any) -> Callable[[], Awaitable[None]]:
    """Returns when the directory has worked off all beats before: node-b's next one is taken in."""
    sent = 100

    async def passed() -> None:
        nonlocal sent
        sent += 1
        directory.changed.clear()
        await office.beat(tools.heartbeat("node-b", (5,), beat=sent), keys["node-b"])
        async with asyncio.timeout(PATIENCE_S):
            while NodeId("node-b") not in directory.placement.nodes or (
                directory.placement.nodes[NodeId("node-b")].last_beat < sent
            ):
                await directory.changed.wait()
                directory.changed.clear()

    return passed


def chosen(directory: Directory, expert: int) -> str | None:
    return directory.placement.choose(2, expert, frozenset(), asyncio.get_running_loop().time())


async def test_members_beat_counts(
    office: Office, directory: Directory, keys: dict[str, Key], tools: Any, fence: Callable[[], Awaitable[None]]
) -> None:
    await office.beat(tools.heartbeat("node-a", (0,)), keys["node-a"])
    await fence()
    assert chosen(directory, 0) == "node-a"
    assert directory.placement.nodes[NodeId("node-a")].host == "host-of-node-a"
    assert directory.network == office.network
    assert office.asked.count("members") == 1, "known members are not asked for again"


@pytest.mark.parametrize(
    "attack",
    [
        "stranger", "wrong key", "claimed key", "other subject", "other network", "other kind", "changed body",
        "not canonical", "garbage", "empty",
    ],
)  # fmt: skip
async def test_beat_that_is_not_a_members_own_is_ignored(
    office: Office, directory: Directory, keys: dict[str, Key], tools: Any, fence: Callable[[], Awaitable[None]],
    attack: str,
) -> None:  # fmt: skip
    beat, subject = tools.heartbeat("node-a", (0,)), subjects.heartbeat(NodeId("node-a"))
    honest = sign(beat, HEARTBEAT_KIND, "node-a", keys["node-a"])
    match attack:
        case "stranger":
            await office.beat(tools.heartbeat("node-x", (0,)), keys["mallory"])
        case "wrong key":
            await office.beat(beat, keys["mallory"])
        case "claimed key":
            forged = sign(beat, HEARTBEAT_KIND, "node-a", keys["mallory"])
            claim = forged.signature.changed(key_id=keys["node-a"].id)
            await office.bus.publish(subject, forged.changed(signature=claim).canonical())
        case "other subject":
            await office.beat(beat, keys["node-a"], subject=subjects.heartbeat(NodeId("node-b")))
        case "other network":
            await office.beat(tools.heartbeat("node-a", (0,), network="other-net/3f9a1c22"), keys["node-a"])
        case "other kind":
            await office.beat(beat, keys["node-a"], kind="work.receipted.v1")
        case "changed body":
            changed = honest.changed(body=beat.model_copy(update={"beat": 50}))
            await office.bus.publish(subject, changed.canonical())
        case "not canonical":
            await office.bus.publish(subject, b" " + honest.canonical())
        case "garbage" | "empty":
            await office.bus.publish(subject, b"garbage" if attack == "garbage" else b"")
    await fence()
    assert chosen(directory, 0) is None
    assert set(directory.placement.nodes) <= {"node-a", "node-b"}
    await office.beat(beat, keys["node-a"])
    await fence()
    assert chosen(directory, 0) == "node-a", "the honest beat counts after it"


async def test_replayed_beat_does_not_bring_an_old_word_back(
    office: Office, directory: Directory, keys: dict[str, Key], tools: Any, fence: Callable[[], Awaitable[None]]
) -> None:
    old, new = tools.heartbeat("node-a", (0,), beat=1), tools.heartbeat("node-a", (0,), beat=2, draining=True)
    for beat in (old, new, old):
        await office.beat(beat, keys["node-a"])
    await fence()
    assert chosen(directory, 0) is None


@pytest.fixture
async def called(office: Office, directory: Directory) -> asyncio.Event:
    """Set when the directory calls the roll again."""
    heard = asyncio.Event()
    await office.bus.subscribe(subjects.roll_call(), lambda _: heard.set())
    return heard


async def test_newcomer_that_registers_later_is_met_and_called(
    office: Office, directory: Directory, keys: dict[str, Key], tools: Any, fence: Callable[[], Awaitable[None]],
    called: asyncio.Event,
) -> None:  # fmt: skip
    newcomer = tools.heartbeat("node-c", (0,))
    await office.beat(newcomer, keys["alice"])
    await fence()
    assert (chosen(directory, 0), called.is_set()) == (None, False)
    nodes = (*office.members.nodes, tools.registered("node-c", keys["alice"].id))
    office.members = office.members.model_copy(update={"nodes": nodes})
    await office.beat(newcomer, keys["alice"])
    await asyncio.wait_for(called.wait(), PATIENCE_S)
    await office.beat(newcomer, keys["alice"])
    await fence()
    assert chosen(directory, 0) == "node-c"


async def test_bookkeeper_that_is_away_delays_a_newcomer_and_nobody_else(
    office: Office, directory: Directory, keys: dict[str, Key], tools: Any, fence: Callable[[], Awaitable[None]],
    called: asyncio.Event, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    newcomer = tools.heartbeat("node-c", (0,))
    nodes = (*office.members.nodes, tools.registered("node-c", keys["alice"].id))
    office.members = office.members.model_copy(update={"nodes": nodes})
    await office.service.stop()
    await office.beat(newcomer, keys["alice"])
    await fence()
    for _ in range(10):
        await asyncio.sleep(0)
    assert "cannot learn who is a member" in caplog.text
    assert chosen(directory, 5) == "node-b", "a member's beat counts all the while"
    await office.service.start()
    await office.beat(newcomer, keys["alice"])
    await asyncio.wait_for(called.wait(), PATIENCE_S)
    await office.beat(newcomer, keys["alice"])
    await fence()
    assert chosen(directory, 0) == "node-c"


async def test_oversized_beat_is_not_even_read(
    office: Office, directory: Directory, keys: dict[str, Key], tools: Any, fence: Callable[[], Awaitable[None]]
) -> None:
    huge = tools.heartbeat("node-a", range(module.MAX_HEARTBEAT_BYTES // 2))
    await office.beat(huge, keys["node-a"])
    await fence()
    assert chosen(directory, 0) is None


async def test_router_with_other_weights_or_another_model_does_not_start(office: Office) -> None:
    bus = MemoryBus(office.bus._network)
    with pytest.raises(WrongManifest, match="cdcd"):
        await Directory(bus, MODEL, "cd" * 32).start()
    with pytest.raises(UnknownModel, match="mixtral-8x7b"):
        await Directory(bus, ModelId("mixtral-8x7b"), MANIFEST).start()


async def test_directory_without_a_bookkeeper_says_so() -> None:
    with pytest.raises(NobodyServes):
        await Directory(MemoryBus(MemoryNetwork()), MODEL, MANIFEST).start()


async def test_refresh_takes_new_prices(office: Office, directory: Directory, event_examples: dict[str, Fact]) -> None:
    assert directory.network is not None
    assert directory.network.pricing is None
    sheet = event_examples["pricing.published.v1"]
    office.network = office.network.model_copy(update={"pricing": sheet})
    assert (await directory.refresh()).pricing == sheet
    assert directory.network.pricing == sheet
