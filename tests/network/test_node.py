"""A node in a network: it is found, it measures its way, it serves alone under its name, and says why it will not."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from nats.micro.service import ServiceInfo, ServicePing, ServiceStats

from sawyer.bus.discovery import NODE, ROUTER
from sawyer.clock import ManualClock, SystemClock
from sawyer.engine.experts import FAST
from sawyer.errors import ClockWrong, NameTaken, RefusedError, SawyerError
from sawyer.identity.keys import load_or_create
from sawyer.ids import HostId, NodeId, RequestId
from sawyer.model.catalog import DEMO_MODEL
from sawyer.model.files import FilesHere
from sawyer.node.agent import Hosting, NodeAgent
from sawyer.node.hosting import parse_experts, share
from sawyer.node.receipts import ReceiptLog
from sawyer.node.registration import NodeIdentity
from sawyer.schemas import subjects, tensors
from sawyer.schemas.base import parse_as
from sawyer.schemas.messages import Heartbeat, MembersReply
from sawyer.schemas.signed import Signed

DAY_MS = 86_400_000
PATIENCE_S = 20.0


async def new_agent(network, name: str, *, clock=None, key=None, layers=None) -> NodeAgent:
    """A node that was not started, in the network's home."""
    file, node = network.home.node_key(name), NodeId(name)
    me = NodeIdentity(node, HostId(name), key) if key else NodeIdentity.open(node, HostId(name), file)
    layers = layers or share(network.artifacts.layout, 0, 1)
    hosting = Hosting(FilesHere(network.artifacts), layers, "cpu", 1, FAST)
    receipts = ReceiptLog(network.network, me.node, me.key, network.home.path / "receipts" / f"{name}.json")
    return NodeAgent(await network.connect(name), me, hosting, receipts, clock or SystemClock(), "1.2.3")


async def heartbeats(network, name: str) -> asyncio.Queue[Heartbeat]:
    """What the node says of itself from now on."""
    heard: asyncio.Queue[Heartbeat] = asyncio.Queue()

    def take(message) -> None:
        heard.put_nowait(parse_as(Signed[Heartbeat], message.data).body)

    await network.bus.subscribe(subjects.heartbeat(NodeId(name)), take)
    await network.bus.flush()
    return heard


async def members(network) -> set[str]:
    raw = await network.bus.request(subjects.query("members"), b"", 5)
    return {node.node for node in MembersReply.model_validate_json(raw).nodes}


async def ask(network, verb: str, *named: str) -> dict:
    return json.loads(await network.bus.request(subjects.discovery(verb, *named), b"", 5))


# --- what it tells ----------------------------------------------------------------------------------------------------


async def test_node_tells_what_it_measured_and_that_joined_rows_took_fewer_runs(founded, monkeypatch):
    monkeypatch.setattr("sawyer.node.capability.WAY_RETRY_S", 0.05)
    heard = await heartbeats(founded, "node-1")
    await founded.start("node-1", (agent := await new_agent(founded, "node-1"))._bus, agent)
    first = await heard.get()
    assert first.models[0].row_us > 0
    assert first.models[0].rows_per_second > 0
    assert (first.vitals.runs, first.vitals.round_trip_us, first.vitals.kilobytes_per_second) == (0, 0, 0)
    await founded.add_router()
    async with founded.client() as client:
        await client.generate("It was a", model=DEMO_MODEL, max_tokens=4)
    async with asyncio.timeout(PATIENCE_S):
        while not ((beat := await heard.get()).vitals.round_trip_us and beat.vitals.runs):
            pass
    assert beat.vitals.kilobytes_per_second > 0
    assert beat.vitals.provider == "CPUExecutionProvider"
    assert beat.vitals.threads == 1
    assert 0 < beat.vitals.runs <= beat.vitals.rows
    assert (beat.instance, beat.started_ms) == (first.instance, first.started_ms)
    assert agent.summary == "node-1 serves 32 experts of austen-8m (q4) on CPU, 1 thread, for node-1"


