"""One admitted request: tokens are held, and whatever happens now ends in one posted or voided reservation."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import Final

from sawyer.bus.protocol import Bus
from sawyer.engine.loaded import Engine
from sawyer.errors import AlreadyCompleted, Cancelled, SawyerError
from sawyer.router.admission import HOLD_MS, Admitted
from sawyer.router.billing import Biller, Work
from sawyer.router.decoding import Decoding
from sawyer.router.generation import Generation, TokenStep
from sawyer.router.metering import Meter
from sawyer.router.scope import RequestScope
from sawyer.router.stream import AnswerStream, Event
from sawyer.router.tally import Tally
from sawyer.router.times import RequestTimes
from sawyer.schemas.messages import Accepted, Delta, Done, ErrorBody, Failed, InferRequest, Trace

POST_BEFORE_S: Final = HOLD_MS / 1000 - 60
"""A generation ends this long after its hold began: a minute is left to post it before the hold expires."""
BOOK_PATIENCE_S: Final = 3.0
"""How long a router that is stopped still waits for finished work to be booked: receipts take FINISH_TIMEOUT_S at most,
the bookkeeper answers in milliseconds."""

log = logging.getLogger(__name__)


class Run:
    """Generates, streams, and has the work booked."""

    def __init__(
        self,
        bus: Bus,
        engine: Engine,
        decoding: Decoding,
        biller: Biller,
        request: InferRequest,
        admitted: Admitted,
        stream: AnswerStream,
        tally: Tally,
        *,
        speculate: bool = True,
        times: RequestTimes | None = None,
    ) -> None:
        self._bus = bus
        self._biller = biller
        self._request = request
        self._admitted = admitted
        self._stream = stream
        self._tally = tally
        meter = Meter(stream.request, request.order.body.model)
        self._scope = RequestScope(stream.request, meter, traced=request.trace, times=times or RequestTimes())
        self._generation = Generation(
            engine, decoding, self._scope, request.params, speculate=speculate and request.speculate
        )
        self._booked = False

    def cancel(self) -> None:
        """End after the token that is under way; what was delivered is billed."""
        self._generation.cancelled = True

    async def to_the_end(self, router: str) -> None:
        """Returns when the last event is out. Cancelled from outside, it gives the hold back first, unless the work is
        done: then that is booked, if it can be soon."""
        expiry = asyncio.get_running_loop().call_later(POST_BEFORE_S, self._expire)
        try:
            if self._generation.cancelled:  # while it was admitted
                raise Cancelled("the request was cancelled before it began")
            await self._accept(router)
            await self._book(await self._generate())
        except SawyerError as error:
            await self._fail(error)
        except asyncio.CancelledError:
            await asyncio.shield(self._fail(SawyerError("the router was stopped")))
            raise
        except Exception as error:
            log.exception("request %s failed", self._stream.request, extra={"request": self._stream.request})
            await self._fail(SawyerError(f"the router failed ({type(error).__name__}); its log has more"))
        finally:
            expiry.cancel()
            self._tally.ended(asyncio.get_running_loop().time())

    async def _book(self, work: Work) -> None:
        """A cancel from outside must not come between the bill and its word to whoever asked."""
        posting = asyncio.create_task(self._post(work))
        try:
            await asyncio.shield(posting)
        except asyncio.CancelledError:
            await asyncio.wait({posting}, timeout=BOOK_PATIENCE_S)
            posting.cancel()
            await asyncio.gather(posting, return_exceptions=True)
            raise

    async def _post(self, work: Work) -> None:
        usage = await self._biller.post(self._request.order, self._admitted.input_tokens, self._scope, work)
        self._booked = True
        self._scope.times.state = "cancelled" if work.finish == "cancelled" else "completed"
        self._tally.completed += 1
        await self._send(Done(n=self._stream.next_n, finish=work.finish, usage=usage))

    async def _accept(self, router: str) -> None:
        admitted = self._admitted
        await self._send(
            Accepted(
                n=self._stream.next_n,
                router=router,
                input_tokens=admitted.input_tokens,
                held_tokens=admitted.reservation.tokens,
            )
        )

    async def _generate(self) -> Work:
        started = perf_counter()
        first_s = started
        count = billed = 0
        step: TokenStep | None = None
        async for step in self._generation.tokens(self._admitted.ids):
            first_s = perf_counter() if count == 0 else first_s
            count += 1
            self._scope.times.decoded(first_s - started, perf_counter() - first_s, count)
            billed += step.sampled.billed
            self._tally.token(asyncio.get_running_loop().time())
            await self._send_step(step)
        assert step is not None
        assert step.sampled.finish is not None
        return Work(
            finish=step.sampled.finish,
            output_tokens=billed,
            fed_tokens=len(self._admitted.ids) + count - 1,
            prefill_us=int((first_s - started) * 1e6),
            decode_us=int((perf_counter() - first_s) * 1e6),
            speculative=self._generation.speculate,
            drafted_tokens=self._generation.drafted,
            accepted_tokens=self._generation.accepted,
        )

    async def _send_step(self, step: TokenStep) -> None:
        if self._request.trace:
            for layer, calls in step.calls:
                await self._send(Trace(n=self._stream.next_n, step=step.step, layer=layer, calls=calls))
        sampled = step.sampled
        ids = (sampled.token,) if sampled.billed else ()
        logprobs = () if sampled.logprob is None else (sampled.logprob,)
        await self._send(Delta(n=self._stream.next_n, text=sampled.text, ids=ids, logprobs=logprobs))

    async def _fail(self, error: SawyerError) -> None:
        """Void the hold and say why. If the post had arrived after all, say that; if nobody can be reached, the hold
        expires by itself. Nothing is said after the bill."""
        if self._booked:
            return
        self._tally.failed += 1
        self._scope.times.state = "failed"
        log.warning("request %s failed: %s", self._stream.request, error, extra={"request": self._stream.request})
        try:
            await self._biller.void(self._request.order.body, self._scope, error.code)
        except AlreadyCompleted as completed:
            error = completed
        except SawyerError as problem:
            log.warning(
                "request %s: the hold was not voided and will expire: %s", self._stream.request, problem,
                extra={"request": self._stream.request},
            )  # fmt: skip
        await self._send(Failed(n=self._stream.next_n, error=ErrorBody.of(error)))

    async def _send(self, event: Event) -> None:
        await self._stream.send(self._bus, event)

    def _expire(self) -> None:
        self._generation.expired = True
