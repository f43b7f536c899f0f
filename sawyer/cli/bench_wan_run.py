"""What `sawyer bench wan` does: a network whose nodes are a round trip away from the NATS server, one text and many."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import Final
from urllib.parse import urlsplit

from sawyer import leash
from sawyer.bench import delay
from sawyer.bench.machine import this_machine
from sawyer.bench.synthetic import Shape, prompt, write_checkpoint
from sawyer.bench.tokens import Local
from sawyer.bench.wan_result import Burst, WanResult
from sawyer.bus.connection import NatsBus
from sawyer.cli.bench_network import ACCOUNT, Notice, OwnNetwork, own_home, own_network, run_here, split_here
from sawyer.cli.network import until_seen
from sawyer.cli.network_plan import NetworkPlan
from sawyer.client.aio import AsyncClient
from sawyer.engine.session import configure
from sawyer.errors import SawyerError, VerificationError
from sawyer.ids import ModelId
from sawyer.loop import chosen
from sawyer.model.artifacts import Artifacts
from sawyer.schemas import subjects

NODES: Final = 2
PROMPT_WORDS: Final = 8
TEXTS: Final = 8
"""Different prompts; more streams than these ask some of them twice."""
ROUND_TRIPS: Final = 15
WARM_UP_TOKENS: Final = 4
ROUND_TRIP_S: Final = 10.0
START_S: Final = 10.0
STOP_S: Final = 5.0


@dataclass(frozen=True)
class WanPlan:
    """What was asked for: `rtt_ms` from the router to a node and back; `mbit` of a link each way, 0 for no limit."""

    rtt_ms: float
    mbit: float
    streams: tuple[int, ...]
    shape: Shape
    name: ModelId
    tokens: int
    quick: bool

    @classmethod
    def of(cls, rtt_ms: float, mbit: float, streams: tuple[int, ...], *, quick: bool) -> WanPlan:
        """The model and the length of its texts follow from `quick`."""
        if quick:
            shape = Shape(hidden=128, ffn=256, layers=2, experts=4, vocab=512)
            return cls(rtt_ms, mbit, streams, shape, ModelId("bench-2x128"), 8, quick=True)
        shape = Shape(hidden=512, ffn=1792, layers=8, experts=8)
        return cls(rtt_ms, mbit, streams, shape, ModelId("bench-8x512"), 32, quick=False)


@dataclass(frozen=True, slots=True)
class _Text:
    """A prompt, and the ids that one machine alone answers it with."""

    prompt: str
    ids: tuple[int, ...]


def run_wan(plan: WanPlan, nats_server: str, loop: str, notice: Notice) -> WanResult:
    """The whole benchmark. Everything it started is ended and everything it wrote is removed, however it ends. Raises
    VerificationError if the network generated another text than this process alone."""
    machine = this_machine(chosen(loop))
    with own_home() as home:
        notice(f"making {plan.name}: a checkpoint with random weights")
        checkpoint = write_checkpoint(home.path / "checkpoint", plan.shape)
        artifacts = split_here(home, checkpoint, plan.name)
        shutil.rmtree(checkpoint)
        configure(1)
        notice("computing what one machine alone answers")
        texts = _texts(artifacts, plan.tokens)

        async def measure() -> tuple[list[Burst], list[float]]:
            notice("starting a network")
            async with own_network(home, [artifacts], nats_server) as network, AsyncExitStack() as stack:
                return await _measure(plan, network, stack, texts, notice)

        bursts, round_trips_s = run_here(measure(), loop)
    return WanResult.of(
        bursts, round_trips_s, artifacts.layout, machine, rtt_ms=plan.rtt_ms, mbit=plan.mbit, model=plan.name,
        nodes=NODES, quick=plan.quick,
    )  # fmt: skip


def _texts(artifacts: Artifacts, tokens: int) -> tuple[_Text, ...]:
    local = Local(artifacts)
    prompts = [prompt(PROMPT_WORDS, PROMPT_WORDS * n) for n in range(TEXTS)]
    return tuple(_Text(each, local.generate(each, tokens).ids) for each in prompts)


async def _measure(
    plan: WanPlan, network: OwnNetwork, stack: AsyncExitStack, texts: Sequence[_Text], notice: Notice
) -> tuple[list[Burst], list[float]]:
    """A burst for each number of streams, and some round trips. Whoever ends first is on `stack`."""
    far = await _far_url(plan, network, stack)
    router = NetworkPlan(network.home, network.url, NODES, plan.name).router
    nodes = NetworkPlan(network.home, far, NODES, plan.name).node_parts
    children = [await network.programs.start(each) for each in (router, *nodes)]
    for each in reversed(children):  # before the link that they talk over
        stack.push_async_callback(each.stop)
    await asyncio.gather(*(each.ready() for each in children))
    await until_seen(network.bus, (each.name for each in nodes))
    round_trips_s = await _round_trips(far, plan.name)
    async with AsyncClient(network.url, account=ACCOUNT, key=network.key) as client:
        notice("warming up")
        await client.generate(texts[0].prompt, model=plan.name, max_tokens=WARM_UP_TOKENS)
        bursts = []
        for streams in plan.streams:
            notice(f"{streams} at once")
            bursts.append(await _burst(client, plan, [texts[n % TEXTS] for n in range(streams)]))
    return bursts, round_trips_s


async def _burst(client: AsyncClient, plan: WanPlan, texts: Sequence[_Text]) -> Burst:
    began_s = perf_counter()
    asked = [client.generate(each.prompt, model=plan.name, max_tokens=plan.tokens) for each in texts]
    answers = await asyncio.gather(*asked)
    seconds = perf_counter() - began_s
    if [each.ids for each in answers] != [each.ids for each in texts]:
        raise VerificationError(
            f"{plan.name}: over the network the text differs from the one computed in this process",
            hint="This must never happen: report it, with what sawyer doctor says.",
        )
    return Burst(len(texts), sum(len(each.ids) for each in answers), seconds)


async def _round_trips(url: str, model: ModelId) -> list[float]:
    """An empty message over the delayed link to the router, and its answer: as nodes measure their way."""
    bus = await NatsBus.connect(url, name="bench round trips")
    try:
        return [await _round_trip(bus, model) for _ in range(ROUND_TRIPS)]
    finally:
        await bus.close()


async def _round_trip(bus: NatsBus, model: ModelId) -> float:
    began_s = perf_counter()
    await bus.request(subjects.echo(model), b"", ROUND_TRIP_S)
    return perf_counter() - began_s


async def _far_url(plan: WanPlan, network: OwnNetwork, stack: AsyncExitStack) -> str:
    """The server's address as the nodes have it: half a round trip away, each way. The proxy is a process of its own,
    so that it competes with the client no more than a real link would."""
    server = urlsplit(network.url)
    link = (str(server.hostname), str(server.port), str(plan.rtt_ms / 2), str(plan.mbit * 1e6))
    process = await asyncio.create_subprocess_exec(
        *leash.argv([sys.executable, "-P", "-m", delay.MODULE, *link]),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    stack.push_async_callback(_end, process)
    assert process.stdout is not None
    async with asyncio.timeout(START_S):
        said = (await process.stdout.readline()).decode()
    if not said.startswith(delay.READY):
        raise SawyerError("the delayed link did not start", hint="Report it, with what sawyer doctor says.")
    return f"nats://{delay.HOST}:{said.removeprefix(delay.READY).strip()}"


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
    await process.wait()
