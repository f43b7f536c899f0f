"""What a node that joins finds out: who really serves what, whatever others say on the bus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from sawyer.bus.calls import ask, record
from sawyer.bus.connection import NatsBus
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.ids import NodeId
from sawyer.ledger.commands import command
from sawyer.node import survey as module
from sawyer.node.survey import Survey, look
from sawyer.schemas import subjects
from sawyer.schemas.events import NodeRegistered
from sawyer.schemas.messages import HEARTBEAT_KIND, Heartbeat, HostedLayer, NetworkReply


@pytest.fixture
async def registered(founded) -> Callable[..., object]:
    """`await registered("attic", host)` is the key of a node that the book knows."""

    async def enter(name: str, host: str) -> Key:
        key = Key.generate("U")
        body = NodeRegistered(
            network=founded.network, node=name, host=host, key=key.id, device="test", memory_mb=1, promised_us=0
        )
        await record(founded.bus, command(body, name, key))
        return key

    return enter


async def surveyed(founded, me: str = "newcomer") -> Survey:
    network = await ask(founded.bus, "network", NetworkReply)
    return await look(founded.bus, network, founded.model, founded.artifacts.digest, me=NodeId(me))


async def answering(founded, *beats: tuple[str, bytes]) -> NatsBus:
    """Somebody who publishes these beats (subject, bytes) when the roll is called."""
    bus = await founded.connect("beats")
    tasks: set[asyncio.Task[None]] = set()

    async def publish() -> None:
        for subject, data in beats:
            await bus.publish(subject, data)

    await bus.subscribe(subjects.roll_call(), lambda _: tasks.add(asyncio.create_task(publish())))
    await bus.flush()
    return bus


def beat_of(founded, name: str, layers: tuple[HostedLayer, ...] | None = None, **changes: object) -> Heartbeat:
    made = founded.heartbeat(name, 1)
    if layers is not None:
        made = made.model_copy(update={"models": (made.models[0].model_copy(update={"layers": layers}),)})
    return made.model_copy(update=changes)


def signed(beat: Heartbeat, key: Key, kind: str = HEARTBEAT_KIND) -> tuple[str, bytes]:
    return subjects.heartbeat(NodeId(beat.node)), sign(beat, kind, beat.node, key).canonical()


async def test_network_without_router_and_nodes_serves_nothing(founded):
    seen = await surveyed(founded)
    assert (seen.beats, seen.routers) == ({}, ())
    assert seen.served(founded.artifacts.layout, founded.artifacts.digest) == {}


async def test_real_nodes_are_seen_by_host_first_choice_and_replica(network):
    seen = await surveyed(network)
    served = seen.served(network.artifacts.layout, network.artifacts.digest)
    assert len(served) == 32
    for each in served.values():
        assert (each.hosts, each.nodes, each.first) == ({"host-of-node-1", "host-of-node-2"}, 2, 1)
    assert [router.router for router in seen.routers] == ["router-1"]


async def test_word_of_the_network_that_is_old_leaves_beats_fresh(network):
    """Between the two a machine is measured, which takes seconds."""
    told = await ask(network.bus, "network", NetworkReply)
    old = told.model_copy(update={"now_ms": told.now_ms - 2 * module.FRESH_MS})
    seen = await look(network.bus, old, network.model, network.artifacts.digest)
    assert set(seen.beats) == {"node-1", "node-2"}


async def test_own_earlier_life_does_not_count(network):
    seen = await surveyed(network, me="node-1")
    assert set(seen.beats) == {"node-2"}


async def test_two_nodes_of_one_host_are_one_host(founded, registered):
    layers = (HostedLayer(layer=0, first=(3,), replica=()),)
    beats = [
        signed(beat_of(founded, name, layers), await registered(name, "ann")) for name in ("attic", "cellar")
    ]  # fmt: skip
    await answering(founded, *beats)
    served = (await surveyed(founded)).served(founded.artifacts.layout, founded.artifacts.digest)
    assert {pair: (set(each.hosts), each.nodes, each.first) for pair, each in served.items()} == {
        (0, 3): ({"ann"}, 2, 2)
    }


@pytest.mark.parametrize(
    "attack",
    ["stranger", "wrong key", "other subject", "other network", "other kind", "old", "other weights", "draining",
     "garbage", "too long"],
)  # fmt: skip
async def test_beat_that_is_not_a_live_members_own_does_not_count(founded, registered, monkeypatch, attack):
    monkeypatch.setattr(module, "LISTEN_S", 0.5)
    key, mallory = await registered("attic", "ann"), Key.generate("U")
    honest = beat_of(founded, "attic")
    model = honest.models[0]
    subject, data = signed(honest, key)
    match attack:
        case "stranger":
            beat = signed(beat_of(founded, "nobody"), mallory)
        case "wrong key":
            beat = signed(honest, mallory)
        case "other subject":
            beat = (subjects.heartbeat(NodeId("cellar")), data)
        case "other network":
            beat = signed(honest.model_copy(update={"network": "sawyer-net/00000000"}), key)
        case "other kind":
            beat = signed(honest, key, "work.receipted.v1")
        case "old":
            beat = signed(honest.model_copy(update={"at_ms": honest.at_ms - module.FRESH_MS - 1000}), key)
        case "other weights":
            other = model.model_copy(update={"manifest": "cd" * 32})
            beat = signed(honest.model_copy(update={"models": (other,)}), key)
        case "draining":
            beat = signed(honest.model_copy(update={"draining": True}), key)
        case "garbage":
            beat = (subject, b"garbage")
        case _:
            beat = (subject, data + b" " * module.MAX_BEAT_BYTES)
    witness = await registered("cellar", "bob")
    await answering(founded, beat, signed(beat_of(founded, "cellar"), witness))
    seen = await surveyed(founded)
    assert set(seen.beats) == {"cellar"}, "the honest beat after it counts, and it does not"


async def test_word_to_drain_outlasts_an_older_beat_that_is_replayed(founded, registered, monkeypatch):
    monkeypatch.setattr(module, "LISTEN_S", 0.5)
    key, witness = await registered("attic", "ann"), await registered("cellar", "bob")
    old, new = beat_of(founded, "attic"), beat_of(founded, "attic", draining=True, beat=2)
    beats = [signed(old, key), signed(new, key), signed(old, key), signed(beat_of(founded, "cellar"), witness)]
    await answering(founded, *beats)
    assert set((await surveyed(founded)).beats) == {"cellar"}


async def test_experts_that_the_model_does_not_have_are_left_out(founded, registered):
    layers = (HostedLayer(layer=0, first=(7, 8, 999), replica=()), HostedLayer(layer=99, first=(0,), replica=()))
    await answering(founded, signed(beat_of(founded, "attic", layers), await registered("attic", "ann")))
    served = (await surveyed(founded)).served(founded.artifacts.layout, founded.artifacts.digest)
    assert set(served) == {(0, 7)}
