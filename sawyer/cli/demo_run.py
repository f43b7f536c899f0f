"""What `sawyer demo` does: the whole path on this machine, with real processes, and the proof at the end.

nats-server, bookkeeper, router and nodes are processes of their own; this one is operator, client and auditor.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

from sawyer.bus.connection import NatsBus
from sawyer.bus.server import ANY_PORT
from sawyer.cli import demo_report
from sawyer.cli.certifying import OPERATOR, certify_network, open_admission
from sawyer.cli.children import Child, ServerChild
from sawyer.cli.demo_report import DemoResult
from sawyer.cli.founding import pinned_network
from sawyer.cli.interrupts import interruptible
from sawyer.cli.network import found, member_target, open_account, split_demo_model, until_seen
from sawyer.cli.network_plan import NetworkPlan, Part
from sawyer.client.aio import AsyncClient
from sawyer.client.stream import Generation, TextStream
from sawyer.errors import SawyerError
from sawyer.home import Home
from sawyer.identity.keys import load_or_create
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import DEMO_MODEL
from sawyer.schemas.messages import Trace

ACCOUNT: Final = "alice"
LOW_BUDGET: Final = 10_000
BROKEN_PATIENCE_S: Final = 1.0
"""How long the parts of a network that broke may take to end."""
KILL_AFTER_STEPS: Final = 8
"""--kill waits for the middle of the text: some tokens are out, more are to come."""


@dataclass(frozen=True)
class DemoPlan:
    """What was asked for."""

    prompt: str
    max_tokens: int
    nodes: int
    kill: bool
    verbose: bool
    as_json: bool
    nats_server: str = ""


@dataclass
class Network:
    """The running processes."""

    server: ServerChild
    bookkeeper: Child
    router: Child
    nodes: dict[str, Child] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.server.url

    async def breaks(self) -> str:
        """Returns when a part is gone that nothing can stand in for: which, and how. Nodes may die."""
        parts = [asyncio.create_task(each) for each in (self.router.died(), self.bookkeeper.died(), self.server.died())]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in parts:
                part.cancel()
        for child in (self.router, self.bookkeeper, *self.nodes.values()):
            child.patience_s = BROKEN_PATIENCE_S
        return done.pop().result()


def run(home: Home, plan: DemoPlan) -> bool:
    """The whole demo: run, print, replay, print. True if the book was found right."""
    started = time.perf_counter()
    with home.alone():
        result = asyncio.run(interruptible(_demo(home, plan)))
        if result is None:
            raise KeyboardInterrupt
        verdict = demo_report.replay_book(home)
    demo_report.show(result, verdict, plan.as_json, home, time.perf_counter() - started)
    return verdict.ok


async def _demo(home: Home, plan: DemoPlan) -> DemoResult:
    artifacts = split_demo_model(home)
    demo_report.announce(plan.nodes, home, artifacts.manifest, quiet=plan.as_json)
    async with _running(home, plan, artifacts) as network:
        asking = asyncio.create_task(_ask(network, home, plan))
        breaking = asyncio.create_task(network.breaks())
        try:
            await asyncio.wait({asking, breaking}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                return asking.result()
            raise SawyerError(
                f"the network broke: {breaking.result()} (logs: {home.logs})",
                hint="Run it again: its replay shows what was billed; what is held comes back within 10 minutes.",
            )
        finally:
            breaking.cancel()
            asking.cancel()
            await asyncio.gather(asking, breaking, return_exceptions=True)


async def _ask(network: Network, home: Home, plan: DemoPlan) -> DemoResult:
    """The client's part: balance, text, balance."""
    target, key = member_target(network.url, home, "account", ACCOUNT), load_or_create(home.account_key(ACCOUNT))
    async with AsyncClient(target, account=ACCOUNT, key=key) as client:
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
    home.logs.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        admission = open_admission(home, pin)
        server = await ServerChild.start(home.nats, ANY_PORT, plan.nats_server, admission.authority.trust)
        stack.push_async_callback(server.stop)
        parts = NetworkPlan(home, server.url, plan.nodes)
        certify_network(admission, parts, ACCOUNT, [DEMO_MODEL])
        bookkeeper = await _start(stack, home, parts.bookkeeper)
        authority = await _start(stack, home, parts.authority)
        await asyncio.gather(bookkeeper.ready(), authority.ready())
        bus = await NatsBus.connect(member_target(server.url, home, OPERATOR, OPERATOR), name="operator")
        stack.push_async_callback(bus.close)
        founder = await found(bus, home, pin, artifacts)
        router = await _start(stack, home, parts.router)
        network = Network(server, bookkeeper, router)
        nodes = contextlib.AsyncExitStack()
        stack.push_async_callback(nodes.aclose)
        for part in parts.node_parts:
            network.nodes[part.name] = await _start(nodes, home, part)
        await open_account(server.url, home, founder, ACCOUNT, min(10 * plan.max_tokens, LOW_BUDGET))
        await asyncio.gather(*(child.ready() for child in [router, *network.nodes.values()]))
        await until_seen(bus, (part.name for part in parts.node_parts))
        home.announce(server.url)
        yield network


async def _start(stack: contextlib.AsyncExitStack, home: Home, part: Part) -> Child:
    child = await Child.start(part, home.logs)
    stack.push_async_callback(child.stop)
    return child
