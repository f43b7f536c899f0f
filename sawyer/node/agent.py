"""The life of a node: check the model, register, load experts, serve, beat, drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from sawyer.bus.calls import ask, read, record
from sawyer.bus.protocol import Bus, Message
from sawyer.bus.service import Service
from sawyer.clock import Clock
from sawyer.engine.experts import ExpertPool
from sawyer.engine.session import Device, device_name
from sawyer.errors import SawyerError, UnknownModel
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.ids import HostId, ModelId, NetworkId, NodeId
from sawyer.ledger.commands import command
from sawyer.model.artifacts import Artifacts
from sawyer.node.health import Health, memory_mb
from sawyer.node.hosting import pairs
from sawyer.node.receipts import ReceiptLog
from sawyer.node.serving import ServedModel, Serving
from sawyer.schemas import subjects
from sawyer.schemas.events import NodeRegistered
from sawyer.schemas.messages import (
    HEARTBEAT_KIND,
    ErrorBody,
    Finish,
    FinishReply,
    Heartbeat,
    HostedLayer,
    HostedModel,
    MembersReply,
    NetworkReply,
    Vitals,
)

HEARTBEAT_EVERY_S: Final = 1.0
HEARTBEAT_PAUSE_S: Final = 0.1
"""However often the roll is called."""
DRAIN_TIMEOUT_S: Final = 10.0
FINISH_LIMIT: Final = 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeIdentity:
    """Who this node is, and whom it earns for."""

    node: NodeId
    host: HostId
    key: Key


@dataclass(frozen=True)
class Hosting:
    """What this node serves: a split model, some of its experts, on a device with so many threads."""

    artifacts: Artifacts
    layers: tuple[HostedLayer, ...]
    device: Device
    threads: int
    accuracy_level: int


class NodeAgent:
    """Run it with `await run()`; it returns after `stop()` once it has drained."""

    def __init__(
        self, bus: Bus, me: NodeIdentity, hosting: Hosting, receipts: ReceiptLog, clock: Clock, version: str
    ) -> None:
        self._bus = bus
        self._me = me
        self._hosting = hosting
        self._receipts = receipts
        self._clock = clock
        self._version = version
        self._health = Health()
        self._stopping = asyncio.Event()
        self._finished = asyncio.Event()
        self._called = asyncio.Event()
        self._beats = 0
        self._instance = secrets.token_hex(16)
        self._started_ms = clock.now_ms()

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Raises WrongManifest or UnknownModel before serving anything, if the network publishes other weights."""
        manifest = self._hosting.artifacts.manifest
        network = await ask(self._bus, "network", NetworkReply)
        network.check_published(manifest.model, self._hosting.artifacts.digest)
        pool = await asyncio.to_thread(self._load)
        await self._register(NetworkId(network.network), pool)
        served = ServedModel(ModelId(manifest.model), self._hosting.artifacts.digest, manifest.layout.hidden, pool)
        serving = Serving(self._bus, self._me.node, served, self._receipts, self._health)
        finishing = Service(self._bus, subjects.finish(self._me.node), self._finish, _refuse_finish, limit=FINISH_LIMIT)
        await serving.start()
        await finishing.start()
        await self._bus.subscribe(subjects.roll_call(), lambda _: self._called.set())
        await self._send_heartbeat(network.network, serving)
        await self._bus.flush()
        beating = asyncio.create_task(self._beat(network.network, serving))
        started()
        try:
            await self._stopping.wait()
            await self._drain(network.network, serving)
        finally:
            beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beating
            await finishing.stop()

    def stop(self) -> None:
        """Drain: say so, answer what waits, sign what is finished within DRAIN_TIMEOUT_S, end."""
        self._stopping.set()

    def _load(self) -> ExpertPool:
        """Verified, loaded, and run once each: the first request must not wait for memory to become real."""
        pool = ExpertPool(
            self._hosting.artifacts,
            pairs(self._hosting.layers),
            accuracy_level=self._hosting.accuracy_level,
            device=self._hosting.device,
        )
        for layer, expert in pool.hosted:
            pool.run(layer, expert, np.zeros((1, pool.hidden), np.float32))
        return pool

    async def _register(self, network: NetworkId, pool: ExpertPool) -> None:
        """Once in the life of a node; a name that another key holds is refused."""
        members = await ask(self._bus, "members", MembersReply)
        for known in members.nodes:
            if known.node == self._me.node and known.key == self._me.key.id:
                return
        body = NodeRegistered(
            network=network,
            node=self._me.node,
            host=self._me.host,
            key=self._me.key.id,
            device=device_name(pool.provider).encode("ascii", "replace").decode()[:128],
            memory_mb=memory_mb()[0],
        )
        await record(self._bus, command(body, self._me.node, self._me.key))

    async def _finish(self, message: Message) -> bytes:
        finish = read(Finish, message.data)
        if finish.model != self._hosting.artifacts.manifest.model:
            raise UnknownModel(f"this node does not serve {finish.model}")
        receipt = await asyncio.to_thread(self._receipts.finish, finish, self._hosting.artifacts.digest)
        self._finished.set()
        return FinishReply(receipt=receipt).canonical()

    async def _beat(self, network: str, serving: Serving) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_EVERY_S):  # not wait_for: before 3.12 it can lose a cancel
                    await self._called.wait()
            self._called.clear()
            await self._send_heartbeat(network, serving)
            await asyncio.sleep(HEARTBEAT_PAUSE_S)

    async def _send_heartbeat(self, network: str, serving: Serving) -> None:
        self._beats += 1
        signed = sign(self._heartbeat(network, serving), HEARTBEAT_KIND, self._me.node, self._me.key)
        try:
            await self._bus.publish(subjects.heartbeat(self._me.node), signed.canonical())
        except SawyerError as error:
            log.warning("heartbeat not sent: %s", error)

    def _heartbeat(self, network: str, serving: Serving) -> Heartbeat:
        artifacts, health = self._hosting.artifacts, self._health
        total_mb, free_mb = memory_mb()
        model = HostedModel(
            model=artifacts.manifest.model,
            manifest=artifacts.digest,
            format=artifacts.manifest.format,
            layers=self._hosting.layers,
            row_us=0,
            rows_per_second=0,
        )
        vitals = Vitals(
            version=self._version,
            provider=serving.provider,
            device=device_name(serving.provider),
            threads=self._hosting.threads,
            memory_total_mb=total_mb,
            memory_free_mb=free_mb,
            queue=serving.queue,
            answers=health.answers,
            refused=health.refused,
            rows=health.rows,
            runs=0,
            latency_p50_us=health.latency_us(0.5),
            latency_p95_us=health.latency_us(0.95),
            rows_per_second=health.rows_per_second(),
            round_trip_us=0,
            kilobytes_per_second=0,
        )
        return Heartbeat(
            network=network,
            node=self._me.node,
            at_ms=self._clock.now_ms(),
            beat=self._beats,
            instance=self._instance,
            started_ms=self._started_ms,
            models=(model,),
            draining=self._stopping.is_set(),
            vitals=vitals,
        )

    async def _drain(self, network: str, serving: Serving) -> None:
        await self._send_heartbeat(network, serving)
        await serving.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await self._until_settled()

    async def _until_settled(self) -> None:
        """Returns when no request waits for this node's receipt."""
        while self._receipts.open_requests:
            self._finished.clear()
            await self._finished.wait()


def _refuse_finish(error: SawyerError) -> bytes:
    return FinishReply(error=ErrorBody.of(error)).canonical()
