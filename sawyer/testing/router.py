"""A router without a model: it admits, streams and bills as the real one does, and its text comes from a function.

Admission, stop strings, resends and the two ledger writes are the router's own code; what is made up is the text, and
the one node whose receipts cover its rows.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from sawyer.bus.calls import ask, read, record
from sawyer.bus.protocol import Bus, Message, Subscription
from sawyer.bus.service import Service
from sawyer.clock import Clock
from sawyer.engine.answer import Answer
from sawyer.errors import AlreadyCompleted, Cancelled, NoAnswer, SawyerError
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.ids import ModelId, RequestId
from sawyer.ledger.commands import command
from sawyer.projections.nodes import receipt_hash
from sawyer.router.admission import Admitted, admit, check_request
from sawyer.router.stream import AnswerStream, AnswerStreams
from sawyer.schemas import subjects
from sawyer.schemas.events import (
    NO_HASH,
    RECEIPT_KIND,
    InferenceCompleted,
    InferenceRequested,
    NodeLatency,
    ReservationVoided,
    WorkReceipted,
)
from sawyer.schemas.generation import GenerateParams
from sawyer.schemas.messages import (
    Accepted,
    Delta,
    Done,
    ErrorBody,
    Failed,
    InferMessage,
    InferRequest,
    LayerCall,
    Logprob,
    NetworkReply,
    NodeUse,
    Trace,
    Usage,
)
from sawyer.schemas.models import ModelLayout
from sawyer.schemas.signed import Signed
from sawyer.testing.words import END, Turns, Words, conversation_text, words

ROUTER: Final = "stub-router"
NODE: Final = "stub-node"
HOST: Final = "stub-host"
QUEUE_LIMIT: Final = 64
MAX_RUNNING: Final = 4
MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024
MAX_REQUESTS_KEPT: Final = 10_000
LATENCY_US: Final = 1000
"""What the one node's layer calls are said to take."""

