"""Layer calls to real nodes, without a trunk: what a router does between gate and combine, measured call by call; and
the yardstick beside it, plain requests with messages of the same sizes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final, NamedTuple

import numpy as np

from sawyer.bench.echo import own_subject, subject
from sawyer.bus.gather import Gatherer
from sawyer.bus.plain import PlainClient
from sawyer.bus.protocol import Bus
from sawyer.engine.combine import group_rows
from sawyer.errors import NoAnswer
from sawyer.ids import ModelId, RequestId, new_request_id
from sawyer.model.artifacts import Artifacts
from sawyer.router.directory import Directory
from sawyer.router.dispatch import Dispatcher, ExpertRows
from sawyer.router.metering import Meter
from sawyer.router.scope import RequestScope, Share
from sawyer.schemas import subjects, tensors
from sawyer.schemas.models import ModelLayout
from sawyer.schemas.tensors import ActivationReply, ActivationRequest, Part

COVERED_TIMEOUT_S: Final = 20.0
FINISH_TIMEOUT_S: Final = 10.0
ECHO_TIMEOUT_S: Final = 10.0
SEED: Final = 11
NODE_HIDDEN: Final = 4096
"""Mixtral's: a row of 8 KB in float16."""


@dataclass
class Calls:
    """Layer calls of one size, one after another. Microseconds a call; compute is that of the slowest node of a call,
    by its own word."""

    rows: int
    top_k: int
    wall_us: list[float] = field(default_factory=list)
    compute_us: list[float] = field(default_factory=list)

    @property
    def communication_us(self) -> list[float]:
        """What is not compute."""
        return [wall - compute for wall, compute in zip(self.wall_us, self.compute_us, strict=True)]

    @property
    def calls_per_second(self) -> float:
        return 1e6 * len(self.wall_us) / sum(self.wall_us)


class LayerCaller:
    """A router's directory and dispatcher over real nodes. Use it as an async context manager."""

    def __init__(self, bus: Bus, artifacts: Artifacts) -> None:
        model = ModelId(artifacts.manifest.model)
        self._bus = bus
        self._layout = artifacts.layout
        self._directory = Directory(bus, model, artifacts.digest)
        self._gatherer = Gatherer(bus, urgent=lambda data: data[5:6] == bytes([tensors.Kind.ERROR]))
        self._dispatcher = Dispatcher(self._gatherer, self._directory.placement, model, artifacts.digest)
        self._random = np.random.default_rng(SEED)

    async def __aenter__(self) -> LayerCaller:
        await self._gatherer.start()
        await self._directory.start()
        try:
            async with asyncio.timeout(COVERED_TIMEOUT_S):
                while self._directory.placement.missing(self._layout.moe_layers, self._layout.experts):
                    self._directory.changed.clear()
                    await self._directory.changed.wait()
        except TimeoutError as error:
            raise NoAnswer(f"not every expert is served after {COVERED_TIMEOUT_S:g} s") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._directory.stop()
        await self._gatherer.stop()

    async def measure(self, rows: int, count: int) -> Calls:
        """`count` calls of `rows` rows each through the layers in turn, as one request. A row alone goes to an even and
        an odd expert, which with equal shares are two nodes' (top 2); each of more rows to experts at random.

        Raises ExpertUnavailable."""
        layout = self._layout
        request = new_request_id()
        scope = RequestScope(request, Meter(request, self._dispatcher.model), traced=True)
        measured = Calls(rows, layout.top_k)
        for n in range(count):
            hidden = self._random.standard_normal((rows, layout.hidden), dtype=np.float32)
            work = [ExpertRows(group.expert, group.rows) for group in group_rows(self._choice(rows))]
            layer = layout.moe_layers[n % len(layout.moe_layers)]
            started = perf_counter()
            answers = await self._dispatcher.layer([Share(scope, rows)], layer, hidden, work)
            measured.wall_us.append((perf_counter() - started) * 1e6)
            for error in answers.failed.values():
                raise error
            measured.compute_us.append(max(call.compute_us for call in answers.calls[0]))
        await self._finish(scope)
        return measured

    async def measure_gathered(self, sent: EchoRound, count: int) -> list[float]:
        """As measure_plain, from this caller's one inbox. Raises NoAnswer."""
        data, targets = sent
        taken_us = []
        for _ in range(count):
            started = perf_counter()
            with self._gatherer.call() as call:
                for tag, target in enumerate(targets):
                    await call.send(tag, target, data)
                answers = await call.wait(ECHO_TIMEOUT_S)
            taken_us.append((perf_counter() - started) * 1e6)
            if len(answers) < len(targets) or any(answer.loss for answer in answers):
                raise NoAnswer(f"not every echo answered within {ECHO_TIMEOUT_S:g} s")
        return taken_us

    def _choice(self, rows: int) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        experts, top_k = self._layout.experts, self._layout.top_k
        if rows == 1:
            first = self._random.integers(experts // top_k, size=top_k) * top_k
            return np.sort(first + np.arange(top_k)).astype(np.int32)[None]
        return np.stack([self._random.permutation(experts)[:top_k] for _ in range(rows)]).astype(np.int32)

    async def _finish(self, scope: RequestScope) -> None:
        """As a router ends a request: the nodes sign for it and forget it."""
        for node in sorted(scope.asked):
            finish = scope.meter.finish(node)
            await self._bus.request(subjects.finish(node), finish.canonical(), FINISH_TIMEOUT_S)


async def measure_plain(client: PlainClient, sent: EchoRound, count: int) -> list[float]:
    """Microseconds of `count` rounds of plain requests, all of a round at once. Raises NoAnswer."""
    taken_us = []
    for _ in range(count):
        started = perf_counter()
        await client.ask_all(sent.targets, sent.data)
        taken_us.append((perf_counter() - started) * 1e6)
    return taken_us


class EchoRound(NamedTuple):
    """What to send at once, and to which subjects."""

    data: bytes
    targets: list[str]

    @classmethod
    def of_layer(cls, echoes: Sequence[str], layout: ModelLayout) -> EchoRound:
        """As many requests as the model's top k, round the echoes, with request and answer as long as those of one row
        and one expert."""
        asked, answered = message_bytes(layout.hidden)
        return cls(bytes(asked), [subject(echoes[n % len(echoes)], answered) for n in range(layout.top_k)])

    @classmethod
    def of_nodes(cls, echoes: Sequence[str], *, own: bool) -> EchoRound:
        """One request to each echo, with one row of NODE_HIDDEN values. `own`: over our bus at both ends."""
        asked, answered = message_bytes(NODE_HIDDEN)
        return cls(bytes(asked), [(own_subject if own else subject)(echo, answered) for echo in echoes])


def message_bytes(hidden: int) -> tuple[int, int]:
    """The lengths of an activation request and its reply for one row of one expert."""
    row, request = np.zeros((1, hidden), np.float16), RequestId("0" * 32)
    manifest = bytes(tensors.MANIFEST_PREFIX_BYTES)
    parts = (Part(request, 1, 1),)
    ask = ActivationRequest(parts, manifest, 0, row, ((0, np.zeros(1, np.uint32)),), deadline_ms=1)
    answer = ActivationReply(parts, manifest, 0, ((0, row),), compute_us=0, waited_us=0)
    return len(tensors.encode_request(ask)), len(tensors.encode_reply(answer))
