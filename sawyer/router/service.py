"""The router's program: takes requests, admits them, answers resends, ends in order. One admitted request is run.py."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from time import perf_counter_ns
from typing import Final

from sawyer.bus.calls import read, refuse_query
from sawyer.bus.discovery import ROUTER, About, Discovery, Endpoint
from sawyer.bus.gather import Gatherer
from sawyer.bus.protocol import Bus, Message
from sawyer.bus.service import WAITED_US, Counts, Service
from sawyer.clock import Clock
from sawyer.engine.cache import KvCache
from sawyer.engine.loaded import Engine
from sawyer.engine.prompt import billed_input, prompt_ids
from sawyer.errors import Busy, Cancelled, SawyerError
from sawyer.identity.keys import Key
from sawyer.ids import ModelId, RequestId
from sawyer.router.admission import Admitted
from sawyer.router.billing import Biller
from sawyer.router.context_memory import ContextMemory
from sawyer.router.decoding import Decoding
from sawyer.router.directory import Directory
from sawyer.router.dispatch import Dispatcher
from sawyer.router.forward import Forward
from sawyer.router.orders import Orders
from sawyer.router.run import Run
from sawyer.router.sessions import Sessions
from sawyer.router.stream import AnswerStream, AnswerStreams
from sawyer.router.tally import Tally
from sawyer.router.telling import Telling
from sawyer.router.times import RequestTimes, Traces
from sawyer.schemas import subjects, tensors
from sawyer.schemas.messages import ErrorBody, Failed, InferMessage, InferRequest, RouterReply

MAX_RUNNING: Final = 64
"""Requests that are read or written at the same time."""
QUEUE_LIMIT: Final = 64
"""Requests that wait to be among them; who comes then is told when to come again."""
DEFAULT_CONTEXT_BYTES: Final = 2**30
MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024
MAX_CANCELS_KEPT: Final = 1024
MAX_ECHO_BYTES: Final = 256 * 1024
"""The biggest body that a node measures its way with."""
INBOXES: Final = ("_INBOX.", "_INBOX_", "_R_.")
"""How a subject begins that somebody waits on for an answer: as clients make them, with a prefix of the user's own, and
as a server names them that carries questions between accounts."""
DRAIN_TIMEOUT_S: Final = 10.0
"""How long running requests may go on after `stop`; then they are failed, and their holds given back."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RouterIdentity:
    """The router's name in the book, and its key."""

    name: str
    key: Key