async def test_network_is_found_by_the_tools_of_nats(network):
    async with network.client() as client:
        await client.generate("It was a", model=DEMO_MODEL, max_tokens=4)
    for name in ("node-1", "node-2"):
        ping = ServicePing.from_dict(await ask(network, "PING", NODE, name))
        assert ping.metadata["model"] == DEMO_MODEL
        assert ping.metadata["provider"] == "CPUExecutionProvider"
        assert ping.metadata["host"] == f"host-of-{name}"
    experts, finish = ServiceStats.from_dict(await ask(network, "STATS", NODE, "node-1")).endpoints
    assert experts.subject == subjects.experts_of(NodeId("node-1"), DEMO_MODEL)
    assert experts.num_requests > 0
    assert experts.processing_time > 0
    assert experts.data["rows"] > 0
    assert finish.num_requests == 1
    info = ServiceInfo.from_dict(await ask(network, "INFO", ROUTER, "router-1"))
    assert [each.name for each in info.endpoints] == ["infer", "status", "echo"]
    infer = ServiceStats.from_dict(await ask(network, "STATS", ROUTER)).endpoints[0]
    assert (infer.num_requests, infer.num_errors, infer.queue_group) == (1, 0, "routers")


async def test_router_echoes_up_to_256_kibibytes(network):
    body = bytes(256 * 1024)
    assert await network.bus.request(subjects.echo(DEMO_MODEL), body, 5) == body
    assert await network.bus.request(subjects.echo(DEMO_MODEL), body + b"x", 5) != body + b"x"


async def test_nodes_with_chosen_experts_serve_together_exactly_what_one_serves_alone(founded):
    layout = founded.artifacts.layout
    for name, experts in (("node-1", "0:*,1:0-3"), ("node-2", "1:4-7,2-3:*")):
        agent = await new_agent(founded, name, layers=parse_experts(experts, layout))
        await founded.start(name, agent._bus, agent)
    assert agent.summary == "node-2 serves 20 experts of austen-8m (q4) on CPU, 1 thread, for node-2"
    await founded.add_router()
    async with founded.client() as client:
        split = await client.generate("Emma was", model=DEMO_MODEL, max_tokens=8)
        await founded.add_node("node-3", 0, 1)
        await founded.parts["node-1"].stop()
        await founded.parts["node-2"].stop()
        await founded.router_sees("node-3")
        whole = await client.generate("Emma was", model=DEMO_MODEL, max_tokens=8)
    assert {node.node for node in split.usage.nodes} == {"node-1", "node-2"}
    assert split.ids == whole.ids


# --- one name, one process --------------------------------------------------------------------------------------------


async def test_second_process_under_one_name_is_refused_before_it_serves(network):
    first = network.parts["node-1"].part
    with pytest.raises(NameTaken, match=f"node-1 is served by another process already .instance {first._instance[:8]}"):
        await (await new_agent(network, "node-1")).run()
    async with network.client() as client:
        assert (await client.generate("It was a", model=DEMO_MODEL, max_tokens=4)).ids
    assert not network.parts["node-1"].task.done()


async def test_node_that_vanished_is_replaced_at_once(network):
    await network.parts["node-1"].vanish()
    agent = await new_agent(network, "node-1")
    await network.start("node-1", agent._bus, agent)
    assert (await ask(network, "PING", NODE, "node-1"))["metadata"]["instance"] == agent._instance


async def test_of_two_that_did_not_see_each_other_start_the_later_ends(founded, monkeypatch):
    first = await new_agent(founded, "node-1")
    await founded.start("first", first._bus, first)
    later = SystemClock().now_ms() + 1000
    second = await new_agent(founded, "node-1", clock=ManualClock(later))

    async def nothing_seen(_) -> None:
        """As if both had asked before either answered."""

    monkeypatch.setattr("sawyer.node.namesake.Namesakes.refuse_second", nothing_seen)
    running = asyncio.create_task(second.run())
    with pytest.raises(NameTaken):
        async with asyncio.timeout(PATIENCE_S):
            await running
    assert not founded.parts["first"].task.done()
    assert (await ask(founded, "PING", NODE, "node-1"))["metadata"]["instance"] == first._instance


@pytest.mark.parametrize("ahead_ms", [4 * 60_000, -4 * 60_000], ids=["ahead", "behind"])
async def test_newcomer_is_refused_whatever_its_clock_says(network, ahead_ms):
    skewed = ManualClock(SystemClock().now_ms() + ahead_ms)
    with pytest.raises(NameTaken):
        await (await new_agent(network, "node-1", clock=skewed)).run()


