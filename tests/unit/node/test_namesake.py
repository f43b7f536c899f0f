"""One name, one process: proven by heartbeats that only our key can sign, and by nothing less."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import pytest

from sawyer.bus.discovery import NODE, About, Discovery
from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.protocol import Message
from sawyer.errors import NameTaken
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.ids import NodeId
from sawyer.node import namesake
from sawyer.node.namesake import BEATS_LIMIT, Instance, Namesakes
from sawyer.schemas import subjects
from sawyer.schemas.messages import HEARTBEAT_KIND, Heartbeat, Vitals
from sawyer.schemas.signed import Signed

NETWORK = "sawyer-net/3f9a1c22"
NODE_A = NodeId("node-a")
STARTED_MS = 1_700_000_000_000
PATIENCE_S = 10.0
VITALS = Vitals(
    version="1", provider="CPU", device="x", threads=1, memory_total_mb=1, memory_free_mb=1, loaded=0,
    loads=0, drops=0, queue=0, answers=0, refused=0, rows=0, runs=0, latency_p50_us=0, latency_p95_us=0,
    rows_per_second=0, round_trip_us=0, kilobytes_per_second=0,
)  # fmt: skip
OTHER = Heartbeat(
    network=NETWORK, node=NODE_A, at_ms=STARTED_MS + 5, beat=9, instance="0b" * 16, started_ms=STARTED_MS - 60_000,
    models=(), draining=False, vitals=VITALS,
)  # fmt: skip


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
def me(keys: dict[str, Key]) -> Instance:
    return Instance(NETWORK, NODE_A, keys["node-a"].id, "0a" * 16, STARTED_MS)


@pytest.fixture
async def watch(network: MemoryNetwork, me: Instance) -> AsyncIterator[Namesakes]:
    made = Namesakes(MemoryBus(network), me)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def other(network: MemoryNetwork, keys: dict[str, Key]) -> AsyncIterator[Other]:
    made = Other(MemoryBus(network), keys["node-a"])
    await made.start()
    yield made
    await made.discovery.stop()


@dataclasses.dataclass
class Other:
    """Another process that serves under our name: answers discovery, and beats when the roll is called."""

    bus: MemoryBus
    key: Key
    beat: Heartbeat | None = OTHER

    async def start(self) -> None:
        self.discovery = Discovery(self.bus, About(NODE, NODE_A, "1.0.0", STARTED_MS), [])
        await self.discovery.start()
        self.said: set[asyncio.Task[None]] = set()
        await self.bus.subscribe(subjects.roll_call(), lambda _: self.said.add(asyncio.create_task(self.say())))

    async def say(self, **changes: object) -> None:
        if self.beat is not None:
            await say(self.bus, self.beat.model_copy(update=changes), self.key)


async def say(bus: MemoryBus, beat: Heartbeat, key: Key) -> None:
    signed: Signed[Heartbeat] = sign(beat, HEARTBEAT_KIND, NODE_A, key)
    await bus.publish(subjects.heartbeat(NODE_A), signed.canonical())


async def test_name_that_nobody_serves_is_free_at_once(watch: Namesakes) -> None:
    await watch.refuse_second()


async def test_name_that_another_process_serves_is_refused_naming_it(watch: Namesakes, other: Other) -> None:
    with pytest.raises(
        NameTaken, match=r"node-a is served by another process already \(instance 0b0b0b0b, since 2023-"
    ):
        await watch.refuse_second()


async def test_process_that_is_frozen_counts_as_dead(
    watch: Namesakes, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namesake, "PING_TIMEOUT_S", 0.01)
    heard: list[Message] = []
    await MemoryBus(network).subscribe(subjects.discovery("PING", NODE, NODE_A), heard.append)
    await watch.refuse_second()
    assert len(heard) == 1


@pytest.mark.parametrize(
    "lie",
    [
        None,
        {"at_ms": STARTED_MS - 1},  # in the bookkeeper's time: replayed, or of a process that is gone
        {"network": "sawyer-net/00000000"},
        {"node": "node-b"},
        {"instance": "0a" * 16},  # our own words
    ],
    ids=["silence", "an old heartbeat", "another network", "another node", "our own heartbeat"],
)
async def test_whoever_answers_without_a_fresh_heartbeat_by_our_key_cannot_keep_us_from_serving(
    watch: Namesakes, other: Other, lie: dict[str, object] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namesake, "PROOF_TIMEOUT_S", 0.05)
    other.beat = None if lie is None else OTHER.model_copy(update=lie)
    await watch.refuse_second()


async def test_heartbeat_by_a_foreign_key_proves_nothing(
    watch: Namesakes, other: Other, keys: dict[str, Key], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namesake, "PROOF_TIMEOUT_S", 0.05)
    other.key = keys["mallory"]
    await watch.refuse_second()


async def test_forged_heartbeats_do_not_crowd_out_the_one_that_counts(
    watch: Namesakes, network: MemoryNetwork, keys: dict[str, Key], caplog: pytest.LogCaptureFixture
) -> None:
    bus = MemoryBus(network)
    for _ in range(3 * BEATS_LIMIT):
        await say(bus, OTHER, keys["mallory"])
    await say(bus, OTHER, keys["node-a"])
    with pytest.raises(NameTaken):
        async with asyncio.timeout(PATIENCE_S):
            await watch.refuse_later()
    assert len(caplog.messages) == 1, "a flood fills no log"


@pytest.mark.parametrize(
    "earlier", [{"started_ms": STARTED_MS - 1}, {"started_ms": STARTED_MS, "instance": "09" * 16}], ids=["time", "tie"]
)
async def test_while_serving_the_process_that_started_later_ends(
    watch: Namesakes, network: MemoryNetwork, keys: dict[str, Key], earlier: dict[str, object]
) -> None:
    watching = asyncio.create_task(watch.refuse_later())
    bus = MemoryBus(network)
    for garbage in (b"", b"{}", b"\xff" * 100, b"{" * 300_000):
        await bus.publish(subjects.heartbeat(NODE_A), garbage)
    for later in ({"started_ms": STARTED_MS + 1}, {"started_ms": STARTED_MS, "instance": "0c" * 16}):
        await say(bus, OTHER.model_copy(update=later), keys["node-a"])
    await say(bus, OTHER.model_copy(update=earlier), keys["node-a"])
    with pytest.raises(NameTaken):
        await asyncio.wait_for(watching, PATIENCE_S)
