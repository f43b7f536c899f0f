"""The life of a node: check the model, bring and load experts, register, serve, beat, drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import numpy as np

from sawyer.bus.calls import read, refuse_query
from sawyer.bus.discovery import NODE, About, Discovery, Endpoint
from sawyer.bus.protocol import Bus, Message
from sawyer.bus.service import Service
from sawyer.clock import Clock, iso
from sawyer.engine.experts import ExpertPool
from sawyer.engine.session import Device, device_name
from sawyer.errors import ClockWrong, SawyerError, UnknownModel
from sawyer.identity.envelope import sign
from sawyer.ids import HostId, ModelId, NetworkId
from sawyer.model.artifacts import Artifacts
from sawyer.model.files import ModelFiles
from sawyer.model.layout import Array
from sawyer.node.capability import Speed, WayKeeper, measure_speed, measure_way
from sawyer.node.choosing import Pair
from sawyer.node.demand import Watched
from sawyer.node.following import Follower
from sawyer.node.health import Health
from sawyer.node.hosting import in_preference, pairs, with_replica, without
from sawyer.node.memory import Memory, MiB, read_memory
from sawyer.node.namesake import Instance, Namesakes
from sawyer.node.network_time import NetworkTime
from sawyer.node.pressure import Pressure
from sawyer.node.reading import SERVING_PATIENCE_S, ExpertReader
from sawyer.node.receipts import ReceiptLog
from sawyer.node.registration import NodeIdentity, register
from sawyer.node.serving import ServedModel, Serving
from sawyer.node.witness import CheckpointWitness
from sawyer.schemas import subjects
from sawyer.schemas.messages import (
    HEARTBEAT_KIND,
    ErrorBody,
    Finish,
    FinishReply,
    Heartbeat,
    HostedLayer,
    HostedModel,
    Vitals,
)
from sawyer.schemas.metrics import Metrics

MAX_CLOCK_ERROR_MS: Final = 5 * 60 * 1000
HEARTBEAT_EVERY_S: Final = 1.0
HEARTBEAT_PAUSE_S: Final = 0.1
"""However often the roll is called."""
TIME_EVERY_S: Final = 60.0
"""How often the bookkeeper is asked for the time."""
DRAIN_TIMEOUT_S: Final = 10.0
FINISH_LIMIT: Final = 1024
GIVE_UP_S: Final = 5.0
"""So long an expert that is no longer told of is still answered for: routers have asked, or have not heard yet."""
QUERY_LIMIT: Final = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hosting:
    """What this node serves: a split model, some of its experts, on a device with so many threads. Loaded experts keep
    within `memory_limit_bytes` (None: within what the machine has), the others are loaded when they are asked for.
    `follows`: so many experts at most, which may be others when the demand moves; 0 for those in `layers` alone."""

    files: ModelFiles
    layers: tuple[HostedLayer, ...]
    device: Device
    threads: int
    accuracy_level: int
    memory_limit_bytes: int | None = None
    follows: int = 0

    @property
    def artifacts(self) -> Artifacts:
        return self.files.artifacts


class _Stopped(Exception):
    """It is stopped while it loads: nobody waits for the rest."""


class NodeAgent:
    """Run it with `await run()`; it returns after `stop()` once it has drained."""

    def __init__(
        self,
        bus: Bus,
        me: NodeIdentity,
        hosting: Hosting,
        receipts: ReceiptLog,
        clock: Clock,
        version: str,
        witness: CheckpointWitness | None = None,
        memory: Callable[[], Memory] = read_memory,
    ) -> None:
        self._witness = witness
        self._memory = memory
        self._pressure = Pressure(memory)
        self._bus = bus
        self._me = me
        self._hosting = hosting
        self._receipts = receipts
        self._clock = clock
        self._version = version
        self._health = Health()
        self._stopping = asyncio.Event()
        self._starting = True
        self._finished = asyncio.Event()
        self._called = asyncio.Event()
        self._beats = 0
        self._instance = secrets.token_hex(16)
        self._time = NetworkTime()
        self._started_ms: int
        self._host = me.host
        self._layers = hosting.layers
        self._model = ModelId(hosting.artifacts.manifest.model)
        self._way = WayKeeper(lambda: measure_way(bus, self._model, lambda: self._serving.queue > 0))
        self._speed = Speed(0, 0)
        self._serving: Serving
        self._reader: ExpertReader
        self._pool: ExpertPool

    @property
    def provider(self) -> str:
        """The ONNX Runtime provider on which experts really run; once it serves."""
        return self._serving.provider

    @property
    def summary(self) -> str:
        """What it serves, where, and who is paid; once it serves."""
        manifest, threads = self._hosting.artifacts.manifest, self._hosting.threads
        experts = len(pairs(self._hosting.layers))
        where = self.provider.removesuffix("ExecutionProvider")
        loaded = self._pool.counts.loaded
        room = f" ({loaded} of them in memory, the others on demand)" if loaded < experts else ""
        return (
            f"{self._me.node} serves {experts} expert{'s' * (experts != 1)}{room} of {manifest.model} "
            f"({manifest.format}) on {where}, {threads} thread{'s' * (threads != 1)}, for {self._host}"
        )

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Before anything is served, raises WrongManifest or UnknownModel if the network publishes other weights,
        ClockWrong if this machine's clock is far off, NameTaken if another process serves under this name. If one shows
        later that started earlier, ends with NameTaken. Ends with a SawyerError if a task that it needs dies."""
        network, self._started_ms = await self._time.ask(self._bus)
        self._time.take(network.now_ms)
        network.check_published(self._model, self._hosting.artifacts.digest)
        check_clock(self._clock.now_ms(), network.now_ms)
        instance = Instance(network.network, self._me.node, self._me.key.id, self._instance, self._started_ms)
        namesakes = Namesakes(self._bus, instance)
        await namesakes.start()
        try:
            await namesakes.refuse_second()
            if not await self._ends_before_stop(self._make_ready()):
                return
            pool, self._starting = self._pool, False
            self._reader.patience_s = SERVING_PATIENCE_S
            known = await register(self._bus, NetworkId(network.network), self._me, device_name(pool.provider))
            self._host = HostId(known.host)
            await self._serve(network.network, pool, namesakes, started)
        finally:
            await namesakes.stop()

    def stop(self) -> None:
        """Drain: say so, answer what waits, sign what is finished within DRAIN_TIMEOUT_S, end. Or only end, if it does
        not serve yet."""
        self._stopping.set()

    async def _ends_before_stop(self, work: Coroutine[Any, Any, None]) -> bool:
        """False if `stop` came first: then it is cancelled. Raises what it raises."""
        working, stopping = asyncio.create_task(work), asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set():
                return False
            await working
            return True
        except asyncio.CancelledError:
            self._stopping.set()  # for the thread that loads
            raise
        finally:
            await _end([working, stopping])

    def _check_wanted(self) -> None:
        if self._starting and self._stopping.is_set():
            raise _Stopped

    async def _make_ready(self) -> None:
        self._reader = ExpertReader(self._hosting.files)
        await self._reader.bring(pairs(self._hosting.layers))
        self._pool = await asyncio.to_thread(self._load)

    def _read(self, layer: int, expert: int) -> dict[str, Array]:
        """In any thread but the loop's. Raises ArtifactCorrupt, and _Stopped if it is stopped before it serves: a
        thread cannot be cancelled."""
        self._check_wanted()
        return self._reader.read(layer, expert)

    def _load(self) -> ExpertPool:
        """Every file verified; as many experts loaded as there is room for, and run once each: the first request must
        not wait for memory to become real."""
        hosting = self._hosting
        pool = ExpertPool(
            hosting.artifacts,
            in_preference(hosting.layers),
            accuracy_level=hosting.accuracy_level,
            device=hosting.device,
            limit_bytes=hosting.memory_limit_bytes,
            lacking=self._pressure.lacking,
            read=self._read,
        )
        for pair in pool.hosted:
            self._check_wanted()
            if pool.is_loaded(*pair):
                pool.run(*pair, np.zeros((1, pool.hidden), np.float32))
            else:
                self._read(*pair)
        self._speed = measure_speed(pool)
        return pool

    async def _serve(self, network: str, pool: ExpertPool, namesakes: Namesakes, started: Callable[[], None]) -> None:
        """Until it is stopped or the name turns out to be taken; then everything is ended."""
        layout = self._hosting.artifacts.layout
        served = ServedModel(self._model, self._hosting.artifacts.digest, layout.hidden, pool)
        self._serving = Serving(self._bus, self._me.node, served, self._receipts, self._health)
        finishing = Service(self._bus, subjects.finish(self._me.node), self._finish, _refuse_finish, limit=FINISH_LIMIT)
        counts = Service(self._bus, subjects.query("metrics"), self._metrics, refuse_query, limit=QUERY_LIMIT)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._serving.close)
            await self._serving.start()
            for each in (finishing, counts, self._discovery(finishing, pool)):
                stack.push_async_callback(each.stop)
                await each.start()
            called = await self._bus.subscribe(subjects.roll_call(), lambda _: self._called.set())
            stack.push_async_callback(called.unsubscribe)
            await self._send_heartbeat(network)
            await self._bus.flush()
            beside = [
                asyncio.create_task(self._beat(network), name="what sends heartbeats"),
                asyncio.create_task(self._way.run(), name="what measures the way"),
                asyncio.create_task(self._keep_time(), name="what keeps the time"),
                asyncio.create_task(self._pressure.run(pool), name="what watches the memory"),
                asyncio.create_task(self._reader.mend(), name="what mends files"),
            ]
            if self._hosting.follows:
                beside.append(asyncio.create_task(self._follower(network).run(), name="what follows the demand"))
            stack.push_async_callback(_end, beside)
            if self._witness is not None:  # nobody's work waits for it
                stack.push_async_callback(_end, [asyncio.create_task(self._witness.run())])
            started()
            await self._until_stopped(namesakes, [*beside, self._serving.worker])
            await self._drain(network)

    def _follower(self, network: str) -> Follower:
        hosting = self._hosting

        def mine() -> tuple[frozenset[Pair], int]:
            return frozenset(self._pool.hosted), hosting.follows - len(self._pool.hosted)

        async def adopt(pair: Pair) -> None:
            await self._reader.bring([pair])
            await asyncio.to_thread(self._pool.adopt, *pair)
            self._layers = with_replica(self._layers, pair)
            await self._send_heartbeat(network)

        async def give_up(pair: Pair) -> None:
            self._layers = without(self._layers, {pair})
            await self._send_heartbeat(network)
            await asyncio.sleep(GIVE_UP_S)
            await asyncio.to_thread(self._pool.give_up, *pair)

        digest = hosting.artifacts.digest
        return Follower(Watched(self._bus, self._model, digest, hosting.artifacts.layout, mine), adopt, give_up)

    async def _until_stopped(self, namesakes: Namesakes, needed: Sequence[asyncio.Task[None]]) -> None:
        """Raises what ended a task that we need: without it we would beat and serve nobody, or serve unseen."""
        stopping = asyncio.create_task(self._stopping.wait())
        second = asyncio.create_task(namesakes.refuse_later(), name="what watches over the name")
        try:
            await asyncio.wait({stopping, second, *needed}, return_when=asyncio.FIRST_COMPLETED)
            for task in (second, *needed):
                if task.done():
                    raise _why_ended(task)
        finally:
            await _end([stopping, second])

    def _discovery(self, finishing: Service, pool: ExpertPool) -> Discovery:
        manifest, health = self._hosting.artifacts.manifest, self._health
        about = About(
            NODE,
            self._me.node,
            self._version,
            self._started_ms,
            "experts of a model",
            {
                "model": manifest.model,
                "format": manifest.format,
                "host": self._host,
                "provider": pool.provider,
                "instance": self._instance,
            },
        )
        subject = subjects.experts_of(self._me.node, self._model)
        experts = Endpoint("experts", subject, health.counts, data=lambda: {**health.data(), **_memory_data(pool)})
        return Discovery(self._bus, about, [experts, Endpoint.of("finish", finishing)])

    async def _finish(self, message: Message) -> bytes:
        finish = read(Finish, message.data)
        if finish.model != self._model:
            raise UnknownModel(f"this node does not serve {finish.model}")
        receipt = await asyncio.to_thread(self._receipts.finish, finish, self._hosting.artifacts.digest)
        self._finished.set()
        rows = 0 if receipt is None else receipt.body.rows
        log.info("request %s is over: %d rows receipted", finish.request, rows, extra={"request": finish.request})
        return FinishReply(receipt=receipt).canonical()

    async def _metrics(self, _: Message) -> bytes:
        told = self._health.told(self._me.node, self._model, self._started_ms, self._serving.queue)
        return Metrics(m=told).canonical()

    async def _beat(self, network: str) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_EVERY_S):  # not wait_for: before 3.12 it can lose a cancel
                    await self._called.wait()
            self._called.clear()
            await self._send_heartbeat(network)
            await asyncio.sleep(HEARTBEAT_PAUSE_S)

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(TIME_EVERY_S)
            try:
                told, _ = await self._time.ask(self._bus)
                check_clock(self._clock.now_ms(), told.now_ms)
            except SawyerError as error:
                log.debug("the time stays as it is: %s", error)
            else:
                self._time.take(told.now_ms)

    async def _send_heartbeat(self, network: str) -> None:
        self._beats += 1
        signed = sign(self._heartbeat(network), HEARTBEAT_KIND, self._me.node, self._me.key)
        try:
            await self._bus.publish(subjects.heartbeat(self._me.node), signed.canonical())
        except SawyerError as error:
            log.warning("heartbeat not sent: %s", error)

    def _heartbeat(self, network: str) -> Heartbeat:
        artifacts = self._hosting.artifacts
        model = HostedModel(
            model=artifacts.manifest.model,
            manifest=artifacts.digest,
            format=artifacts.manifest.format,
            layers=without(self._layers, self._reader.broken),
            row_us=self._speed.row_us,
            rows_per_second=self._speed.rows_per_second,
        )
        return Heartbeat(
            network=network,
            node=self._me.node,
            at_ms=self._time.now_ms(),
            beat=self._beats,
            instance=self._instance,
            started_ms=self._started_ms,
            models=(model,),
            draining=self._stopping.is_set(),
            vitals=self._vitals(),
        )

    def _vitals(self) -> Vitals:
        health, serving, way = self._health, self._serving, self._way.way
        memory, counts = self._memory(), self._pool.counts
        return Vitals(
            version=self._version,
            provider=serving.provider,
            device=device_name(serving.provider),
            threads=self._hosting.threads,
            memory_total_mb=memory.total_bytes // MiB,
            memory_free_mb=memory.free_bytes // MiB,
            loaded=counts.loaded,
            loads=counts.loads,
            drops=counts.drops,
            queue=serving.queue,
            answers=health.answers,
            refused=health.refused,
            rows=health.rows,
            runs=health.runs,
            latency_p50_us=health.latency_us(0.5),
            latency_p95_us=health.latency_us(0.95),
            rows_per_second=health.rows_per_second(),
            round_trip_us=way.round_trip_us,
            kilobytes_per_second=way.kilobytes_per_second,
        )

    async def _drain(self, network: str) -> None:
        await self._send_heartbeat(network)
        await self._serving.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await self._until_settled()

    async def _until_settled(self) -> None:
        """Returns when no request waits for this node's receipt."""
        while self._receipts.open_requests:
            self._finished.clear()
            await self._finished.wait()


