"""What `sawyer bench wan` does: a network whose nodes are a round trip away from the NATS server, one text and many."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Final
from urllib.parse import urlsplit

from sawyer import leash
from sawyer.bench import delay, lossy
from sawyer.bench.machine import this_machine
from sawyer.bench.synthetic import Shape, prompt, write_checkpoint
from sawyer.bench.tokens import Local
from sawyer.bench.wan_result import Burst, Guessed, WanResult
from sawyer.bus.connection import NatsBus
from sawyer.cli.bench_network import ACCOUNT, Notice, OwnNetwork, own_home, own_network, run_here, split_here
from sawyer.cli.network import until_seen
from sawyer.cli.network_plan import NetworkPlan, Part
from sawyer.client.aio import AsyncClient
from sawyer.client.stream import Generation
from sawyer.engine.session import configure
from sawyer.errors import SawyerError, VerificationError
from sawyer.ids import ModelId
from sawyer.loop import chosen
from sawyer.schemas import subjects
from sawyer.schemas.generation import GenerateParams

NODES: Final = 2
PROMPT_WORDS: Final = 8
TEXTS: Final = 8
"""Different prompts; more streams than these ask some of them twice."""
LEAD_TOKENS: Final = 64
"""After so many a text goes round."""
LOSS_SEED: Final = 1
ROUND_TRIPS: Final = 15
WARM_UP_TOKENS: Final = 4
ROUND_TRIP_S: Final = 10.0
START_S: Final = 10.0
STOP_S: Final = 5.0


@dataclass(frozen=True)
class WanPlan:
    """What was asked for: `rtt_ms` from the router to a node and back; `mbit` of a link each way, 0 for no limit;
    `loss_percent` of the packets each way are lost."""

    rtt_ms: float
    mbit: float
    loss_percent: float
    streams: tuple[int, ...]
    shape: Shape
    name: ModelId
    tokens: int
    guess_tokens: int
    quick: bool

    @classmethod
    def of(
        cls, rtt_ms: float, mbit: float, streams: tuple[int, ...], *, loss_percent: float = 0.0, quick: bool
    ) -> WanPlan:
        """The model and the length of its texts follow from `quick`."""
        if quick:
            shape = Shape(hidden=128, ffn=256, layers=2, experts=4, vocab=512)
            return cls(rtt_ms, mbit, loss_percent, streams, shape, ModelId("bench-2x128"), 8, 16, quick=True)
        shape = Shape(hidden=512, ffn=1792, layers=8, experts=8)
        return cls(rtt_ms, mbit, loss_percent, streams, shape, ModelId("bench-8x512"), 32, 48, quick=False)


@dataclass(frozen=True, slots=True)
class _Text:
    """A prompt, how its tokens are chosen, and the ids that one machine alone answers it with."""

    prompt: str
    ids: tuple[int, ...]
    drawn: bool = False

    @property
    def options(self) -> dict[str, float]:
        return {"temperature": 1.0} if self.drawn else {}


def run_wan(plan: WanPlan, nats_server: str, loop: str, notice: Notice) -> WanResult:
    """The whole benchmark. Everything it started is ended and everything it wrote is removed, however it ends. Raises
    VerificationError if the network generated another text than this process alone, UsageError if packets are to be
    lost where that cannot be done."""
    if plan.loss_percent:
        lossy.check_possible()
    machine = this_machine(chosen(loop))
    with own_home() as home:
        notice(f"making {plan.name}: a checkpoint with random weights")
        checkpoint = write_checkpoint(home.path / "checkpoint", plan.shape)
        artifacts = split_here(home, checkpoint, plan.name)
        shutil.rmtree(checkpoint)
        configure(1)
        notice("computing what one machine alone answers")
        local = Local(artifacts)
        texts, guessable = _texts(local, plan.tokens), _guessable(local, plan.guess_tokens)

        async def measure() -> _Measured:
            notice("starting a network")
            async with own_network(home, [artifacts], nats_server) as network, AsyncExitStack() as stack:
                return await _measure(plan, network, stack, texts, guessable, notice)

        measured = run_here(measure(), loop)
    return WanResult.of(
        measured.bursts, measured.guessed, measured.round_trips_s, artifacts.layout, machine, rtt_ms=plan.rtt_ms,
        mbit=plan.mbit, loss_percent=plan.loss_percent, model=plan.name, nodes=NODES, quick=plan.quick,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Measured:
    bursts: list[Burst]
    guessed: list[Guessed]
    round_trips_s: list[float]


def _texts(local: Local, tokens: int) -> tuple[_Text, ...]:
    prompts = [prompt(PROMPT_WORDS, PROMPT_WORDS * n) for n in range(TEXTS)]
    return tuple(_Text(each, local.generate(each, tokens).ids) for each in prompts)


def _guessable(local: Local, tokens: int) -> dict[str, _Text]:
    """What a model goes on repeating, as one of random weights soon does; and what it draws, where the past tells
    nothing."""
    begun = prompt(PROMPT_WORDS)
    said = " ".join(f"w{token}" for token in local.generate(begun, LEAD_TOKENS).ids)
    repeating = f"{begun} {said}"
    drawn = GenerateParams(prompt=begun, max_tokens=tokens, temperature_milli=1000)
    return {
        "repetitive": _Text(repeating, local.generate(repeating, tokens).ids),
        "ordinary": _Text(begun, local.generate(begun, tokens, drawn).ids, drawn=True),
    }


async def _measure(
    plan: WanPlan, network: OwnNetwork, stack: AsyncExitStack, texts: Sequence[_Text], guessable: dict[str, _Text],
    notice: Notice,
) -> _Measured:  # fmt: skip
    """A burst for each number of streams, and some round trips. Whoever ends first is on `stack`."""
    far = await _far(plan, network, stack)
    router = NetworkPlan(network.home, network.url, NODES, plan.name).router
    nodes = [far.placed(each) for each in NetworkPlan(network.home, far.url, NODES, plan.name).node_parts]
    children = [await network.programs.start(each) for each in (router, *nodes)]
    for each in reversed(children):  # before the link that they talk over
        stack.push_async_callback(each.stop)
    await asyncio.gather(*(each.ready() for each in children))
    await until_seen(network.bus, (each.name for each in nodes))
    round_trips_s = await far.round_trips(plan.name)
    async with AsyncClient(network.url, account=ACCOUNT, key=network.key) as client:
        notice("warming up")
        await client.generate(texts[0].prompt, model=plan.name, max_tokens=WARM_UP_TOKENS)
        bursts = []
        for streams in plan.streams:
            notice(f"{streams} at once")
            bursts.append(await _burst(client, plan, [texts[n % TEXTS] for n in range(streams)]))
        guessed = []
        for name, text in guessable.items():
            notice(f"{name} text, without guesses and with")
            guessed.append(await _guessed(client, plan, name, text))
    return _Measured(bursts, guessed, round_trips_s)


async def _burst(client: AsyncClient, plan: WanPlan, texts: Sequence[_Text]) -> Burst:
    began_s = perf_counter()
    answers = await asyncio.gather(*(_ask(client, plan, each, plan.tokens, speculate=False) for each in texts))
    return Burst(len(texts), sum(len(each.ids) for each in answers), perf_counter() - began_s)


async def _guessed(client: AsyncClient, plan: WanPlan, name: str, text: _Text) -> Guessed:
    usages = [(await _ask(client, plan, text, plan.guess_tokens, speculate=on)).usage for on in (False, True)]
    without_s, with_s = (each.decode_us / 1e6 for each in usages)
    return Guessed(name, len(text.ids), without_s, with_s, usages[1].drafted_tokens, usages[1].accepted_tokens)


async def _ask(client: AsyncClient, plan: WanPlan, text: _Text, tokens: int, *, speculate: bool) -> Generation:
    """Raises VerificationError for another text than the one that was computed here."""
    answer = await client.generate(text.prompt, model=plan.name, max_tokens=tokens, speculate=speculate, **text.options)
    if answer.ids != text.ids:
        raise VerificationError(
            f"{plan.name}: over the network the text differs from the one computed in this process",
            hint="This must never happen: report it, with what sawyer doctor says.",
        )
    return answer


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


@dataclass(frozen=True, slots=True)
class _Far:
    """Where nodes are: the server's address as they have it, and the process that holds the network namespace that they
    are in; None if it is this one."""

    url: str
    holder: int | None = None

    def placed(self, part: Part) -> Part:
        """This part, to be started there."""
        return part if self.holder is None else replace(part, within=lossy.inside(self.holder))

    async def round_trips(self, model: ModelId) -> list[float]:
        """Seconds, of some from there."""
        if self.holder is None:
            return await _round_trips(self.url, model)
        measure = partial(lossy.call_inside, self.holder, lambda: asyncio.run(_round_trips(self.url, model)))
        return await asyncio.to_thread(measure)


async def _far(plan: WanPlan, network: OwnNetwork, stack: AsyncExitStack) -> _Far:
    """Half a round trip away, each way. The link is a process of its own, so that it competes with the client no more
    than a real one would."""
    server, rate = urlsplit(network.url), str(plan.mbit * 1e6)
    if plan.loss_percent:
        share = str(plan.loss_percent / 100)
        said = await _link(stack, lossy.MODULE, str(server.port), str(plan.rtt_ms / 2), share, rate, str(LOSS_SEED))
        address, _, holder = said.partition(" ")
        return _Far(f"nats://{address}", int(holder))
    said = await _link(stack, delay.MODULE, str(server.hostname), str(server.port), str(plan.rtt_ms / 2), rate)
    return _Far(f"nats://{delay.HOST}:{said}")


async def _link(stack: AsyncExitStack, *program: str) -> str:
    """What a link says when it is ready."""
    process = await asyncio.create_subprocess_exec(
        *leash.argv([sys.executable, "-P", "-m", *program]),
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
    return said.removeprefix(delay.READY).strip()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
    await process.wait()
