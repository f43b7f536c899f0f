"""Answers activation requests: the handler checks and enqueues, a worker runs ONNX Runtime (batching.py says which rows
next), in a thread but for what is done sooner than a thread is woken."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sawyer.bus.protocol import MAX_PAYLOAD_BYTES, Bus, Message, Subscription
from sawyer.engine.experts import ExpertPool
from sawyer.engine.offload import Offload
from sawyer.errors import MalformedMessage, SawyerError, UnknownExpert, WrongManifest
from sawyer.ids import ModelId, NodeId
from sawyer.ledger.merkle import leaf_hash
from sawyer.node.batching import Job, Line, Run, jobs_of, typed, work
from sawyer.node.health import Health
from sawyer.node.receipts import Block, ReceiptLog
from sawyer.node.sparse import SparseWarnings
from sawyer.schemas import subjects, tensors
from sawyer.schemas.tensors import ActivationReply, ActivationRequest, PartWork, part_work

QUEUE_LIMIT: Final = 256
REFUSALS_LIMIT: Final = 1024
"""Refusals that are on their way out; who is refused beyond that is not told."""
MAX_REPLY_BYTES: Final = MAX_PAYLOAD_BYTES - 20 * 1024
"""Of rows; header and table of a reply take less than the rest."""
F16_MAX: Final = float(np.finfo(np.float16).max)

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


class Serving:
    """Serves one model's experts for one node."""

    def __init__(self, bus: Bus, node: NodeId, served: ServedModel, receipts: ReceiptLog, health: Health) -> None:
        self._bus = bus
        self._node = node
        self._served = served
        self._receipts = receipts
        self._health = health
        self._line = Line(QUEUE_LIMIT, joins=served.pool.row_exact)
        self._wake = asyncio.Event()
        self._ending = False
        self._compute = Offload("experts")
        self._subscription: Subscription | None = None
        self._worker: asyncio.Task[None] | None = None
        self._refusals: set[asyncio.Task[None]] = set()
        self._refused = SparseWarnings(log)

    @property
    def worker(self) -> asyncio.Task[None]:
        """What answers: it ends with `stop`, and if it ends before, nobody is answered any more. Only after `start`."""
        assert self._worker is not None
        return self._worker

    @property
    def provider(self) -> str:
        """The ONNX Runtime provider that the sessions really run on."""
        return self._served.pool.provider

    @property
    def queue(self) -> int:
        """Requests that wait."""
        return len(self._line)

    async def start(self) -> None:
        self._worker = asyncio.create_task(self._work(), name="what runs the experts")
        self._subscription = await self._bus.subscribe(
            subjects.experts_of(self._node, self._served.model), self._enqueue
        )

    async def stop(self) -> None:
        """Take no more, answer what waits, end."""
        if self._subscription is not None:
            await self._subscription.drain()
        self._ending = True
        self._wake.set()
        if self._worker is not None:
            await self._worker
        await asyncio.gather(*self._refusals)
        await asyncio.to_thread(self._compute.shutdown)

    async def close(self) -> None:
        """End at once: what waits is not answered. Nothing is left to do after `stop`."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)  # what it died of is told by who watches it
        await asyncio.to_thread(self._compute.shutdown)

    def _enqueue(self, message: Message) -> None:
        if not message.reply:
            return
        try:
            self._health.arrived(len(message.data))
            request = tensors.decode_request(message.data)
            self._check(request)
            job = Job(request, message.reply, perf_counter())
            _check_size(job.row_count, job.row_count * self._served.hidden * (4 if _wide(request) else 2))
            self._line.add(job)
        except SawyerError as error:
            self._count_refusal(error)
            if len(self._refusals) < REFUSALS_LIMIT:
                refusal = tensors.encode_error(error)
                task = asyncio.get_running_loop().create_task(self._send(message.reply, refusal))
                self._refusals.add(task)
                task.add_done_callback(self._refusals.discard)
        else:
            self._wake.set()

    def _check(self, request: ActivationRequest) -> None:
        served = self._served
        if request.manifest != served.prefix:
            raise WrongManifest(
                f"this node serves {served.model} with manifest {served.prefix.hex()}, not {request.manifest.hex()}"
            )
        if request.rows.shape[1] != served.hidden:
            raise MalformedMessage(f"rows have {request.rows.shape[1]} values, {served.model} has {served.hidden}")
        missing = [expert for expert, _ in request.work if not self._served.pool.hosts((request.layer, expert))]
        if missing:
            raise UnknownExpert(f"layer {request.layer}: this node does not serve expert {missing[0]}")

    def _count_refusal(self, error: SawyerError) -> None:
        self._health.refuse(error)
        self._refused.warning("refused an activation: %s", error)

    async def _work(self) -> None:
        while True:
            while not self._line:
                if self._ending:
                    return
                self._wake.clear()
                await self._wake.wait()
            turn = self._line.next_turn(self._served.pool.is_loaded)
            replies: dict[Job, bytes] = {}
            try:
                replies = await self._compute.run(self._kind(turn), self._run, turn)
            except Exception as error:  # noqa: BLE001  (whatever it is: those behind must be served)
                told = typed(error)
                for job in jobs_of(turn):
                    job.error = job.error or told
            for job in self._line.settle(turn):
                await self._answer(job, replies.get(job))

    async def _answer(self, job: Job, reply: bytes | None) -> None:
        """A job without a reply has an error."""
        if reply is None:
            error = job.error or SawyerError("the node made no answer")
            self._count_refusal(error)
            await self._send(job.reply_to, tensors.encode_error(error))
            return
        await self._send(job.reply_to, reply)
        self._health.answered(job.row_count, perf_counter() - job.arrived_s, len(reply))

    def _kind(self, turn: list[Run]) -> str:
        """Turns of one kind take about as long: so many experts, so many rows. One that loads an expert may take any
        time, and runs in the thread."""
        if not all(self._served.pool.is_loaded(run.layer, run.expert) for run in turn):
            return ""
        rows = sum(piece.end - piece.start for run in turn for piece in run.pieces)
        return f"{len(turn)} {rows.bit_length()}"

    def _run(self, turn: list[Run]) -> dict[Job, bytes]:
        """Run the turn, and make the reply of every job that is done with it. Short ones at once, others in a
        thread."""
        started_s = perf_counter()
        rows, runs = work(self._served.pool, turn)
        joined = sum(1 for run in turn if len(run.pieces) > 1)
        self._health.computed(rows, perf_counter() - started_s, runs, joined)
        replies = {}
        for job in jobs_of(turn):
            if job.error is None and job.ended:
                try:
                    replies[job] = self._reply(job)
                except Exception as error:  # noqa: BLE001  (told to whoever asked, and in the log)
                    job.error = typed(error)
        return replies

    def _reply(self, job: Job) -> bytes:
        """Note the blocks for the receipt, and put them into bytes. Raises SawyerError if an output is no number."""
        started_s, request = perf_counter(), job.request
        blocks = _on_wire(job.outputs(), wide=_wide(request))
        _check_size(job.row_count, sum(block.nbytes for block in blocks))
        done = part_work(request.layer, request.parts, request.work, job.inputs(), blocks)
        for part, own in zip(request.parts, done, strict=True):
            self._receipts.note(part.request, self._served.manifest, part.sequence, _noted(request.layer, own))
        return tensors.encode_reply(
            ActivationReply(
                parts=request.parts,
                manifest=request.manifest,
                layer=request.layer,
                blocks=tuple((expert, block) for (expert, _), block in zip(request.work, blocks, strict=True)),
                compute_us=int((job.busy_s + perf_counter() - started_s) * 1e6),
                waited_us=int((job.begun_s - job.arrived_s) * 1e6),
            )
        )

    async def _send(self, to: str, data: bytes) -> None:
        try:
            await self._bus.publish(to, data)
        except SawyerError as error:
            log.warning("cannot answer %s: %s", to, error)


def _wide(request: ActivationRequest) -> bool:
    """Whether the answer travels in float32."""
    return request.reply_f32 or request.rows.dtype == np.float32


def _check_size(rows: int, rows_bytes: int) -> None:
    """Refuse what no reply can carry, before it is computed."""
    if rows > tensors.MAX_ROWS or rows_bytes > MAX_REPLY_BYTES:
        raise MalformedMessage(
            f"the answer would hold {rows} rows in {rows_bytes} bytes; a reply carries at most {tensors.MAX_ROWS} in "
            f"{MAX_REPLY_BYTES}",
            hint="Ask for fewer rows at once.",
        )


def _noted(layer: int, done: PartWork) -> tuple[Block, ...]:
    return tuple(
        Block(layer, expert, rows, leaf_hash(leaf))
        for expert, rows, leaf in zip(done.experts, done.counts, done.leaves, strict=True)
    )


def _on_wire(outputs: list[NDArray[np.float32]], *, wide: bool) -> list[tensors.Rows]:
    """Outputs [n, H] as they travel: float16, or float32 if asked for or if a value would not fit float16. Raises
    SawyerError if an expert made a value that is no number."""
    largest = [float(np.abs(block).max()) for block in outputs]  # NaN wins
    if not all(map(math.isfinite, largest)):
        raise SawyerError("an expert made NaN or infinity")
    if wide or max(largest) > F16_MAX:
        return list(outputs)
    return [block.astype(np.float16) for block in outputs]
