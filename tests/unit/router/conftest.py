"""A router's dispatcher on a bus in memory, with nodes that do what a script says. Every expert is a formula that tells
by its values which expert computed which row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from virtual_time import VirtualLoop

from sawyer.bus.gather import Gatherer
from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.protocol import Message
from sawyer.errors import ExpertUnavailable
from sawyer.ids import HostId, ModelId, NodeId, RequestId
from sawyer.router.dispatch import Dispatcher, ExpertRows, LayerAnswers
from sawyer.router.metering import Meter
from sawyer.router.placement import NodeState, Placement
from sawyer.router.scope import RequestScope, Share
from sawyer.schemas import subjects, tensors
from sawyer.schemas.events import NodeRegistered
from sawyer.schemas.messages import Heartbeat, HostedLayer, HostedModel, Vitals
from sawyer.schemas.tensors import ActivationReply, ActivationRequest, Rows

MODEL, MANIFEST = ModelId("austen"), "ab" * 32
REQUEST = RequestId("0f" * 16)
LAYER = 2

Script = Callable[[ActivationRequest], bytes | Awaitable[bytes | None] | None]
"""What a node does with a request: the bytes of its answer, or silence."""


def formula(expert: int, rows: NDArray[Any]) -> NDArray[np.float32]:
    """What this expert makes of rows [n, H]: exact in float16 for small whole numbers."""
    return rows.astype(np.float32) * 2 + np.float32(expert + 1)


VITALS = Vitals(
    version="test", provider="rogue", device="rogue", threads=1, memory_total_mb=1, memory_free_mb=1, loaded=0,
    loads=0, drops=0, queue=0, answers=0, refused=0, rows=0, runs=0, latency_p50_us=0, latency_p95_us=0,
    rows_per_second=0, round_trip_us=0, kilobytes_per_second=0,
)  # fmt: skip


def reply_to(request: ActivationRequest, /, **changes: object) -> ActivationReply:
    """The honest answer, or one that differs in some fields."""
    dtype = np.float32 if request.reply_f32 else request.rows.dtype
    blocks = tuple((expert, formula(expert, request.rows[rows]).astype(dtype)) for expert, rows in request.work)
    made = ActivationReply(request.parts, request.manifest, request.layer, blocks, compute_us=5, waited_us=1)
    return replace(made, **changes)  # type: ignore[arg-type]


def honest(request: ActivationRequest) -> bytes:
    return tensors.encode_reply(reply_to(request))


def heartbeat(node: str, first: Iterable[int] = (), replica: Iterable[int] = (), **changes: Any) -> Heartbeat:
    """Of a node that hosts these experts of LAYER."""
    layer = HostedLayer(layer=LAYER, first=tuple(first), replica=tuple(replica))
    model = HostedModel(
        model=MODEL,
        manifest=changes.pop("manifest", MANIFEST),
        format="q4",
        layers=(layer,),
        row_us=1,
        rows_per_second=1,
    )
    made = Heartbeat(
        network="sawyer-net/3f9a1c22", node=node, at_ms=1, beat=1, instance="ab" * 16, started_ms=1, models=(model,),
        draining=False, vitals=VITALS,
    )  # fmt: skip
    return made.model_copy(update=changes)


def registered(node: str, key: str) -> NodeRegistered:
    return NodeRegistered(
        network="sawyer-net/3f9a1c22",
        node=node,
        host=f"host-of-{node}",
        key=key,
        device="test",
        memory_mb=1,
        promised_us=0,
    )


@dataclass
class FakeNode:
    """A node that keeps what it was asked."""

    name: NodeId
    state: NodeState
    bus: MemoryBus
    script: Script
    asked: list[ActivationRequest] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    reply_subjects: list[str] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def hear(self, message: Message) -> None:
        request = tensors.decode_request(message.data)
        self.asked.append(request)
        self.sizes.append(len(message.data))
        self.subjects.append(message.subject)
        self.reply_subjects.append(message.reply)
        self.tasks.add(asyncio.create_task(self._act(request, message.reply)))

    async def _act(self, request: ActivationRequest, reply: str) -> None:
        made = self.script(request)
        answer = await made if isinstance(made, Awaitable) else made
        if answer is not None:
            await self.bus.publish(reply, answer)


@dataclass
class World:
    """A router's side of one layer."""

    network: MemoryNetwork
    router: MemoryBus
    gatherer: Gatherer
    placement: Placement
    nodes: dict[str, FakeNode] = field(default_factory=dict)
    scope: RequestScope = field(default_factory=lambda: RequestScope(REQUEST, Meter(REQUEST, MODEL), traced=True))

    async def add(
        self, name: str, script: Script | None = honest, first: Iterable[int] = (), replica: Iterable[int] = ()
    ) -> FakeNode:
        """A node with a fresh heartbeat; without a script it listens to nothing."""
        node = NodeId(name)
        self.placement.nodes[node] = NodeState(node, HostId(f"host-of-{name}"), "key")
        self.placement.beat(heartbeat(name, first, replica), asyncio.get_running_loop().time())
        made = FakeNode(node, self.placement.nodes[node], MemoryBus(self.network), script or honest)
        if script is not None:
            await made.bus.subscribe(subjects.experts_of(node, MODEL), made.hear)
        self.nodes[name] = made
        return made

    def dispatcher(self, *, wide: bool = False) -> Dispatcher:
        return Dispatcher(self.gatherer, self.placement, MODEL, MANIFEST, wide=wide)

    async def layer(self, hidden: Rows, work: Sequence[ExpertRows], *, wide: bool = False) -> Any:
        """(blocks, calls) of one request, or its error."""
        answers = await self.shared_layer([Share(self.scope, len(hidden))], hidden, work, wide=wide)
        for error in answers.failed.values():
            raise error
        return answers.blocks, answers.calls[0]

    async def shared_layer(
        self, shares: Sequence[Share], hidden: Rows, work: Sequence[ExpertRows], *, wide: bool = False
    ) -> LayerAnswers:
        """A layer of many requests; never waits longer than a test may."""
        return await asyncio.wait_for(self.dispatcher(wide=wide).layer(shares, LAYER, hidden, work), 20)

    def rows_of(self) -> dict[str, int]:
        """What the meter holds."""
        return {node: meter.rows for node, meter in self.scope.meter.nodes.items()}


async def make_world() -> World:
    network = MemoryNetwork()
    router = MemoryBus(network)
    gatherer = Gatherer(router, urgent=lambda data: data[5:6] == bytes([tensors.Kind.ERROR]))
    await gatherer.start()
    return World(network, router, gatherer, Placement(MANIFEST))


async def end_world(world: World) -> None:
    for node in world.nodes.values():
        for task in node.tasks:
            task.cancel()
    await world.gatherer.stop()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = await make_world()
    yield made
    await end_world(made)


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """The functions of this page, for tests: a conftest cannot be imported."""
    return SimpleNamespace(
        formula=formula,
        reply_to=reply_to,
        honest=honest,
        heartbeat=heartbeat,
        registered=registered,
        make_world=make_world,
        end_world=end_world,
        virtual_loop=VirtualLoop,
        no=lambda: ExpertUnavailable("no"),
    )