def _memory_data(pool: ExpertPool) -> dict[str, int]:
    counts = pool.counts
    return {"hosted": counts.hosted, "loaded": counts.loaded, "loads": counts.loads, "drops": counts.drops}


def check_clock(here_ms: int, bookkeeper_ms: int) -> None:
    """Raises ClockWrong if this machine's clock is more than MAX_CLOCK_ERROR_MS from the bookkeeper's: its heartbeats
    would count as old, or outlive it."""
    ahead_ms = here_ms - bookkeeper_ms
    if abs(ahead_ms) > MAX_CLOCK_ERROR_MS:
        direction = "ahead of" if ahead_ms > 0 else "behind"
        raise ClockWrong(
            f"this machine's clock ({iso(here_ms)}) is {timedelta(seconds=abs(ahead_ms) // 1000)} {direction} the "
            f"bookkeeper's ({iso(bookkeeper_ms)})"
        )


def _why_ended(task: asyncio.Task[None]) -> SawyerError:
    """Of a task that should not have ended; what is no typed error is told in the log."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, SawyerError):
        return error
    log.error("%s ended", task.get_name(), exc_info=error)
    how = "was cancelled" if task.cancelled() else f"ended ({type(error).__name__})"
    return SawyerError(f"{task.get_name()} {how}: the node cannot go on", hint="Start it again; its log has more.")


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _refuse_finish(error: SawyerError) -> bytes:
    return FinishReply(error=ErrorBody.of(error)).canonical()
