"""The router's program: takes requests, holds tokens, generates, collects receipts, has the work booked, streams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from sawyer.bus.calls import read, refuse_query
from sawyer.bus.gather import Gatherer
from sawyer.bus.protocol import Bus, Message
from sawyer.bus.service import Service
from sawyer.clock import Clock
from sawyer.engine.tokenizer import Tokenizer
from sawyer.engine.trunk import Trunk
from sawyer.errors import RefusedError, SawyerError
from sawyer.identity.keys import Key
from sawyer.ids import ModelId, RequestId
from sawyer.model.artifacts import Artifacts
from sawyer.router.admission import HOLD_MS, Admitted, admit, check_order
from sawyer.router.billing import Biller, Work
from sawyer.router.directory import Directory
from sawyer.router.dispatch import Dispatcher, RequestScope
from sawyer.router.generation import Engine, Generation, TokenStep
from sawyer.router.metering import Meter
from sawyer.router.stream import AnswerStream, AnswerStreams
from sawyer.schemas import subjects, tensors
from sawyer.schemas.messages import (
    Accepted,
    Delta,
    Done,
    ErrorBody,
    Failed,
    InferMessage,
    InferRequest,
    LayerCall,
    NetworkReply,
    RouterReply,
    Trace,
)

MAX_RUNNING: Final = 4
QUEUE_LIMIT: Final = 64
QUEUE_GROUP: Final = "routers"
POST_BEFORE_S: Final = HOLD_MS / 1000 - 60
"""A generation ends this long after its hold began: a minute is left to post it before the hold expires."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RouterIdentity:
    name: str
    key: Key


