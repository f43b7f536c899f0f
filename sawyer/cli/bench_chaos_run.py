"""What `sawyer bench chaos` does: a network of real processes under load, one fault after another, and the proof at the
end that nothing failed, nothing changed, and the book says what happened."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

import sawyer.bus.connection
from sawyer.bench.chaos_book import judge
from sawyer.bench.chaos_load import Asked, Known, Load
from sawyer.bench.chaos_plan import SLOW_FACTOR, Fault, schedule
from sawyer.bench.chaos_result import ChaosResult, Window
from sawyer.bench.machine import this_machine
from sawyer.bench.memory import Held, held
from sawyer.bench.tokens import Local
from sawyer.cli.bench_network import ACCOUNT, Notice, OwnNetwork, own_home, own_network, run_here, split_here
from sawyer.cli.network import until_seen
from sawyer.cli.network_plan import BOOKKEEPER, NetworkPlan
from sawyer.engine.session import configure
from sawyer.home import Home
from sawyer.loop import chosen
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import DEMO_MODEL, demo_checkpoint

PROMPTS: Final = (
    "It was a", "Emma was", "She had been", "Mr. Knightley", "The young man", "I am sure", "In the evening", "My dear",
)  # fmt: skip
QUICK_PROMPTS: Final = 3
SLICE_S: Final = 0.005
"""A slow node runs for one slice, and stands still for SLOW_FACTOR - 1 of them."""
SAMPLE_S: Final = 0.5
"""Between two looks at what the processes hold."""
STANDSTILL_S: Final = 20.0
DRAIN_S: Final = 60.0
"""How long requests may go on after the last fault: whatever has not ended then has failed."""


@dataclass(frozen=True)
class ChaosPlan:
    """What was asked for. Every expert is on two nodes, whatever their number."""

    seconds: float
    streams: int
    seed: int
    nodes: int
    tokens: int
    logs: Path | None
    quick: bool


def run_chaos(plan: ChaosPlan, nats_server: str, loop: str, notice: Notice) -> ChaosResult:
    """The whole run. Everything it started is ended and everything it wrote is removed, however it ends."""
    machine = this_machine(chosen(loop))
    logging.getLogger(sawyer.bus.connection.__name__).setLevel(logging.ERROR)  # lost connections are what is meant
    with own_home(plan.logs) as home:
        notice("splitting the demo model")
        artifacts = split_here(home, demo_checkpoint(), DEMO_MODEL)
        configure(1)
        notice("computing what one machine alone answers")
        known = _known(artifacts, PROMPTS[: QUICK_PROMPTS if plan.quick else None], plan.tokens)
        chaos = _Chaos(plan, home, artifacts, notice)
        asked, windows, seconds = run_here(chaos.run(known, nats_server), loop)
        notice("proving the book")
        return ChaosResult.of(
            asked, windows, chaos.samples, judge(home, asked), machine, seed=plan.seed, seconds=seconds,
            streams=plan.streams, nodes=plan.nodes, model=DEMO_MODEL, quick=plan.quick,
        )  # fmt: skip


def _known(artifacts: Artifacts, prompts: Sequence[str], tokens: int) -> tuple[Known, ...]:
    local = Local(artifacts)
    return tuple(Known(prompt, local.generate(prompt, tokens).ids) for prompt in prompts)


class _Chaos:
    """One run: the load on one side, the faults on the other."""

    def __init__(self, plan: ChaosPlan, home: Home, artifacts: Artifacts, notice: Notice) -> None:
        self._plan = plan
        self._home = home
        self._artifacts = artifacts
        self._notice = notice
        self._asked: list[Asked] = []
        self._moved = asyncio.Event()
        self._windows: list[Window] = []
        self.samples: list[Held] = []

    async def run(self, known: tuple[Known, ...], nats_server: str) -> tuple[list[Asked], list[Window], float]:
        """What was asked, which faults were on when, and how many seconds the load lasted. Raises SawyerError if a
        program does not start."""
        plan, asked = self._plan, self._asked
        self._notice("starting a network")
        async with own_network(self._home, [self._artifacts], nats_server) as network:
            names = await self._serve(network)
            load = Load(network.url, ACCOUNT, network.key, DEMO_MODEL, known, plan.streams, plan.tokens)
            began_s, stopping = perf_counter(), asyncio.Event()
            sampling = asyncio.create_task(self._sample(network))
            asking = asyncio.create_task(load.run(stopping, self._moved, asked))
            try:
                await self._hurt(network, names, began_s + plan.seconds, asking)
                stopping.set()
                self._notice("waiting for the last requests")
                await asyncio.wait({asking}, timeout=DRAIN_S)
            finally:
                seconds = perf_counter() - began_s
                asking.cancel()
                sampling.cancel()
                await asyncio.gather(asking, sampling, return_exceptions=True)
            if not asking.cancelled():
                asking.result()
        return asked, self._windows, seconds

    async def _sample(self, network: OwnNetwork) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            for name, pid in network.pids().items():
                sample = held(name, pid, perf_counter())
                if sample is not None:
                    self.samples.append(sample)

    async def _serve(self, network: OwnNetwork) -> list[str]:
        """A router and the nodes, ready. Returns the nodes' names."""
        parts = NetworkPlan(self._home, network.url, self._plan.nodes, DEMO_MODEL)
        children = [await network.programs.start(each) for each in (parts.router, *parts.node_parts)]
        await asyncio.gather(*(each.ready() for each in children))
        names = [each.name for each in parts.node_parts]
        await until_seen(network.bus, names)
        return names

    async def _hurt(
        self, network: OwnNetwork, names: Sequence[str], until_s: float, asking: asyncio.Task[None]
    ) -> None:
        """Every fault of the schedule, and then the rest of the time. Returns at once if the load broke."""
        faults = asyncio.create_task(self._inflict_all(network, names, until_s))
        try:
            await asyncio.wait({faults, asking}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                asking.result()
            await faults
        finally:
            faults.cancel()
            await asyncio.gather(faults, return_exceptions=True)

    async def _inflict_all(self, network: OwnNetwork, names: Sequence[str], until_s: float) -> None:
        faults = schedule(self._plan.seed, self._plan.seconds, self._plan.nodes)
        for number, fault in enumerate(faults, start=1):
            await asyncio.sleep(fault.rest_s)
            name = "" if fault.node is None else names[fault.node]
            self._notice(f"fault {number} of {len(faults)}: {fault.kind} {name}")
            with self._window(fault):
                await _inflict(network, fault, name)
            await self._until_moving()
        await asyncio.sleep(max(0.0, until_s - perf_counter()))

    async def _until_moving(self) -> None:
        """Until the next token: the next fault is then met by a network that goes again. Not for ever: what stands
        still for good has to be seen in the result."""
        self._moved.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STANDSTILL_S):
                await self._moved.wait()

    @contextlib.contextmanager
    def _window(self, fault: Fault) -> Iterator[None]:
        from_s = perf_counter()
        yield
        self._windows.append(Window(fault.kind, from_s, perf_counter()))


async def _inflict(network: OwnNetwork, fault: Fault, name: str) -> None:
    """From the signal until the process goes on, or is ready again."""
    programs = network.programs
    match fault.kind:
        case "freeze_node":
            with programs.frozen(name):
                await asyncio.sleep(fault.lasts_s)
        case "slow_node":
            end_s = perf_counter() + fault.lasts_s
            while perf_counter() < end_s:
                with programs.frozen(name):
                    await asyncio.sleep((SLOW_FACTOR - 1) * SLICE_S)
                await asyncio.sleep(SLICE_S)
        case "kill_nats":
            await network.server.kill()
            await asyncio.sleep(fault.lasts_s)
            await network.server.again()
        case "kill_node" | "kill_bookkeeper":
            killed = name or BOOKKEEPER
            await programs.kill(killed)
            await asyncio.sleep(fault.lasts_s)
            await programs.again(killed)
