"""A whole network inside a test: real nats-server, real sockets, real model; bookkeeper, router and nodes as tasks."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from sawyer.bookkeeper.service import Bookkeeper
from sawyer.bus.calls import record
from sawyer.bus.connection import NatsBus
from sawyer.bus.protocol import Message
from sawyer.bus.server import LocalServer
from sawyer.cli.founding import Founder, pinned_network
from sawyer.client.aio import AsyncClient
from sawyer.clock import SystemClock
from sawyer.engine.experts import FAST
from sawyer.engine.loaded import Engine
from sawyer.home import Home
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key, load, load_or_create
from sawyer.ids import HostId, ModelId, NetworkId, NodeId
from sawyer.ledger.book import Book
from sawyer.ledger.commands import command
from sawyer.ledger.replay import ReplayReport, replay_home
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import DEMO_MODEL, demo_checkpoint
from sawyer.model.files import FilesHere
from sawyer.model.split import split
from sawyer.node.agent import Hosting, NodeAgent, NodeIdentity
from sawyer.node.hosting import share
from sawyer.node.receipts import ReceiptLog
from sawyer.router.service import Router, RouterIdentity
from sawyer.schemas import subjects
from sawyer.schemas.events import NodeRegistered
from sawyer.schemas.messages import HEARTBEAT_KIND, Heartbeat, HostedLayer, HostedModel, Vitals

from .stores import Store

VITALS = Vitals(
    version="test", provider="rogue", device="rogue", threads=1, memory_total_mb=1, memory_free_mb=1, loaded=0,
    loads=0, drops=0, queue=0, answers=0, refused=0, rows=0, runs=0, latency_p50_us=0, latency_p95_us=0,
    rows_per_second=0, round_trip_us=0, kilobytes_per_second=0,
)  # fmt: skip

Answer = Callable[[bytes], bytes | Awaitable[bytes] | None]
"""What a rogue node does with an activation request: the reply's bytes, or silence."""