class Router:
    """Serves one model. Run it with `await run()`; it returns after `stop()`."""

    def __init__(
        self,
        bus: Bus,
        me: RouterIdentity,
        model: ModelId,
        engine: Engine,
        clock: Clock,
        *,
        context_bytes: int = DEFAULT_CONTEXT_BYTES,
        speculate: bool = True,
        wide: bool = False,
        version: str = "",
    ) -> None:
        """`context_bytes`: what the contexts of all running requests may take together. `speculate`: few sequences have
        what they may say next computed ahead."""
        self._stopping = asyncio.Event()
        self._speculate = speculate
        self._bus = bus
        self._me = me
        self._clock = clock
        self._model = model
        self._engine = engine
        self._directory = Directory(bus, model, engine.manifest)
        self._gatherer = Gatherer(bus, urgent=_is_refusal)
        self._dispatcher = Dispatcher(self._gatherer, self._directory.placement, model, engine.manifest, wide=wide)
        self._decoding = Decoding(Forward(engine.trunk, engine.compute, self._dispatcher))
        self._memory = ContextMemory(context_bytes)
        self._biller = Biller(bus, me.name, me.key, self._directory.placement, engine.manifest)
        self._orders = Orders(self._directory, self._biller, model, clock)
        self._streams = AnswerStreams()
        self._tally = Tally()
        self._version = version
        self._started_ms = clock.now_ms()
        self._requests = Service(
            bus,
            subjects.infer(model),
            self._serve,
            _refuse,
            limit=QUEUE_LIMIT,
            workers=MAX_RUNNING,
            queue=subjects.ROUTERS,
            max_bytes=MAX_REQUEST_BYTES,
            busy=self._busy,
        )
        self._traces = Traces()
        self._sessions = Sessions(
            bus, me.name, model, engine, self._dispatcher, self._orders, self._biller, self._tally,
            self._traces, clock, self._stopping.is_set,
        )  # fmt: skip
        self._running: dict[RequestId, Run] = {}
        self._cancelled: OrderedDict[RequestId, None] = OrderedDict()

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """`started` is called once every expert is served by some node."""
        status = Service(self._bus, subjects.query("router"), self._status, refuse_query, limit=QUEUE_LIMIT)
        echo = echo_service(self._bus, self._model)
        telling = Telling(
            self._bus, self._me.name, self._model, self._engine.layout, self._dispatcher, self._decoding, self._traces,
            self._started_ms,
        )  # fmt: skip
        async with AsyncExitStack() as stack:  # ends what began, the last one first, also when a start fails
            stack.callback(self._engine.close)
            stack.push_async_callback(self._decoding.stop)
            for each in (
                self._gatherer,
                self._directory,
                status,
                echo,
                telling,
                self._discovery(status, echo),
                self._sessions,
            ):
                stack.push_async_callback(each.stop)
                await each.start()
            cancels = await self._bus.subscribe(subjects.all_cancels(), self._cancel)
            stack.push_async_callback(cancels.unsubscribe)
            stack.push_async_callback(lambda: self._requests.stop(DRAIN_TIMEOUT_S))
            await self._requests.start()
            await self._bus.flush()
            await self._until_covered()
            started()
            await self._stopping.wait()

    def stop(self) -> None:
        """Take no more requests, finish those that run, end."""
        self._stopping.set()

    async def _until_covered(self) -> None:
        layout = self._engine.layout
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            while self._directory.placement.missing(layout.moe_layers, layout.experts) and not stopping.done():
                await self._until_changed(stopping)
        finally:
            stopping.cancel()

    async def _until_changed(self, stopping: asyncio.Task[bool]) -> None:
        self._directory.changed.clear()
        changed = asyncio.create_task(self._directory.changed.wait())
        try:
            await asyncio.wait({changed, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()

    def _discovery(self, status: Service, echo: Service) -> Discovery:
        about = About(
            ROUTER, self._me.name, self._version, self._started_ms, "trunk, gates and sampling",
            {"model": self._model, "manifest": self._dispatcher.manifest},
        )  # fmt: skip
        infer = Endpoint("infer", subjects.infer(self._model), self._answered, subjects.ROUTERS)
        return Discovery(self._bus, about, [infer, Endpoint.of("status", status), Endpoint.of("echo", echo)])

    def _busy(self) -> Busy:
        """By when the requests that wait now should have begun, as requests ended lately."""
        retry_s = self._tally.seconds_for(self._requests.waiting + 1, asyncio.get_running_loop().time())
        return Busy(
            f"{len(self._running)} requests run here, and {self._requests.waiting} wait already",
            hint=f"Try again in {retry_s:.0f} s.",
            details={"retry_after_ms": str(int(retry_s * 1000))},
        )

    def _answered(self) -> Counts:
        """Refusals and failures travel as stream events: the service has not seen them."""
        counts, tally = self._requests.counts, self._tally
        return replace(counts, errors=counts.errors + tally.refused + tally.failed)

    async def _status(self, _: Message) -> bytes:
        layout, placement = self._engine.layout, self._directory.placement
        now_s, tally = asyncio.get_running_loop().time(), self._tally
        recent_tokens, recent_ms = tally.recent(now_s)
        return RouterReply(
            router=self._me.name,
            model=self._model,
            manifest=self._dispatcher.manifest,
            version=self._version,
            started_ms=self._started_ms,
            experts=len(layout.moe_layers) * layout.experts,
            missing=len(placement.missing(layout.moe_layers, layout.experts)),
            running=len(self._running) + self._sessions.running,
            waiting=self._requests.waiting + self._memory.waiting,
            context_bytes=self._memory.taken_bytes,
            context_limit_bytes=self._memory.limit_bytes,
            completed=tally.completed,
            failed=tally.failed,
            refused=tally.refused,
            output_tokens=tally.output_tokens,
            recent_tokens=recent_tokens,
            recent_ms=recent_ms,
            nodes=placement.seen(now_s),
            chat=self._engine.chat is not None,
            generation=self._engine.generation,
        ).canonical()

    def _cancel(self, message: Message) -> None:
        """May come before its request does: the two travel on different subjects."""
        request = RequestId(message.subject.rsplit(".", 1)[1])
        running = self._running.get(request)
        if running is not None:
            running.cancel()
            return
        self._cancelled[request] = None
        while len(self._cancelled) > MAX_CANCELS_KEPT:
            self._cancelled.popitem(last=False)

    async def _serve(self, message: Message) -> bytes | None:
        """One request from its message to its last event. Returns None: everything goes out as stream events."""
        if not message.reply:
            return None  # nobody waits for the answer: nothing is held for it
        if self._stopping.is_set():
            raise Busy("this router is stopping")
        begun_ns = perf_counter_ns()
        request = read(InferRequest, message.data)
        order = request.order.body
        request_id = RequestId(order.request)
        await self._orders.check_request(request)
        content = (order.account, order.model, order.content)
        known = self._streams.find(request_id, content)
        if known is not None:
            await known.attach(self._bus, message.reply)
            return None
        stream = self._streams.open(request_id, content, message.reply)
        times = RequestTimes(started_ms=self._clock.now_ms(), queue_us=WAITED_US.get(), check_us=_since_us(begun_ns))
        self._traces.keep(request_id, times)
        async with AsyncExitStack() as room:
            try:
                admitted = await self._admit(request, room, times)
            except SawyerError as error:
                times.state = "failed"
                await self._refuse(stream, error)
                return None
            except Exception as error:
                times.state = "failed"
                log.exception("admitting request %s failed", request_id, extra={"request": request_id})
                await self._refuse(
                    stream, SawyerError(f"internal error ({type(error).__name__}); the router's log has more")
                )
                return None
            await self._run(request, admitted, stream, times)
        self._streams.trim()
        return None

    async def _admit(self, request: InferRequest, room: AsyncExitStack, times: RequestTimes) -> Admitted:
        """Check, take room for its context, price, and hold the tokens. Raises the refusal; then nothing is held."""
        if RequestId(request.order.body.request) in self._cancelled:
            raise Cancelled("the request was cancelled before it began")
        engine, begun_ns = self._engine, perf_counter_ns()
        ids = await asyncio.to_thread(prompt_ids, request.params, engine.tokenizer, engine.layout, engine.chat)
        rows = len(ids) + request.params.max_tokens
        times.check_us, begun_ns = times.check_us + _since_us(begun_ns), perf_counter_ns()
        await room.enter_async_context(self._memory.room(KvCache.bytes_for(engine.layout, rows)))
        times.room_us, begun_ns = _since_us(begun_ns), perf_counter_ns()
        times.input_tokens = input_tokens = billed_input(ids, engine.tokenizer.special)
        reservation = await self._orders.reserve(request.order, input_tokens)
        times.reserve_us = _since_us(begun_ns)
        return Admitted(ids, input_tokens, reservation)

    async def _refuse(self, stream: AnswerStream, error: SawyerError) -> None:
        self._tally.refused += 1
        await stream.send(self._bus, Failed(n=stream.next_n, error=ErrorBody.of(error)))
        self._streams.forget(stream.request)

    async def _run(self, request: InferRequest, admitted: Admitted, stream: AnswerStream, times: RequestTimes) -> None:
        run = Run(
            self._bus, self._engine, self._decoding, self._biller, request, admitted, stream, self._tally,
            speculate=self._speculate, times=times,
        )  # fmt: skip
        self._running[stream.request] = run
        if stream.request in self._cancelled:
            run.cancel()
        try:
            await run.to_the_end(self._me.name)
        finally:
            del self._running[stream.request]


def _since_us(begun_ns: int) -> int:
    return (perf_counter_ns() - begun_ns) // 1000


def _is_refusal(data: bytes) -> bool:
    return data[5:6] == bytes([tensors.Kind.ERROR])


def echo_service(bus: Bus, model: ModelId) -> Service:
    """A node measures its way to here; anybody may. Others' bytes go to inboxes only, and are few."""
    return Service(
        bus,
        subjects.echo(model),
        _echo,
        refuse_query,
        limit=QUEUE_LIMIT,
        queue=subjects.ROUTERS,
        max_bytes=MAX_ECHO_BYTES,
        hears=lambda message: message.reply.startswith(INBOXES),
    )


async def _echo(message: Message) -> bytes:
    return message.data


def _refuse(error: SawyerError) -> bytes:
    return InferMessage(e=Failed(n=0, error=ErrorBody.of(error))).canonical()
