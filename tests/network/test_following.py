"""A node that chose its experts itself takes on a hot one while texts are written: warm, told of, and asked."""

from __future__ import annotations

import asyncio

from sawyer.clock import SystemClock
from sawyer.engine.experts import FAST
from sawyer.identity.keys import load_or_create
from sawyer.ids import HostId, NodeId
from sawyer.model.files import FilesHere
from sawyer.node import agent, following
from sawyer.node.agent import Hosting, NodeAgent, NodeIdentity
from sawyer.node.receipts import ReceiptLog
from sawyer.schemas.messages import HostedLayer

NAME = "node-3"


async def add_follower(network, layers, follows):
    me = NodeIdentity(NodeId(NAME), HostId("maria"), load_or_create(network.home.node_key(NAME)))
    hosting = Hosting(FilesHere(network.artifacts), layers, "cpu", 1, FAST, None, follows)
    receipts = ReceiptLog(network.network, me.node, me.key, network.home.path / "receipts" / f"{NAME}.json")
    node = NodeAgent(await network.connect(NAME), me, hosting, receipts, SystemClock(), "test")
    await network.start(NAME, node._bus, node)
    return node


async def test_node_moves_to_a_hot_expert_and_gives_up_a_cold_one_and_no_text_changes(network, monkeypatch):
    monkeypatch.setattr(agent, "GIVE_UP_S", 0.0)
    for name, value in {"LEAST_ROWS": 1, "HOT": 1.0, "COLD": 10.0}.items():
        monkeypatch.setattr(following, name, value)
    node = await add_follower(network, (HostedLayer(layer=0, first=(), replica=(0, 1)),), 2)
    follower = node._follower(network.network)
    placement = network.parts["router-1"].part._directory.placement
    async with network.client() as client:
        assert await follower.look() is None
        expected = await client.generate("It was a", model=network.model, max_tokens=30)
        made = await follower.look()
        assert made is not None
        assert made.give_up in {(0, 0), (0, 1)}
        assert set(node._pool.hosted) == {(0, 0), (0, 1), made.adopt} - {made.give_up}
        assert node._pool.is_loaded(*made.adopt), "warm before anybody asks"
        await _seen(network, made.adopt)
        fastest = placement.nodes[NAME]
        fastest.latency_us, fastest.measured_s = 0.0, asyncio.get_running_loop().time() + 60
        answer = await client.generate("It was a", model=network.model, max_tokens=30)
    assert answer.ids == expected.ids
    assert NAME in {each.node for each in answer.usage.nodes if each.receipted}
    assert (await network.audit()).ok


async def _seen(network, pair):
    directory = network.parts["router-1"].part._directory
    while pair not in directory.placement.nodes[NAME].replica:
        directory.changed.clear()
        await directory.changed.wait()