@dataclass
class Running:
    """One part of the network as a task on its own connection."""

    bus: NatsBus
    part: Bookkeeper | Router | NodeAgent
    task: asyncio.Task[None]

    async def stop(self) -> None:
        self.part.stop()
        with contextlib.suppress(Exception, asyncio.CancelledError):
            await self.task
        await self.bus.close()

    async def vanish(self) -> None:
        """Gone without a word: the server sees the connection close, nothing else."""
        await self.bus.close()
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@dataclass
class Network:
    url: str
    home: Home
    artifacts: Artifacts
    network: NetworkId
    bus: NatsBus
    stack: contextlib.AsyncExitStack
    parts: dict[str, Running] = field(default_factory=dict)

    @property
    def model(self) -> ModelId:
        return ModelId(self.artifacts.manifest.model)

    async def start(self, name: str, bus: NatsBus, part: Bookkeeper | Router | NodeAgent) -> Running:
        """Returns when the part says that it is ready."""
        ready = asyncio.Event()
        running = Running(bus, part, asyncio.create_task(part.run(ready.set)))
        self.parts[name] = running
        self.stack.push_async_callback(running.stop)
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({running.task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if running.task.done():
            running.task.result()
        return running

    async def connect(self, name: str) -> NatsBus:
        bus = await NatsBus.connect(self.url, name=name)
        self.stack.push_async_callback(bus.close)
        return bus

    async def add_node(self, name: str, part: int, of: int) -> Running:
        artifacts = self.artifacts
        me = NodeIdentity(NodeId(name), HostId(f"host-of-{name}"), load_or_create(self.home.node_key(name)))
        hosting = Hosting(FilesHere(artifacts), share(artifacts.layout, part, of), "cpu", 1, FAST)
        receipts = ReceiptLog(self.network, me.node, me.key, self.home.path / "receipts" / f"{name}.json")
        agent = NodeAgent(await self.connect(name), me, hosting, receipts, SystemClock(), "test")
        return await self.start(name, agent._bus, agent)

    async def add_router(self, **options: bool) -> Running:
        me = RouterIdentity("router-1", load(self.home.router_key("router-1")))
        engine = Engine.load(self.artifacts)
        router = Router(await self.connect("router-1"), me, self.model, engine, SystemClock(), **options)
        return await self.start("router-1", router._bus, router)

    async def add_rogue(self, name: str, answer: Answer, finish: Answer = lambda _: None) -> None:
        """A registered node, first choice for every expert, that answers as it likes."""
        bus, key = await self.connect(name), load_or_create(self.home.node_key(name))
        body = NodeRegistered(
            network=self.network,
            node=name,
            host=f"host-of-{name}",
            key=key.id,
            device="rogue",
            memory_mb=1,
            promised_us=0,
        )
        await record(bus, command(body, name, key))
        tasks: set[asyncio.Task[None]] = set()

        def reply_with(how: Answer) -> Callable[[Message], None]:
            async def reply(message: Message) -> None:
                data = how(message.data)
                if inspect.isawaitable(data):
                    data = await data
                if data is not None:
                    await bus.publish(message.reply, data)

            return lambda message: tasks.add(asyncio.create_task(reply(message)))

        await bus.subscribe(subjects.experts_of(NodeId(name), self.model), reply_with(answer))
        await bus.subscribe(subjects.finish(NodeId(name)), reply_with(finish))
        beating = asyncio.create_task(self._beat(bus, name, key))
        self.stack.callback(beating.cancel)

    async def _beat(self, bus: NatsBus, name: str, key: Key) -> None:
        for beat in itertools.count(1):
            signed = sign(self.heartbeat(name, beat), HEARTBEAT_KIND, name, key)
            await bus.publish(subjects.heartbeat(NodeId(name)), signed.canonical())
            await asyncio.sleep(0.2)

    async def router_sees(self, *names: str) -> None:
        """Returns when the router knows what each of these nodes hosts."""
        directory = self.parts["router-1"].part._directory
        nodes = directory.placement.nodes
        async with asyncio.timeout(10):
            while not all(name in nodes and nodes[name].first for name in names):
                directory.changed.clear()
                await directory.changed.wait()

    def heartbeat(self, name: str, beat: int) -> Heartbeat:
        layout = self.artifacts.layout
        layers = tuple(
            HostedLayer(layer=layer, first=tuple(range(layout.experts)), replica=()) for layer in layout.moe_layers
        )
        model = HostedModel(
            model=self.model, manifest=self.artifacts.digest, format="q4", layers=layers, row_us=1, rows_per_second=1
        )
        return Heartbeat(
            network=self.network, node=name, at_ms=SystemClock().now_ms(), beat=beat, instance="ab" * 16, started_ms=1,
            models=(model,), draining=False, vitals=VITALS,
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def client(
        self, account: str = "alice", key: Key | None = None, trunk: Literal["hosted", "local"] | Path = "hosted"
    ) -> AsyncIterator[AsyncClient]:
        key = key or load_or_create(self.home.account_key(account))
        async with AsyncClient(self.url, account=account, key=key, trunk=trunk, timeout_s=20.0) as client:
            yield client

    async def audit(self) -> ReplayReport:
        return await asyncio.to_thread(replay_home, self.home)


@pytest.fixture(scope="session")
def demo_q4(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """The demo model, split for real."""
    folder = tmp_path_factory.mktemp("model") / "austen-8m-q4"
    split(demo_checkpoint(), folder, model=DEMO_MODEL, format="q4")
    return Artifacts.open(folder)


@pytest.fixture(autouse=True)
def _drain_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests talk to nodes as no router does: nobody will ask for the receipts of those answers."""
    monkeypatch.setattr("sawyer.node.agent.DRAIN_TIMEOUT_S", 0.2)


@contextlib.asynccontextmanager
async def founding(folder: Path, artifacts: Artifacts, url: str = "") -> AsyncIterator[Network]:
    """A founded network: bookkeeper, prices, the model published, alice with a budget. No router and no node yet.
    `url`: a server that runs already."""
    home = Home(folder / "home")
    pin = pinned_network(home)
    async with contextlib.AsyncExitStack() as stack:
        url = url or stack.enter_context(LocalServer.start(folder / "nats")).url
        bus = await NatsBus.connect(url, name="operator")
        stack.push_async_callback(bus.close)
        made = Network(url, home, artifacts, NetworkId(pin.network), bus, stack)
        await start_bookkeeper(made)
        founder = Founder(bus, home, pin, SystemClock())
        await founder.found()
        await founder.add_router("router-1")
        await founder.publish(artifacts.manifest)
        async with made.client() as client:
            await client.open_account()
        await founder.top_up("alice", at_least=1000)
        yield made


@pytest.fixture
async def founded(tmp_path: Path, demo_q4: Artifacts) -> AsyncIterator[Network]:
    """A founded network of the demo model, with neither router nor node."""
    async with founding(tmp_path, demo_q4) as made:
        yield made


@pytest.fixture
async def founded_with(tmp_path: Path) -> AsyncIterator[Callable[[Artifacts], Awaitable[Network]]]:
    """`await founded_with(artifacts)` is `founded` for another model."""
    async with contextlib.AsyncExitStack() as stack:
        yield lambda artifacts: stack.enter_async_context(founding(tmp_path, artifacts))


async def start_bookkeeper(network: Network) -> Book:
    """The bookkeeper over the home's book."""
    home = network.home
    pin = pinned_network(home)
    book = Book.open(
        home.book,
        network=network.network,
        operator=pin.operator,
        ledger_key=load(home.ledger_key),
        successors=[load(file) for file in home.ledger_successors()],
        views=home.views,
        held=home.held_checkpoint(),
    )
    network.stack.callback(book.close)
    bus = await network.connect("bookkeeper")
    await network.start("bookkeeper", bus, Bookkeeper(bus, book, SystemClock()))
    return book


@pytest.fixture
async def network(founded: Network) -> Network:
    """The founded network with a router and two nodes, either of which can serve every expert."""
    await founded.add_node("node-1", 0, 2)
    await founded.add_node("node-2", 1, 2)
    await founded.add_router()
    return founded


@pytest.fixture
def store_server(tmp_path: Path) -> Iterator[LocalServer]:
    with LocalServer.start(tmp_path / "store") as started:
        yield started


@pytest.fixture
def store(store_server: LocalServer, demo_q4: Artifacts, tmp_path: Path) -> Store:
    folder = Path(shutil.copytree(demo_q4.folder, tmp_path / "split"))
    return Store(store_server.url, Artifacts.open(folder), tmp_path)