@pytest.mark.parametrize("ahead_ms", [4 * 60_000, -4 * 60_000], ids=["ahead", "behind"])
async def test_who_came_first_is_not_told_by_the_clocks_of_two_machines(founded, monkeypatch, ahead_ms):
    async def nothing_seen(_) -> None:
        """As if the first had not answered in time."""

    monkeypatch.setattr("sawyer.node.namesake.Namesakes.refuse_second", nothing_seen)
    first = await new_agent(founded, "node-1", clock=ManualClock(SystemClock().now_ms() - ahead_ms))
    await founded.start("first", first._bus, first)
    second = await new_agent(founded, "node-1", clock=ManualClock(SystemClock().now_ms() + ahead_ms))
    with pytest.raises(NameTaken):
        async with asyncio.timeout(PATIENCE_S):
            await second.run()
    assert not founded.parts["first"].task.done()


# --- what it cannot go on without -------------------------------------------------------------------------------------


async def no_more(*_) -> None:
    raise ValueError("secret internals")


BREAK = {
    "runs the experts": lambda agent, patch: patch.setattr(agent._serving, "_answer", no_more),
    "sends heartbeats": lambda agent, patch: patch.setattr(agent, "_send_heartbeat", no_more),
    "measures the way": lambda agent, patch: patch.setattr(agent._way, "_measure", no_more),
    "keeps the time": lambda agent, patch: patch.setattr(agent._time, "ask", no_more),
}


@pytest.mark.parametrize("task", BREAK)
async def test_node_that_lost_a_task_it_needs_ends_with_an_error(founded, monkeypatch, task):
    monkeypatch.setattr("sawyer.node.capability.WAY_RETRY_S", 0.05)
    monkeypatch.setattr("sawyer.node.agent.TIME_EVERY_S", 0.05)
    running = await founded.start("node-1", (agent := await new_agent(founded, "node-1"))._bus, agent)
    with monkeypatch.context() as patch:
        BREAK[task](agent, patch)
        if task == "runs the experts":
            await founded.bus.publish(subjects.expert(NodeId("node-1"), DEMO_MODEL, 0, 0), expert_request(founded), "x")
        with pytest.raises(SawyerError, match=rf"what {task} ended \(ValueError\)") as error:
            async with asyncio.timeout(PATIENCE_S):
                await running.task
    assert error.value.exit_code == 1
    assert "secret" not in str(error.value)


def expert_request(network) -> bytes:
    """One row for expert 0 of layer 0."""
    artifacts = network.artifacts
    return tensors.encode_request(
        tensors.ActivationRequest(
            (tensors.Part(RequestId("0f" * 16), 1, 1),), bytes.fromhex(artifacts.digest)[:8], 0,
            np.zeros((1, artifacts.layout.hidden), np.float32), ((0, np.zeros(1, np.uint32)),), 60_000,
        )
    )  # fmt: skip


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("off_ms", "direction"), [(DAY_MS, "ahead of"), (-DAY_MS, "behind")])
async def test_node_whose_clock_is_a_day_off_registers_nothing_and_says_so(founded, off_ms, direction):
    clock = ManualClock(SystemClock().now_ms() + off_ms)
    with pytest.raises(ClockWrong, match=direction):
        await (await new_agent(founded, "node-1", clock=clock)).run()
    assert await members(founded) == set()
    assert not founded.home.node_key("node-1").exists()


async def test_name_of_another_key_is_refused_and_leaves_no_key_behind(founded):
    await founded.add_node("node-1", 0, 1)
    await founded.parts["node-1"].stop()
    founded.home.node_key("node-1").rename(founded.home.node_key("kept"))
    with pytest.raises(RefusedError):
        await (await new_agent(founded, "node-1")).run()
    assert not founded.home.node_key("node-1").exists()
    assert await members(founded) == {"node-1"}


async def test_first_start_keeps_the_key_that_the_book_knows(founded):
    agent = await new_agent(founded, "node-1")
    await founded.start("node-1", agent._bus, agent)
    assert load_or_create(founded.home.node_key("node-1")).id == agent._me.key.id
    assert await members(founded) == {"node-1"}
