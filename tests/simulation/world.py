"""One simulation: a whole network lives through the plan of its seed, in virtual time, and is judged afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import pytest
from simulation import parts
from simulation.asking import TIMEOUT_S, Outcome, ask
from simulation.founding import found
from simulation.invariants import judge
from simulation.lies import Liar
from simulation.parts import Program, key_of
from simulation.plan import ACCOUNTS, BOOKKEEPER, FAULTS_UNTIL_S, ROUTER, Fault, Plan
from simulation.taps import Sent
from simulation.tiny import Tiny, tiny
from simulation.wire import CALM, FaultyBus, Wire
from virtual_time import LoopClock, NothingLeft, VirtualLoop, determined

from sawyer.client.aio import AsyncClient
from sawyer.ledger.store import Store
from sawyer.node.capability import Speed
from sawyer.node.network_time import NetworkTime
from sawyer.node.pressure import Pressure
from sawyer.router.admission import HOLD_MS
from sawyer.router.service import Router

HOP_S: Final = (0.00005, 0.002)
"""How long a thread takes to be done with what it was given."""
QUIET_S: Final = 120.0
"""A router is done with requests that nobody waits for by then."""
QUIET_EVERY_S: Final = 0.1
EXPIRED_S: Final = 5.0
"""A bookkeeper has ended every hold that is due by then."""

Change = Callable[[pytest.MonkeyPatch], None]


@dataclass
class Report:
    """What came of a seed. `digest` is over every message that arrived, `problems` what must not be."""

    plan: Plan
    outcomes: list[Outcome] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    digest: str = ""
    took_s: float = 0.0
    messages: int = 0

    def __str__(self) -> str:
        seed = self.plan.seed
        told = "\n".join(f"  {each}" for each in self.problems) or "  all is well"
        return f"seed {seed} (cd tests && ../.venv/bin/python -m simulation {seed}):\n{told}"


def simulate(seed: int, *, tell: bool = False, change: Change = lambda _: None) -> Report:
    """Live through a seed. `tell`: keep the transcript in words; `change` breaks the product, to see that it shows."""
    drawn = random.Random(seed)
    model, report = tiny(), Report(Plan.draw(seed, drawn))
    loop = VirtualLoop(lambda: drawn.uniform(*HOP_S))
    wire = Wire(drawn, way_s=report.plan.way_s, lines=report.lines if tell else None)
    with asyncio.Runner(loop_factory=lambda: loop) as runner, determined(loop, drawn) as patch:
        _replace_what_measures(patch, loop, model)
        change(patch)
        with _listening(loop, report, tell=tell):
            world = World(report.plan, wire, model, LoopClock(loop))
            try:
                report.problems += runner.run(world.live(report.outcomes))
            except NothingLeft:
                report.problems.append("everybody waits, and nothing will ever come")
            except TimeoutError as error:
                report.problems.append(f"it does not end: {error}")
        report.digest, report.messages, report.took_s = wire.digest, wire.count, loop.time()
    return report


def _replace_what_measures(patch: pytest.MonkeyPatch, loop: VirtualLoop, model: Tiny) -> None:
    """What asks this machine, and what was given a real clock when it was defined."""
    patch.setattr("sawyer.node.agent.ExpertPool", model.pool)
    patch.setattr("sawyer.client.trunks.Trunks._load", lambda *_: model.engine())
    patch.setattr("sawyer.node.agent.measure_speed", lambda _: Speed(10, 100_000))
    patch.setattr("sawyer.node.agent.NetworkTime", lambda: NetworkTime(loop.time))
    patch.setattr("sawyer.node.agent.Pressure", lambda read: Pressure(read, loop.time))
    patch.setattr("sawyer.node.registration.memory_mb", lambda: (1024, 1024))


@contextlib.contextmanager
def _listening(loop: VirtualLoop, report: Report, *, tell: bool) -> Iterator[None]:
    """Whatever the programs call an error is one."""

    class Ears(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR:
                why = f": {record.exc_info[1]!r}" if record.exc_info else ""
                report.problems.append(f"the log says: {record.getMessage()}{why}")
            if tell:
                report.lines.append(f"{loop.time():.6f} log: {record.getMessage()}")

    def loop_problem(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        report.problems.append(f"the loop says: {context.get('message')}: {context.get('exception')!r}")

    logger, ears = logging.getLogger("sawyer"), Ears(logging.WARNING)
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(ears)
    loop.set_exception_handler(loop_problem)
    try:
        yield
    finally:
        logger.removeHandler(ears)
        logger.propagate = propagated


class World:
    """The network of one plan."""

    def __init__(self, plan: Plan, wire: Wire, model: Tiny, clock: LoopClock) -> None:
        self.plan = plan
        self.wire = wire
        self.model = model
        self.clock = clock
        self.store = Store.in_memory()
        self.sent = Sent()
        self.programs: dict[str, Program] = {}
        self.clients: dict[str, AsyncClient] = {}
        self.client_buses: dict[str, FaultyBus] = {}

    async def live(self, outcomes: list[Outcome]) -> list[str]:
        """From the founding to the end; what must not be."""
        found(self.store, self.model, self.plan.budget_tokens)
        self.wire.hears = self.sent.hear
        clients = await self._begin()
        self.wire.weather = self.plan.weather
        breaking = [asyncio.create_task(self._break(fault), name=fault.kind) for fault in self.plan.faults]
        asking = [
            asyncio.create_task(ask(clients[each.client], each, number), name="asking")
            for number, each in enumerate(self.plan.askings)
        ]
        await asyncio.sleep(FAULTS_UNTIL_S)
        await asyncio.gather(*breaking)
        await self._mend()
        for found_ones in await asyncio.gather(*asking):
            outcomes += found_ones
            for each in found_ones:
                self.wire.tell(each.told())
        problems = await self._until_quiet()
        await self._end()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        problems += sorted(f"left running: {task.get_coro().__qualname__}" for task in left)
        problems += [f"left listening: {'.'.join(each.pattern)}" for each in self.wire.network.listeners]
        return problems + judge(self, outcomes)

    async def _begin(self) -> dict[str, AsyncClient]:
        wire, clock, model = self.wire, self.clock, self.model
        made = [parts.bookkeeper(wire, clock, self.store)]
        for number, name in enumerate(self.plan.nodes):
            made.append(parts.node(wire, clock, model, name, number, len(self.plan.nodes)))
        made.append(parts.router(wire, clock, model))
        for program in made:
            self.programs[program.name] = program
            await program.start()
        clients = {}
        for name in ACCOUNTS:
            bus = self.client_buses[name] = await wire.join(name)
            clients[name] = AsyncClient(account=name, key=key_of(name), bus=bus, clock=clock, timeout_s=TIMEOUT_S)
            await clients[name].connect()
            local = clients[f"{name}, local"] = AsyncClient(
                account=name, key=key_of(name), bus=bus, clock=clock, timeout_s=TIMEOUT_S,
                trunk=model.artifacts.folder,
            )  # fmt: skip
            await local.connect()
        self.clients = clients
        return clients

    async def _break(self, fault: Fault) -> None:
        """And mend."""
        await asyncio.sleep(fault.at_s)
        self.wire.tell(f"{fault.kind} {fault.who} for {fault.lasts_s:.3f} s")
        if fault.kind == "server_goes":
            await self.wire.server_goes()
            await asyncio.sleep(fault.lasts_s)
            await self.wire.server_comes()
            return
        program = self.programs.get(fault.who)
        bus = self.client_buses[fault.who] if program is None else program.bus
        assert bus is not None
        _, _, how = fault.kind.partition("_")
        if how == "dies":
            assert program is not None
            await program.die()
        else:
            await _disturb(bus, how, fault, self.wire)
        await asyncio.sleep(fault.lasts_s)
        bus.mute, bus.slow_s, bus.lie = False, 0.0, None
        if how == "cut":
            await bus.come_back_in(0.0)
        if program is not None:
            program.lives.set()

    async def _mend(self) -> None:
        self.wire.weather = CALM
        await self.wire.server_comes()
        for program in self.programs.values():
            program.lives.set()

    async def _until_quiet(self) -> list[str]:
        """Returns when the router works for nobody, or what it still holds when nobody can wait for it any more."""
        until_s = self.clock.loop.time() + QUIET_S
        while (held := self._held_by_router()) and self.clock.loop.time() < until_s:  # noqa: ASYNC110  (nothing tells)
            await asyncio.sleep(QUIET_EVERY_S)
        return [f"the router still holds {each}" for each in held]

    def _held_by_router(self) -> list[str]:
        program = self.programs[ROUTER]
        router = program.part
        if not (program.ready.is_set() and isinstance(router, Router)):
            return ["off being ready"]
        kept = {
            "sessions": router._sessions.running,
            "requests": len(router._running) + router._requests.waiting,
            "bytes of contexts": router._memory.taken_bytes,
            "calls": len(router._gatherer._calls),
            "sequences": len(router._decoding._members),
            "passes": len(router._decoding._passes),
        }
        return [f"{count} {what}" for what, count in kept.items() if count]

    async def _end(self) -> None:
        """Everybody ends in order, the bookkeeper last, and after every hold that is left was due."""
        for client in self.clients.values():
            await client.close()
        for bus in self.client_buses.values():
            await bus.close()
        for name in (ROUTER, *self.plan.nodes):
            await self.programs[name].stop()
        self.clock.ahead_ms += HOLD_MS
        await asyncio.sleep(EXPIRED_S)
        await self.programs[BOOKKEEPER].stop()


async def _disturb(bus: FaultyBus, how: str, fault: Fault, wire: Wire) -> None:
    match how:
        case "mute":
            bus.mute = True
        case "slow":
            bus.slow_s = fault.slow_s
        case "frozen":
            bus.frozen_until_s = asyncio.get_running_loop().time() + fault.lasts_s
        case "lies":
            bus.lie = Liar(wire.drawn)
        case "cut":
            await bus.lose()
