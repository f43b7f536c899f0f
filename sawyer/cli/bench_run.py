"""What `sawyer bench` does: a network of its own in a folder that is removed, real processes, interleaved rounds.

nats-server, bookkeeper, router, nodes and echoes are processes; this one computes the in-process text and makes the
layer calls, one thing at a time, so that nothing measured competes with anything else measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sawyer import leash
from sawyer.bench import echo
from sawyer.bench.layer_calls import EchoRound, LayerCaller, measure_plain
from sawyer.bench.machine import this_machine
from sawyer.bench.result import BenchResult, ModelResult, Rounds
from sawyer.bench.synthetic import Shape, prompt, write_checkpoint
from sawyer.bench.tokens import Local, many_over_network, over_network
from sawyer.bus.connection import NatsBus
from sawyer.bus.plain import PlainClient
from sawyer.cli.bench_network import ACCOUNT, own_home, own_network, run_here, split_here
from sawyer.cli.children import Child
from sawyer.cli.network import until_seen
from sawyer.cli.network_plan import NetworkPlan, Part
from sawyer.client.aio import AsyncClient
from sawyer.engine.session import configure
from sawyer.errors import VerificationError
from sawyer.home import Home
from sawyer.identity.keys import load_or_create
from sawyer.ids import ModelId
from sawyer.loop import chosen
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import DEMO_MODEL, demo_checkpoint

NODES: Final = 2
ECHOES: Final = 4
PROMPT_WORDS: Final = 8
DEMO_PROMPT: Final = "It was a"


@dataclass(frozen=True)
class BenchPlan:
    """How much is measured: the synthetic model, new tokens a text, calls of a series, rows of the batches."""

    shape: Shape
    name: ModelId
    rounds: int
    tokens: int
    streams: int
    calls: int
    batches: tuple[int, ...]
    batch_calls: int
    quick: bool

    @classmethod
    def full(cls, rounds: int) -> BenchPlan:
        shape = Shape(hidden=512, ffn=1792, layers=8, experts=8)
        return cls(shape, ModelId("bench-8x512"), rounds, 64, 16, 200, (32, 128), 40, quick=False)

    @classmethod
    def fast(cls, rounds: int) -> BenchPlan:
        """Seconds instead of a minute: for a first look, and for tests."""
        shape = Shape(hidden=128, ffn=256, layers=2, experts=4, vocab=512)
        return cls(shape, ModelId("bench-2x128"), rounds, 16, 4, 40, (32,), 5, quick=True)


@dataclass(frozen=True)
class _Bench:
    """What all measurements share. `notice` takes one line about what happens now."""

    plan: BenchPlan
    home: Home
    url: str
    bus: NatsBus
    plain: PlainClient
    echoes: list[str]
    notice: Callable[[str], None]


def run(plan: BenchPlan, nats_server: str, loop: str, notice: Callable[[str], None]) -> BenchResult:
    """The whole benchmark. Everything it started is ended and everything it wrote is removed, however it ends. Raises
    VerificationError if the network generated another text than this process alone."""
    machine = this_machine(chosen(loop))
    with own_home() as home:
        notice(f"making {plan.name}: a checkpoint with random weights")
        checkpoint = write_checkpoint(home.path / "checkpoint", plan.shape)
        models = [_split(home, checkpoint, plan.name, notice), _split(home, demo_checkpoint(), DEMO_MODEL, notice)]
        shutil.rmtree(checkpoint)
        configure(NODES)
        results = run_here(_measure_all(plan, home, models, nats_server, notice), loop)
    threads = {"in_process": NODES, "node": 1, "router": 1}
    return BenchResult.of(results, machine, quick=plan.quick, nodes=NODES, threads=threads, rounds=plan.rounds)


def _split(home: Home, checkpoint: Path, model: ModelId, notice: Callable[[str], None]) -> Artifacts:
    notice(f"splitting {model}")
    return split_here(home, checkpoint, model)


async def _measure_all(
    plan: BenchPlan, home: Home, models: list[Artifacts], nats_server: str, notice: Callable[[str], None]
) -> tuple[ModelResult, ...]:
    notice("starting a network")
    async with own_network(home, models, nats_server) as network, contextlib.AsyncExitStack() as stack:
        echoes = [f"echo-{n + 1}" for n in range(ECHOES)]
        for name in echoes:
            await _start_echo(stack, home, name, network.url)
        plain = await PlainClient.connect(network.url, "bench-plain")
        stack.push_async_callback(plain.close)
        bench = _Bench(plan, home, network.url, network.bus, plain, echoes, notice)
        return (await _measure(bench, models[0]), await _measure(bench, models[1]))


async def _measure(bench: _Bench, artifacts: Artifacts) -> ModelResult:
    """All rounds of one model: first one that does not count, in which memory and caches become warm."""
    plan, model = bench.plan, ModelId(artifacts.manifest.model)
    bench.notice(f"{model}: loading")
    local = await asyncio.to_thread(Local, artifacts)
    rounds = Rounds(model, artifacts.layout, plan.tokens, plan.streams)
    key = load_or_create(bench.home.account_key(ACCOUNT))
    async with (
        _serving(bench, model),
        LayerCaller(bench.bus, artifacts) as caller,
        AsyncClient(bench.url, account=ACCOUNT, key=key) as client,
    ):
        warm_up = Rounds(model, artifacts.layout, plan.tokens, plan.streams)
        bench.notice(f"{model}: warming up")
        await _round(bench, artifacts, local, caller, client, warm_up)
        for n in range(plan.rounds):
            bench.notice(f"{model}: round {n + 1} of {plan.rounds}")
            await _round(bench, artifacts, local, caller, client, rounds)
    return ModelResult.of(rounds)


async def _round(
    bench: _Bench, artifacts: Artifacts, local: Local, caller: LayerCaller, client: AsyncClient, into: Rounds
) -> None:
    """Everything once, one after another: what slows the machine for a while slows all of it."""
    plan = bench.plan
    text = prompt(PROMPT_WORDS) if into.model == plan.name else DEMO_PROMPT
    alone = await asyncio.to_thread(local.generate, text, plan.tokens)
    together = await over_network(client, ModelId(into.model), text, plan.tokens)
    _check_same(into.model, alone.ids, together.ids)
    into.local.append(alone.tokens_per_second)
    into.distributed.append(together.tokens_per_second)
    await _streams(bench, local, client, text, into)
    into.single.append(await caller.measure(1, plan.calls))
    layer = EchoRound.of_layer(bench.echoes[:NODES], artifacts.layout)
    into.plain_us.append(await measure_plain(bench.plain, layer, plan.calls))
    into.gathered_us.append(await caller.measure_gathered(layer, plan.calls))
    into.four_plain_us.append(await measure_plain(bench.plain, EchoRound.of_nodes(bench.echoes, own=False), plan.calls))
    into.four_own_us.append(await caller.measure_gathered(EchoRound.of_nodes(bench.echoes, own=True), plan.calls))
    for rows in plan.batches:
        into.batches.setdefault(rows, []).append(await caller.measure(rows, plan.batch_calls))


async def _streams(bench: _Bench, local: Local, client: AsyncClient, text: str, into: Rounds) -> None:
    """As many generations at once as the plan says, each of another prompt."""
    prompts = [f"{text} {number}" for number in range(into.streams)]
    alone = await asyncio.to_thread(local.generate_many, prompts, bench.plan.tokens)
    together = await many_over_network(client, ModelId(into.model), prompts, bench.plan.tokens)
    _check_same(into.model, alone.ids, together.ids)
    into.local_streams.append(alone.tokens_per_second)
    into.distributed_streams.append(together.tokens_per_second)


def _check_same(model: str, alone: object, together: object) -> None:
    if alone != together:
        raise VerificationError(
            f"{model}: over the network the text differs from the one computed in this process",
            hint="This must never happen: report it, with what sawyer doctor says.",
        )


@contextlib.asynccontextmanager
async def _serving(bench: _Bench, model: ModelId) -> AsyncIterator[None]:
    """A router and the nodes of one model, ready; ended afterwards."""
    network = NetworkPlan(bench.home, bench.url, NODES, model)
    async with contextlib.AsyncExitStack() as stack:
        children = [await _start(stack, bench.home, part) for part in (network.router, *network.node_parts)]
        await asyncio.gather(*(child.ready() for child in children))
        await until_seen(bench.bus, (part.name for part in network.node_parts))
        yield


async def _start(stack: contextlib.AsyncExitStack, home: Home, part: Part) -> Child:
    child = await Child.start(part, home.logs)
    stack.push_async_callback(child.stop)
    return child


async def _start_echo(stack: contextlib.AsyncExitStack, home: Home, name: str, url: str) -> None:
    log = home.logs / f"{name}.log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *leash.argv([sys.executable, "-P", "-m", echo.MODULE, url, name]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            start_new_session=True,
        )
    child = Child(name, process, log)
    stack.push_async_callback(child.stop)
    await child.ready()