Answering = Callable[[str, GenerateParams], str | Iterable[str]]
"""What a stub says to a prompt (of a conversation: its text with roles; its turns are in `params.messages`): a text, or
its tokens one by one. It may raise what a network would: a typed error
fails the request after the tokens that were given, NoAnswer makes the router fall silent. It runs in a thread, and may
wait, but must end before the network does."""
Finish = Literal["stop", "length", "cancelled"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Said:
    """What was generated. `fed_tokens` would have gone through the model."""

    finish: Finish
    output_tokens: int
    fed_tokens: int


class StubNode:
    """A node's key and its chain of receipts."""

    def __init__(self) -> None:
        self.key = Key.generate()
        self._counter, self._previous = 0, NO_HASH

    def receipt(self, order: InferenceRequested, manifest: str, rows: int) -> Signed[WorkReceipted]:
        """A statement of so many rows of one expert; it counts once it is `booked`."""
        body = WorkReceipted(
            network=order.network,
            node=NODE,
            request=order.request,
            model=order.model,
            manifest=manifest,
            rows=rows,
            blocks=1,
            experts=((0, 0, rows),),
            root=NO_HASH,
            counter=self._counter + 1,
            previous=self._previous,
        )
        return sign(body, RECEIPT_KIND, NODE, self.key)

    def booked(self, receipt: Signed[WorkReceipted]) -> None:
        self._counter, self._previous = receipt.body.counter, receipt_hash(receipt)


class StubRouter:
    """Serves one model from `start` to `stop`. `answering` is asked anew for each request; every request that arrives
    is kept in `requests`. `chats`: the model has a chat template."""

    def __init__(
        self,
        bus: Bus,
        key: Key,
        node: StubNode,
        layout: ModelLayout,
        clock: Clock,
        answering: Callable[[], Answering],
        requests: list[InferRequest],
        *,
        chats: bool,
    ) -> None:
        self._bus = bus
        self._key = key
        self._node = node
        self._layout = layout
        self._clock = clock
        self._answering = answering
        self._requests = requests
        self._chats = chats
        self._words = Words()
        self._streams = AnswerStreams()
        self._cancelled: OrderedDict[str, None] = OrderedDict()
        self._posting = asyncio.Lock()
        self._service: Service | None = None
        self._cancels: Subscription | None = None

    async def start(self, model: ModelId) -> None:
        """Returns when it listens."""
        self._service = Service(
            self._bus,
            subjects.infer(model),
            self._serve,
            lambda error: InferMessage(e=Failed(n=0, error=ErrorBody.of(error))).canonical(),
            limit=QUEUE_LIMIT,
            workers=MAX_RUNNING,
            max_bytes=MAX_REQUEST_BYTES,
        )
        self._cancels = await self._bus.subscribe(subjects.all_cancels(), self._cancel)
        await self._service.start()

    async def stop(self) -> None:
        """Ends at once; requests that run fail, and their holds are given back. Idempotent."""
        if self._service is not None and self._cancels is not None:
            service, self._service = self._service, None
            await service.stop(patience_s=0)
            await self._cancels.unsubscribe()

    def _cancel(self, message: Message) -> None:
        self._cancelled[message.subject.rsplit(".", 1)[1]] = None
        while len(self._cancelled) > MAX_REQUESTS_KEPT:
            self._cancelled.popitem(last=False)

    async def _serve(self, message: Message) -> None:
        """One request from its message to its last event, as router/service.py does it."""
        if not message.reply:
            return
        request = read(InferRequest, message.data)
        order = request.order.body
        self._requests.append(request)
        del self._requests[:-MAX_REQUESTS_KEPT]
        network = await ask(self._bus, "network", NetworkReply)
        check_request(request, network, order.model, self._clock.now_ms())
        content = (order.account, order.model, order.content)
        known = self._streams.find(RequestId(order.request), content)
        if known is not None:
            await known.attach(self._bus, message.reply)
            return
        stream = self._streams.open(RequestId(order.request), content, message.reply)
        try:
            admitted = await self._admit(request, network)
        except SawyerError as error:
            await stream.send(self._bus, Failed(n=stream.next_n, error=ErrorBody.of(error)))
            self._streams.forget(stream.request)
            return
        await self._run(request, admitted, stream)

    async def _admit(self, request: InferRequest, network: NetworkReply) -> Admitted:
        if request.order.body.request in self._cancelled:
            raise Cancelled("the request was cancelled before it began")
        chat = Turns(self._words) if self._chats else None
        admitted = admit(request, network, self._words, self._layout, self._clock.now_ms(), chat)
        await record(self._bus, command(admitted.reservation, ROUTER, self._key))
        return admitted

    async def _run(self, request: InferRequest, admitted: Admitted, stream: AnswerStream) -> None:
        try:
            await stream.send(
                self._bus,
                Accepted(
                    n=stream.next_n,
                    router=ROUTER,
                    input_tokens=admitted.input_tokens,
                    held_tokens=admitted.reservation.tokens,
                ),
            )
            said = await self._speak(request, admitted, stream)
            usage = await self._post(request.order, admitted, said)
            await stream.send(self._bus, Done(n=stream.next_n, finish=said.finish, usage=usage))
        except NoAnswer:
            return  # a router that falls silent: its hold stays until it expires
        except SawyerError as error:
            await self._fail(request, stream, error)
        except asyncio.CancelledError:
            await asyncio.shield(self._fail(request, stream, SawyerError("the router was stopped")))
            raise
        except Exception as error:
            log.exception("the stub's answer to request %s failed", stream.request)
            await self._fail(request, stream, SawyerError(f"the stub's answer failed: {error!r}"))

    async def _speak(self, request: InferRequest, admitted: Admitted, stream: AnswerStream) -> Said:
        params = request.params
        answer = Answer(params, self._words, (END,))
        pieces = await asyncio.to_thread(_pieces, self._answering(), params)
        for count in range(params.max_tokens):
            piece = await asyncio.to_thread(next, pieces, None)
            token = END if piece is None else self._words.id_of(piece)
            told = Logprob(token=token, surprise_micro=0, top=((token, 0),) if params.logprobs else ())
            sampled = answer.take(token, told, "cancelled" if stream.request in self._cancelled else None)
            for layer in self._layout.moe_layers if request.trace else ():
                await stream.send(self._bus, self._trace(stream, count, layer, admitted))
            ids = (token,) if sampled.billed else ()
            logprobs = (told,) if sampled.billed and params.logprobs is not None else ()
            await stream.send(self._bus, Delta(n=stream.next_n, text=sampled.text, ids=ids, logprobs=logprobs))
            if sampled.finish is not None:
                break
        assert sampled.finish is not None, "max_tokens ends every answer"
        return Said(sampled.finish, count + sampled.billed, len(admitted.ids) + count)

    def _trace(self, stream: AnswerStream, step: int, layer: int, admitted: Admitted) -> Trace:
        rows = (1 if step else len(admitted.ids)) * self._layout.top_k
        experts = tuple(range(self._layout.top_k))
        call = LayerCall(node=NODE, experts=experts, rows=rows, round_trip_us=0, compute_us=0)
        return Trace(n=stream.next_n, step=step, layer=layer, calls=(call,))

    async def _post(self, order: Signed[InferenceRequested], admitted: Admitted, said: Said) -> Usage:
        if said.output_tokens == 0:
            return _usage(admitted, said, await self._void(order.body, "empty_answer"), 0, ())
        rows = said.fed_tokens * self._layout.rows_per_token
        async with self._posting:  # receipts follow one another
            receipt = self._node.receipt(order.body, admitted.reservation.manifest, rows)
            body = InferenceCompleted(
                network=order.body.network,
                request=order,
                input_tokens=admitted.input_tokens,
                output_tokens=said.output_tokens,
                fed_tokens=said.fed_tokens,
                finish=said.finish,
                receipts=(receipt,),
                unreceipted=(),
                latencies=(NodeLatency(node=NODE, p95_us=LATENCY_US),),
            )
            entry = await record(self._bus, command(body, ROUTER, self._key))
            self._node.booked(receipt)
        billed = sum(each.tokens for each in entry.decided.debited or ())
        used = NodeUse(node=NODE, host=HOST, rows=rows, receipted=True)
        return _usage(admitted, said, entry.seq, billed, (used,))

    async def _void(self, order: InferenceRequested, reason: str) -> int:
        body = ReservationVoided(network=order.network, account=order.account, request=order.request, reason=reason)
        return (await record(self._bus, command(body, ROUTER, self._key))).seq

    async def _fail(self, request: InferRequest, stream: AnswerStream, error: SawyerError) -> None:
        try:
            await self._void(request.order.body, error.code)
        except AlreadyCompleted as completed:
            error = completed
        await stream.send(self._bus, Failed(n=stream.next_n, error=ErrorBody.of(error)))


def _pieces(answering: Answering, params: GenerateParams) -> Iterator[str]:
    prompt = conversation_text(params.messages) if params.messages else params.prompt or ""
    said = answering(prompt, params)
    return iter(words(said) if isinstance(said, str) else said)


def _usage(admitted: Admitted, said: Said, entry: int, billed: int, nodes: tuple[NodeUse, ...]) -> Usage:
    return Usage(
        input_tokens=admitted.input_tokens,
        output_tokens=said.output_tokens,
        billed_tokens=billed,
        entry=entry,
        nodes=nodes,
        takeovers=(),
        prefill_us=0,
        decode_us=0,
    )