class Router:
    """Serves one model. Run it with `await run()`; it returns after `stop()`."""

    def __init__(self, bus: Bus, me: RouterIdentity, artifacts: Artifacts, clock: Clock, *, wide: bool = False) -> None:
        self._bus = bus
        self._me = me
        self._clock = clock
        self._model = ModelId(artifacts.manifest.model)
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="trunk")
        layout = artifacts.manifest.layout
        self._engine = Engine(layout, Trunk(artifacts), Tokenizer(artifacts), self._threads)
        self._directory = Directory(bus, self._model, artifacts.digest)
        self._gatherer = Gatherer(bus, urgent=_is_refusal)
        self._dispatcher = Dispatcher(
            self._gatherer, self._directory.placement, self._model, artifacts.digest, wide=wide
        )
        self._biller = Biller(bus, me.name, me.key, self._directory.placement, artifacts.digest)
        self._streams = AnswerStreams()
        self._stopping = asyncio.Event()

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """`started` is called once every expert is served by some node."""
        await self._gatherer.start()
        await self._directory.start()
        service = Service(
            self._bus,
            subjects.infer(self._model),
            self._serve,
            _refuse,
            limit=QUEUE_LIMIT,
            workers=MAX_RUNNING,
            queue=QUEUE_GROUP,
        )
        status = Service(self._bus, subjects.query("router"), self._status, refuse_query, limit=QUEUE_LIMIT)
        await service.start()
        await status.start()
        await self._bus.flush()
        try:
            await self._until_covered()
            started()
            await self._stopping.wait()
        finally:
            await service.stop()
            await status.stop()
            await self._directory.stop()
            await self._gatherer.stop()
            self._threads.shutdown()

    def stop(self) -> None:
        """Take no more requests, finish those that run, end."""
        self._stopping.set()

    async def _until_covered(self) -> None:
        layout = self._engine.layout
        stopping = asyncio.create_task(self._stopping.wait())
        while self._directory.placement.missing(layout.moe_layers, layout.experts) and not stopping.done():
            self._directory.changed.clear()
            changed = asyncio.create_task(self._directory.changed.wait())
            await asyncio.wait({changed, stopping}, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
        stopping.cancel()

    async def _status(self, _: Message) -> bytes:
        layout, placement = self._engine.layout, self._directory.placement
        return RouterReply(
            router=self._me.name,
            model=self._model,
            manifest=self._dispatcher.manifest,
            missing=len(placement.missing(layout.moe_layers, layout.experts)),
            nodes=placement.seen(asyncio.get_running_loop().time()),
        ).canonical()

    async def _serve(self, message: Message) -> bytes | None:
        """One request from its message to its last event. Returns None: everything goes out as stream events."""
        request = read(InferRequest, message.data)
        order = request.order.body
        request_id = RequestId(order.request)
        network = self._directory.network or await self._directory.refresh()
        await asyncio.to_thread(check_order, request, network, self._model, self._clock.now_ms())
        content = (order.account, order.model, order.content)
        known = self._streams.find(request_id, content)
        if known is not None:
            await known.attach(self._bus, message.reply)
            return None
        stream = self._streams.open(request_id, content, message.reply)
        try:
            admitted = await self._admit(request)
            await self._biller.reserve(admitted.reservation)
        except SawyerError as error:
            await stream.send(self._bus, Failed(n=stream.next_n, error=ErrorBody.of(error)))
            self._streams.forget(request_id)
            return None
        await self._run(request, admitted, stream)
        return None

    async def _admit(self, request: InferRequest) -> Admitted:
        network = self._directory.network or await self._directory.refresh()
        try:
            return self._price(request, network)
        except RefusedError:
            return self._price(request, await self._directory.refresh())  # prices may have changed since we asked

    def _price(self, request: InferRequest, network: NetworkReply) -> Admitted:
        return admit(request, network, self._engine.tokenizer, self._engine.layout, self._clock.now_ms())

    async def _run(self, request: InferRequest, admitted: Admitted, stream: AnswerStream) -> None:
        """Tokens are held: whatever happens now ends in one posted or voided reservation."""
        request_id = stream.request
        scope = RequestScope(request_id, Meter(request_id, self._model))
        pending: list[Trace] = []

        def trace(step: int, layer: int, calls: list[LayerCall]) -> None:
            if request.trace:
                pending.append(Trace(n=0, step=step, layer=layer, calls=tuple(calls)))

        generation = Generation(self._engine, self._dispatcher, scope, request.params, trace)
        cancel = await self._bus.subscribe(subjects.cancel(request_id), lambda _: _cancel(generation))
        expiry = asyncio.get_running_loop().call_later(POST_BEFORE_S, _expire, generation)
        try:
            await stream.send(self._bus, self._accepted(stream, admitted))
            work = await self._stream_tokens(generation, admitted, stream, pending)
            usage = await self._biller.post(request.order, admitted, scope, work)
            await stream.send(self._bus, Done(n=stream.next_n, finish=work.finish, usage=usage))
        except Exception as error:
            if not isinstance(error, SawyerError):
                log.exception("request %s failed", request_id)
                error = SawyerError(f"the router failed ({type(error).__name__}); its log has more")
            await self._fail(request, scope, stream, error)
        finally:
            expiry.cancel()
            await cancel.unsubscribe()

    def _accepted(self, stream: AnswerStream, admitted: Admitted) -> Accepted:
        return Accepted(
            n=stream.next_n,
            router=self._me.name,
            input_tokens=admitted.input_tokens,
            held_tokens=admitted.reservation.tokens,
        )

    async def _stream_tokens(
        self, generation: Generation, admitted: Admitted, stream: AnswerStream, pending: list[Trace]
    ) -> Work:
        started = perf_counter()
        first_s = started
        count = 0
        last: TokenStep | None = None
        async for last in generation.tokens(admitted.ids):
            if count == 0:
                first_s = perf_counter()
            count += 1
            for each in pending:
                await stream.send(self._bus, each.model_copy(update={"n": stream.next_n}))
            pending.clear()
            ids = () if last.finish == "stop" else (last.token,)
            await stream.send(self._bus, Delta(n=stream.next_n, text=last.text, ids=ids))
        assert last is not None
        assert last.finish is not None
        return Work(
            finish=last.finish,
            output_tokens=count - (last.finish == "stop"),
            fed_tokens=len(admitted.ids) + count - 1,
            prefill_us=int((first_s - started) * 1e6),
            decode_us=int((perf_counter() - first_s) * 1e6),
        )

    async def _fail(self, request: InferRequest, scope: RequestScope, stream: AnswerStream, error: SawyerError) -> None:
        """Void the hold; the client learns why. If even that fails the hold expires by itself."""
        try:
            await self._biller.void(request.order.body, scope, error.code)
        except SawyerError as problem:
            log.warning("request %s: the hold could not be voided and will expire: %s", stream.request, problem)
        await stream.send(self._bus, Failed(n=stream.next_n, error=ErrorBody.of(error)))


def _expire(generation: Generation) -> None:
    generation.expired = True


def _cancel(generation: Generation) -> None:
    generation.cancelled = True


def _is_refusal(data: bytes) -> bool:
    return data[5:6] == bytes([tensors.Kind.ERROR])


def _refuse(error: SawyerError) -> bytes:
    return InferMessage(e=Failed(n=0, error=ErrorBody.of(error))).canonical()
