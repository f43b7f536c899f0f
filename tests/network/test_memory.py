"""Nodes that cannot load all they serve: the same answers and receipts, whatever memory does meanwhile."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterable

import pytest

from sawyer.bus.calls import ask
from sawyer.bus.discovery import NODE
from sawyer.clock import SystemClock
from sawyer.engine.experts import FAST
from sawyer.engine.footprint import expert_footprint
from sawyer.errors import ArtifactCorrupt, ExpertUnavailable
from sawyer.identity.keys import load_or_create
from sawyer.ids import HostId, NodeId
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import DEMO_MODEL
from sawyer.model.files import FilesHere
from sawyer.model.layout import expert_file
from sawyer.node.agent import Hosting, NodeAgent
from sawyer.node.hosting import share
from sawyer.node.memory import Memory, MiB
from sawyer.node.receipts import ReceiptLog
from sawyer.node.registration import NodeIdentity
from sawyer.schemas import subjects
from sawyer.schemas.messages import MembersReply

PROMPT, TOKENS = "It was a", 24
PLENTY, NONE = Memory(8000 * MiB, 8000 * MiB), Memory(8000 * MiB, 0)
PATIENCE_S = 20.0


async def add_node(network, name, *, experts=None, files=None, memory=lambda: PLENTY, part=(0, 1)) -> NodeAgent:
    """A node that has room for so many experts."""
    files = files or FilesHere(network.artifacts)
    artifacts = files.artifacts
    footprint = expert_footprint(artifacts.layout, artifacts.manifest.format, accuracy_level=FAST)
    limit_bytes = footprint.room_for(experts) if experts else None
    me = NodeIdentity(NodeId(name), HostId(f"host-of-{name}"), load_or_create(network.home.node_key(name)))
    hosting = Hosting(files, share(artifacts.layout, *part), "cpu", 1, FAST, limit_bytes)
    receipts = ReceiptLog(network.network, me.node, me.key, network.home.path / "receipts" / f"{name}.json")
    agent = NodeAgent(await network.connect(name), me, hosting, receipts, SystemClock(), "test", memory=memory)
    await network.start(name, agent._bus, agent)
    return agent


async def generate(network, **settings):
    async with network.client() as client:
        return await client.generate(PROMPT, model=DEMO_MODEL, max_tokens=TOKENS, **settings)


@pytest.fixture
async def expected(network) -> tuple[int, ...]:
    """What two nodes without limits make; then they are gone."""
    answer = await generate(network)
    for name in ("node-1", "node-2"):
        await network.parts[name].stop()
    return answer.ids


async def test_node_with_room_for_two_experts_serves_exactly_and_is_paid(network, expected):
    agent = await add_node(network, "small", experts=2)
    assert agent.summary == (
        "small serves 32 experts (2 of them in memory, the others on demand) of austen-8m (q4) on CPU, 1 thread, for "
        "host-of-small"
    )
    await network.router_sees("small")
    answer = await generate(network)
    assert answer.ids == expected
    counts = agent._pool.counts
    assert counts.loaded == 2
    assert counts.drops > 32
    assert agent._health.refused == 0
    vitals = agent._vitals()
    assert (vitals.loaded, vitals.loads, vitals.drops) == (2, counts.loads, counts.drops)
    told = json.loads(await network.bus.request(subjects.discovery("STATS", NODE, "small"), b"", 5))["endpoints"][0]
    assert [told["data"][name] for name in ("hosted", "loaded", "loads", "drops")] == [
        32,
        2,
        counts.loads,
        counts.drops,
    ]
    assert all(node.receipted for node in answer.usage.nodes)
    report = await network.audit()
    assert report.ok
    assert {host.host: host.rows for host in report.hosts}["host-of-small"] == answer.usage.nodes[0].rows


async def test_memory_that_runs_short_in_the_middle_fails_nothing(network, expected):
    now = [PLENTY]
    agent = await add_node(network, "node", memory=lambda: now[0])
    await network.router_sees("node")
    generating = asyncio.create_task(generate(network))
    looks = 0
    while not generating.done():
        now[0] = (NONE, PLENTY)[looks % 2]
        await agent._pressure.look(agent._pool)
        looks += 1
        await asyncio.wait({generating}, timeout=0.005)
    assert (await generating).ids == expected
    assert agent._health.refused == 0
    assert agent._pool.counts.drops > 0


class Elsewhere(FilesHere):
    """A copy of a model whose files can be wrong, and are replaced if `whole` is given."""

    def __init__(self, folder, artifacts: Artifacts) -> None:
        shutil.copytree(artifacts.folder, folder)
        super().__init__(Artifacts.open(folder))
        self.whole: Artifacts | None = artifacts
        self._from = artifacts

    def corrupt(self, path: str) -> None:
        raw = bytearray((self.artifacts.folder / path).read_bytes())
        raw[5000] ^= 1
        (self.artifacts.folder / path).write_bytes(raw)

    async def bring(self, paths: Iterable[str], *, suspect: bool = False) -> None:
        if self.whole is not None:
            for path in paths:
                shutil.copy(self.whole.folder / path, self.artifacts.folder / path)


async def test_files_that_turn_wrong_are_brought_again_and_the_answer_is_exact(network, expected, tmp_path):
    files = Elsewhere(tmp_path / "copy", network.artifacts)
    agent = await add_node(network, "node", experts=2, files=files)
    await network.router_sees("node")
    for layer in range(4):
        for expert in range(8):
            files.corrupt(expert_file(layer, expert, "q4"))
    assert (await generate(network)).ids == expected
    assert agent._health.refused == 0


async def test_expert_whose_file_stays_wrong_is_served_by_another_and_no_longer_promised(network, expected, tmp_path):
    files = Elsewhere(tmp_path / "copy", network.artifacts)
    broken = await add_node(network, "broken", experts=1, files=files)
    await network.router_sees("broken")
    files.whole = None
    for expert in range(1, 8):
        files.corrupt(expert_file(2, expert, "q4"))
    with pytest.raises(ExpertUnavailable, match="broken: artifact_corrupt"):
        await generate(network)
    assert broken._health.refused > 0
    wrong = broken._reader.broken
    assert wrong
    await add_node(network, "whole")
    await network.router_sees("whole")
    assert (await generate(network)).ids == expected
    layers = broken._heartbeat(network.network).models[0].layers
    promised = {(each.layer, expert) for each in layers for expert in each.first}
    assert promised.isdisjoint(wrong)
    assert len(promised) == 32 - len(broken._reader.broken)


async def test_file_that_is_wrong_from_the_start_stops_the_node_with_its_name(founded, tmp_path):
    files = Elsewhere(tmp_path / "copy", founded.artifacts)
    files.whole = None
    files.corrupt(expert_file(3, 7, "q4"))
    with pytest.raises(ArtifactCorrupt, match=r"experts/L3/E7\.q4\.bin: expected SHA-256"):
        await add_node(founded, "node", experts=1, files=files)


async def test_node_that_is_stopped_while_it_loads_reads_no_more_and_is_never_registered(founded, monkeypatch):
    read, agents = Artifacts.read_expert, []

    def stopped_after_three(self, layer, expert):
        count.append((layer, expert))
        if len(count) == 3:
            agents[0].stop()
        return read(self, layer, expert)

    count: list[tuple[int, int]] = []
    monkeypatch.setattr(Artifacts, "read_expert", stopped_after_three)
    me = NodeIdentity(NodeId("hasty"), HostId("ann"), load_or_create(founded.home.node_key("hasty")))
    hosting = Hosting(FilesHere(founded.artifacts), share(founded.artifacts.layout, 0, 1), "cpu", 1, FAST)
    receipts = ReceiptLog(founded.network, me.node, me.key, founded.home.path / "receipts" / "hasty.json")
    agents.append(NodeAgent(await founded.connect("hasty"), me, hosting, receipts, SystemClock(), "test"))
    served: list[str] = []
    await asyncio.wait_for(agents[0].run(lambda: served.append("ready")), PATIENCE_S)
    assert len(count) == 3
    assert served == []
    assert "hasty" not in {each.node for each in (await ask(founded.bus, "members", MembersReply)).nodes}
