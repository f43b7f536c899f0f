"""What `sawyer demo` does: the whole path on this machine, with real processes, and the proof at the end.

nats-server, bookkeeper, router and nodes are processes of their own; this one is operator, client and auditor.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from sawyer.bus.calls import ask
from sawyer.bus.connection import NatsBus
from sawyer.bus.protocol import Bus
from sawyer.bus.server import LocalServer
from sawyer.cli import demo_report
from sawyer.cli.children import Child
from sawyer.cli.demo_report import DemoResult
from sawyer.cli.founding import Founder, pinned_network
from sawyer.cli.models import split_with_progress
from sawyer.client.aio import AsyncClient
from sawyer.client.stream import Generation, TextStream
from sawyer.clock import SystemClock
from sawyer.errors import NoAnswer, SawyerError
from sawyer.home import Home
from sawyer.identity.keys import load_or_create
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import DEMO_MODEL, demo_checkpoint
from sawyer.schemas.messages import RouterReply, Trace
from sawyer.schemas.models import MANIFEST_FILE

ACCOUNT: Final = "alice"
ROUTER: Final = "router-1"
FORMAT: Final = "q4"
LOW_BUDGET: Final = 10_000
SEEN_POLLS: Final = 500
SERVER_POLL_S: Final = 0.1
BROKEN_PATIENCE_S: Final = 1.0
"""How long the parts of a network that broke may take to end."""
SEEN_POLL_S: Final = 0.02
KILL_AFTER_STEPS: Final = 8
"""--kill waits for the middle of the text: some tokens are out, more are to come."""


ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class DemoPlan:
    """What was asked for."""

    prompt: str
    max_tokens: int
    nodes: int
    kill: bool
    verbose: bool
    as_json: bool


@dataclass
class Network:
    """The running processes."""

    server: LocalServer
    bookkeeper: Child
    router: Child
    nodes: dict[str, Child] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.server.url

    async def breaks(self) -> str:
        """Returns when a part is gone that nothing can stand in for: which, and how. Nodes may die."""
        parts = [
            asyncio.create_task(each) for each in (self.router.died(), self.bookkeeper.died(), self._server_died())
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in parts:
                part.cancel()
        for child in (self.router, self.bookkeeper, *self.nodes.values()):
            child.patience_s = BROKEN_PATIENCE_S
        return done.pop().result()

    async def _server_died(self) -> str:
        while self.server.process.poll() is None:  # noqa: ASYNC110  (no event tells of this process)
            await asyncio.sleep(SERVER_POLL_S)
        return f"nats-server ended with exit code {self.server.process.returncode}"


def run(home: Home, plan: DemoPlan) -> bool:
    """The whole demo: run, print, replay, print. True if the book was found right."""
    started = time.perf_counter()
    with home.alone():
        result = asyncio.run(_interruptible(_demo(home, plan)))
        if result is None:
            raise KeyboardInterrupt
        verdict = demo_report.replay_book(home)
    demo_report.show(result, verdict, plan.as_json, home, time.perf_counter() - started)
    return verdict.ok


async def _demo(home: Home, plan: DemoPlan) -> DemoResult:
    artifacts = _split_model(home)
    demo_report.announce(plan.nodes, home, artifacts.manifest, quiet=plan.as_json)
    async with _running(home, plan, artifacts) as network:
        asking = asyncio.create_task(_ask(network, home, plan))
        breaking = asyncio.create_task(network.breaks())
        try:
            await asyncio.wait({asking, breaking}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                return asking.result()
            raise SawyerError(
                f"the network broke: {breaking.result()}",
                hint="Run it again: its replay shows what was billed; what is held comes back within 10 minutes.",
            )
        finally:
            breaking.cancel()
            asking.cancel()
            await asyncio.gather(asking, breaking, return_exceptions=True)


async def _ask(network: Network, home: Home, plan: DemoPlan) -> DemoResult:
    """The client's part: balance, text, balance."""
    async with AsyncClient(network.url, account=ACCOUNT, key=load_or_create(home.key(ACCOUNT))) as client:
        before = await client.balance()
        killed: list[str] = []
        stream = client.stream(
            plan.prompt, model=DEMO_MODEL, max_tokens=plan.max_tokens, trace=plan.kill or plan.verbose
        )
        stream.on_trace = _on_trace(network, plan, killed)
        answer = await _print_stream(stream, plan)
        after = await client.balance()
    return DemoResult(plan.prompt, answer, before.available, after.available, killed)


