"""One client that runs the trunk itself: it sends hidden rows layer by layer, and this gates, asks nodes, adds up,
meters and has it billed. No prompt, no text and no token is ever seen here.

What is billed are rows that passed every layer: the prompt's, and one a token. A step that was left half way costs
nothing, and what nodes did for it goes into no receipt.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Coroutine
from contextlib import suppress
from time import perf_counter, perf_counter_ns
from typing import Final, Literal

import numpy as np

from sawyer.engine.combine import group_rows, summed
from sawyer.engine.loaded import Engine
from sawyer.errors import AlreadyCompleted, MalformedMessage, SawyerError, SessionEnded
from sawyer.ids import RequestId
from sawyer.router.billing import Biller, Work
from sawyer.router.dispatch import Dispatcher, ExpertRows
from sawyer.router.metering import Meter
from sawyer.router.scope import RequestScope, Share
from sawyer.router.steps import Steps, Turn
from sawyer.router.tally import Tally
from sawyer.router.times import RequestTimes
from sawyer.schemas.session_rows import HiddenRows, SummedRows, encode_session
from sawyer.schemas.sessions import SessionClosed, SessionOpen

SECRET_BYTES: Final = 16
Finish = Literal["stop", "length", "cancelled"]

log = logging.getLogger(__name__)


class Session:
    """From the held tokens to the bill. `secret` names it; `seen_s` is when its client was heard last, `opened_s` when
    it began, both in loop time."""

    def __init__(
        self, opened: SessionOpen, held_tokens: int, engine: Engine, dispatcher: Dispatcher, biller: Biller,
        tally: Tally, times: RequestTimes,
    ) -> None:  # fmt: skip
        self._opened = opened
        self.held_tokens = held_tokens
        self._engine = engine
        self._dispatcher = dispatcher
        self._biller = biller
        self._tally = tally
        order = opened.order.body
        self.secret = secrets.token_hex(SECRET_BYTES)
        self.request = RequestId(order.request)
        self._scope = RequestScope(self.request, Meter(order.request, order.model), times=times)
        self._trial = self._scope.trial(0)
        self._steps = Steps(opened.rows, order.max_tokens, engine.layout.moe_layers)
        self._turn: tuple[Turn, asyncio.Task[bytes]] | None = None
        self._ending: asyncio.Task[SessionClosed] | None = None
        self._loop = asyncio.get_running_loop()
        self.opened_s = self.seen_s = self._loop.time()
        self._started_s = perf_counter()
        self._read_s = self._started_s

    @property
    def is_fresh(self) -> bool:
        """Whether nothing was asked yet: the client may never have heard that it was opened."""
        return self._turn is None and self._ending is None

    @property
    def ended(self) -> bool:
        """Whether the bill, or why there is none, is known."""
        return self._ending is not None and self._ending.done()

    def is_of(self, opened: SessionOpen) -> bool:
        """Whether the same was asked for."""
        return self._opened == opened

    async def answer(self, sent: HiddenRows) -> bytes:
        """SummedRows for rows that come in turn; those of the last turn get the same bytes again. Raises SessionEnded,
        MalformedMessage for rows out of turn, ExpertUnavailable, which ends the session without a bill."""
        self.seen_s = self._loop.time()
        turn = Turn(sent.step, sent.layer, len(sent.rows))
        if self._turn is None or self._turn[0] != turn:
            self._check_open()
            self._steps.check(turn)
            self._check(sent)
            self._turn = turn, asyncio.create_task(self._layer(sent), name=f"session rows of {self.request}")
            self._turn[1].add_done_callback(_looked_at)
        task = self._turn[1]
        await asyncio.wait({task})  # who waits is not cancelled when the turn is
        if task.cancelled():
            self._check_open()
        return task.result()

    async def close(self, finish: Finish, *, end_token: bool = False) -> SessionClosed:
        """The bill over what is complete; again is the same one. `end_token`: the last token ends the text, and is
        free. Raises why there is none."""
        if self._ending is None:
            self._end(self._bill(finish, end_token=end_token))
        assert self._ending is not None
        return await asyncio.shield(self._ending)

    async def abort(self) -> None:
        """End what runs, whatever becomes of the bill: a hold that is left expires by itself."""
        tasks = {task for task in (self._turn and self._turn[1], self._ending) if task is not None}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _end(self, how: Coroutine[None, None, SessionClosed]) -> None:
        self._ending = asyncio.create_task(how, name=f"end of the session of {self.request}")
        self._ending.add_done_callback(_looked_at)

    def _check_open(self) -> None:
        if self._ending is not None:
            raise SessionEnded(f"the session of request {self.request} has ended")

    def _check(self, sent: HiddenRows) -> None:
        if sent.manifest != self._dispatcher.prefix or sent.rows.shape[1] != self._engine.layout.hidden:
            raise MalformedMessage(f"rows of other weights than {self._dispatcher.manifest[:16]}, or of another width")
        if not np.isfinite(sent.rows).all():
            raise MalformedMessage("the rows hold NaN or infinity")

    async def _layer(self, sent: HiddenRows) -> bytes:
        rows = np.asarray(sent.rows, np.float32)
        kind, begun_ns = "gate 1" if len(rows) == 1 else "", perf_counter_ns()
        gated = await self._engine.compute.run(kind, self._engine.trunk.gate, sent.layer, rows)
        gated_ns, groups = perf_counter_ns(), group_rows(gated.experts)
        work = [ExpertRows(group.expert, group.rows) for group in groups]
        answers = await self._dispatcher.layer([Share(self._trial, len(rows))], sent.layer, rows, work)
        for error in answers.failed.values():
            await self._fail(error)
            raise error
        gate_us, experts_us = (gated_ns - begun_ns) // 1000, (perf_counter_ns() - gated_ns) // 1000
        self._scope.times.passed(sent.layer, gate_us, experts_us)
        total = summed(rows.shape, groups, answers.blocks, gated.weights)
        if self._steps.took():
            self._step_is_complete()
        return encode_session(SummedRows(sent.request, sent.session, sent.manifest, sent.step, sent.layer, total))

    async def _fail(self, error: SawyerError) -> None:
        """Nobody hears of it before the hold is given back."""
        if self._ending is None:
            self._end(self._void(error))
            assert self._ending is not None
            with suppress(SawyerError):
                await asyncio.shield(self._ending)

    def _step_is_complete(self) -> None:
        self._scope.meter.add(self._trial.meter)
        self._scope.step += 1
        self._trial = self._scope.trial(0)
        if self._steps.tokens:
            self._read_s = perf_counter() if self._steps.tokens == 1 else self._read_s
            self._tally.token(self._loop.time())

    async def _bill(self, finish: Finish, *, end_token: bool) -> SessionClosed:
        await self._stop_turn()
        steps, now_s = self._steps, perf_counter()
        work = Work(
            finish=finish,
            output_tokens=max(0, steps.tokens - end_token),
            fed_tokens=steps.fed_rows,
            prefill_us=int((self._read_s - self._started_s) * 1e6),
            decode_us=int((now_s - self._read_s) * 1e6),
        )
        times = self._scope.times
        times.decoded(work.prefill_us / 1e6, work.decode_us / 1e6, work.output_tokens)
        try:
            usage = await self._biller.post(self._opened.order, self._opened.input_tokens, self._scope, work)
        except SawyerError as error:
            return await self._void(error)
        times.state = "cancelled" if finish == "cancelled" else "completed"
        self._tally.completed += 1
        self._tally.ended(self._loop.time())
        return SessionClosed(finish=finish, usage=usage)

    async def _stop_turn(self) -> None:
        if self._turn is not None and not self._turn[1].done():
            self._turn[1].cancel()
            await asyncio.wait({self._turn[1]})  # not its own await, which could not be told from our being cancelled

    async def _void(self, error: SawyerError) -> SessionClosed:
        """Give the hold back, and raise why; if nobody can be reached, it expires by itself."""
        self._scope.times.state = "failed"
        self._tally.failed += 1
        self._tally.ended(self._loop.time())
        log.warning("request %s failed: %s", self.request, error, extra={"request": self.request})
        try:
            await self._biller.void(self._opened.order.body, self._scope, error.code)
        except AlreadyCompleted as completed:
            raise completed from error
        except SawyerError as problem:
            log.warning(
                "request %s: the hold was not voided and will expire: %s", self.request, problem,
                extra={"request": self.request},
            )  # fmt: skip
        raise error


def _looked_at(task: asyncio.Task[bytes] | asyncio.Task[SessionClosed]) -> None:
    """Whoever asked may be gone: what a task ended with is told to who asks again."""
    if not task.cancelled():
        task.exception()
