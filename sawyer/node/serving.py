"""Answers activation requests: the handler checks and enqueues, a worker thread runs ONNX Runtime."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sawyer.bus.protocol import Bus, Message, Subscription
from sawyer.engine.experts import ExpertPool
from sawyer.errors import Busy, MalformedMessage, NoAnswer, SawyerError, UnknownExpert, WrongManifest
from sawyer.ids import ModelId, NodeId, RequestId
from sawyer.ledger.merkle import leaf_hash
from sawyer.node.health import Health
from sawyer.node.receipts import Block, ReceiptLog
from sawyer.schemas import subjects, tensors
from sawyer.schemas.tensors import ActivationReply, ActivationRequest, block_leaf

QUEUE_LIMIT: Final = 256
F16_MAX: Final = float(np.finfo(np.float16).max)
_NOBODY: Final = RequestId("0" * 32)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """One model on this node: its name, the digest (hex) of its manifest, its expert sessions."""

    model: ModelId
    manifest: str
    hidden: int
    pool: ExpertPool

    @property
    def prefix(self) -> bytes:
        return bytes.fromhex(self.manifest)[: tensors.MANIFEST_PREFIX_BYTES]


@dataclass(frozen=True, slots=True)
class _Job:
    request: ActivationRequest
    reply_to: str
    arrived_s: float


class Serving:
    """Serves one model's experts for one node."""

    def __init__(self, bus: Bus, node: NodeId, served: ServedModel, receipts: ReceiptLog, health: Health) -> None:
        self._bus = bus
        self._node = node
        self._served = served
        self._receipts = receipts
        self._health = health
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue(QUEUE_LIMIT)
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="experts")
        self._subscription: Subscription | None = None
        self._worker: asyncio.Task[None] | None = None
        self._replies: set[asyncio.Task[None]] = set()

    @property
    def provider(self) -> str:
        """The ONNX Runtime provider that the sessions really run on."""
        return self._served.pool.provider

    @property
    def queue(self) -> int:
        """Requests that wait."""
        return self._jobs.qsize()

    async def start(self) -> None:
        self._worker = asyncio.create_task(self._work())
        self._subscription = await self._bus.subscribe(
            subjects.experts_of(self._node, self._served.model), self._enqueue
        )

    async def stop(self) -> None:
        """Take no more, answer what waits, end."""
        if self._subscription is not None:
            await self._subscription.drain()
            await self._jobs.join()
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        self._compute.shutdown()

    def _enqueue(self, message: Message) -> None:
        if not message.reply:
            return
        request, sequence = _NOBODY, 0
        try:
            header = tensors.read_header(message.data)
            request, sequence = header.request, header.sequence
            decoded = tensors.decode_request(message.data)
            self._check(decoded)
            self._jobs.put_nowait(_Job(decoded, message.reply, perf_counter()))
        except asyncio.QueueFull:
            self._refuse(
                Busy(f"{QUEUE_LIMIT} activation requests are waiting already"), request, sequence, message.reply
            )
        except SawyerError as error:
            self._refuse(error, request, sequence, message.reply)

    def _check(self, request: ActivationRequest) -> None:
        served = self._served
        if request.manifest != served.prefix:
            raise WrongManifest(
                f"this node serves {served.model} with manifest {served.prefix.hex()}, not {request.manifest.hex()}"
            )
        if request.rows.shape[1] != served.hidden:
            raise MalformedMessage(f"rows have {request.rows.shape[1]} values, {served.model} has {served.hidden}")
        missing = [expert for expert, _ in request.work if (request.layer, expert) not in served.pool.hosted]
        if missing:
            raise UnknownExpert(f"layer {request.layer}: this node does not serve expert {missing[0]}")

    def _refuse(self, error: SawyerError, request: RequestId, sequence: int, reply_to: str) -> None:
        self._health.refused += 1
        log.warning("refused an activation: %s", error)
        task = asyncio.get_running_loop().create_task(
            self._send(reply_to, tensors.encode_error(error, request, sequence))
        )
        self._replies.add(task)
        task.add_done_callback(self._replies.discard)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            job = await self._jobs.get()
            try:
                reply = await loop.run_in_executor(self._compute, self._answer, job)
            except SawyerError as error:
                self._refuse(error, job.request.request, job.request.sequence, job.reply_to)
            except Exception as error:
                log.exception("an activation failed")
                failed = SawyerError(f"the node failed ({type(error).__name__}); its log has more")
                self._refuse(failed, job.request.request, job.request.sequence, job.reply_to)
            else:
                await self._send(job.reply_to, reply)
                rows = sum(len(indices) for _, indices in job.request.work)
                self._health.answered(rows, perf_counter() - job.arrived_s)
            finally:
                self._jobs.task_done()

    def _answer(self, job: _Job) -> bytes:
        """In the worker thread: run every expert of the message, note the blocks, make the reply."""
        started = perf_counter()
        request = job.request
        waited_s = started - job.arrived_s
        if waited_s * 1000 > request.deadline_ms:
            raise NoAnswer(f"waited {waited_s * 1000:.0f} ms, past the deadline of {request.deadline_ms} ms")
        if not np.isfinite(request.rows).all():
            raise MalformedMessage("rows hold NaN or infinity")
        outputs = [
            self._served.pool.run(request.layer, expert, request.rows[indices].astype(np.float32, copy=False))
            for expert, indices in request.work
        ]
        blocks = _on_wire(outputs, wide=request.reply_f32 or request.rows.dtype == np.float32)
        noted = tuple(
            _noted(request.layer, expert, request.rows[indices], block)
            for (expert, indices), block in zip(request.work, blocks, strict=True)
        )
        self._receipts.note(request.request, self._served.manifest, request.sequence, noted)
        compute_s = perf_counter() - started
        self._health.computed(sum(len(block) for block in blocks), compute_s)
        return tensors.encode_reply(
            ActivationReply(
                request=request.request,
                sequence=request.sequence,
                manifest=request.manifest,
                layer=request.layer,
                blocks=tuple((expert, block) for (expert, _), block in zip(request.work, blocks, strict=True)),
                compute_us=int(compute_s * 1e6),
                waited_us=int(waited_s * 1e6),
            )
        )

    async def _send(self, to: str, data: bytes) -> None:
        try:
            await self._bus.publish(to, data)
        except SawyerError as error:
            log.warning("cannot answer %s: %s", to, error)


def _noted(layer: int, expert: int, inputs: tensors.Rows, output: tensors.Rows) -> Block:
    return Block(layer, expert, len(output), leaf_hash(block_leaf(layer, expert, inputs, output)))


def _on_wire(outputs: list[NDArray[np.float32]], *, wide: bool) -> list[tensors.Rows]:
    """Outputs [n, H] as they travel: float16, or float32 if asked for or if a value would not fit float16. Raises
    SawyerError if an expert made a value that is no number."""
    largest = float(np.max([np.abs(block).max() for block in outputs]))  # unlike max(), NaN wins
    if not np.isfinite(largest):
        raise SawyerError("an expert made NaN or infinity")
    if wide or largest > F16_MAX:
        return list(outputs)
    return [block.astype(np.float16) for block in outputs]