async def _print_stream(stream: TextStream, plan: DemoPlan) -> Generation:
    show = demo_report.TextPrinter(plan.prompt, quiet=plan.as_json, verbose=plan.verbose)
    pieces: list[str] = []
    try:
        async with stream:
            async for piece in stream:
                pieces.append(piece)
                show.piece(piece)
    finally:
        show.end()
    assert stream.usage is not None
    assert stream.finish is not None
    return Generation(stream.request, "".join(pieces), tuple(stream.ids), stream.finish, stream.usage, stream.repeated)


def _on_trace(network: Network, plan: DemoPlan, killed: list[str]) -> Callable[[Trace], None]:
    """Prints layers with -v; with --kill, ends the node that has answered most rows of this very request."""
    rows: dict[str, int] = {}

    def on_trace(trace: Trace) -> None:
        if plan.verbose and not plan.as_json:
            demo_report.show_layer(trace)
        for call in trace.calls:
            rows[call.node] = rows.get(call.node, 0) + call.rows
        if plan.kill and not killed and trace.step >= min(KILL_AFTER_STEPS, plan.max_tokens // 2):
            victim = max(sorted(rows), key=lambda node: rows[node])
            network.nodes[victim].kill()
            killed.append(victim)

    return on_trace


@contextlib.asynccontextmanager
async def _running(home: Home, plan: DemoPlan, artifacts: Artifacts) -> AsyncIterator[Network]:
    """All processes of the demo's network, founded and ready; every one of them ended afterwards."""
    pin = pinned_network(home)
    async with contextlib.AsyncExitStack() as stack:
        server = LocalServer.start(home.nats)
        stack.callback(server.stop)
        home.announce(server.url)
        common = ["--home", str(home.path), "--nats", server.url]
        bookkeeper = await _start(stack, home, "bookkeeper", ["bookkeeper", *common])
        await bookkeeper.ready()
        bus = await NatsBus.connect(server.url, name="operator")
        stack.push_async_callback(bus.close)
        founder = Founder(bus, home, pin, SystemClock())
        await founder.found()
        await founder.add_router(ROUTER)
        await founder.publish(artifacts.manifest)
        router = await _start(
            stack, home, ROUTER, ["route", DEMO_MODEL, "--name", ROUTER, "--threads", "1", *common], threads=1
        )
        network = Network(server, bookkeeper, router)
        nodes = contextlib.AsyncExitStack()
        stack.push_async_callback(nodes.aclose)
        for part in range(plan.nodes):
            name = f"node-{part + 1}"
            arguments = ["serve", DEMO_MODEL, "--name", name, "--host", f"host-{part + 1}"]
            arguments += ["--share", f"{part}/{plan.nodes}", "--threads", "1", *common]
            network.nodes[name] = await _start(nodes, home, name, arguments, threads=1)
        await _open_account(server.url, home, founder, plan.max_tokens)
        await asyncio.gather(*(child.ready() for child in [router, *network.nodes.values()]))
        await _until_seen(bus, plan.nodes)
        yield network


async def _until_seen(bus: Bus, nodes: int) -> None:
    """Returns when the router knows what every node serves."""
    for _ in range(SEEN_POLLS):
        if len((await ask(bus, "router", RouterReply)).nodes) >= nodes:
            return
        await asyncio.sleep(SEEN_POLL_S)
    raise NoAnswer("the router does not hear every node", hint="See the logs in the home's logs folder.")


async def _open_account(url: str, home: Home, founder: Founder, max_tokens: int) -> None:
    async with AsyncClient(url, account=ACCOUNT, key=load_or_create(home.key(ACCOUNT))) as client:
        await client.open_account()
    await founder.top_up(ACCOUNT, at_least=min(10 * max_tokens, LOW_BUDGET))


async def _start(
    stack: contextlib.AsyncExitStack, home: Home, name: str, arguments: list[str], threads: int = 0
) -> Child:
    child = await Child.start(name, arguments, home.logs / f"{name}.log", threads)
    stack.push_async_callback(child.stop)
    return child


def _split_model(home: Home) -> Artifacts:
    """The demo model, split in this home (once)."""
    folder = home.models / f"{DEMO_MODEL}-{FORMAT}"
    if not (folder / MANIFEST_FILE).exists():
        split_with_progress(demo_checkpoint(), folder, DEMO_MODEL, "q4")
    return Artifacts.open(folder)


async def _interruptible(main: Coroutine[Any, Any, ResultT]) -> ResultT | None:
    """SIGTERM and a closed terminal end the demo like Ctrl-C: every process it started is ended first. None: it was."""
    task = asyncio.ensure_future(main)
    for each in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(each, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return None
