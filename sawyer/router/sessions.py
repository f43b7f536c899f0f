"""The sessions of one router: opens them, hands rows to the right one, ends those whose client vanished."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter_ns
from typing import Final

from sawyer.bus.calls import read, refuse_query
from sawyer.bus.protocol import MAX_PAYLOAD_BYTES, Bus, Message
from sawyer.bus.service import Service
from sawyer.clock import Clock
from sawyer.engine.loaded import Engine
from sawyer.errors import (
    Busy,
    MalformedMessage,
    PromptTooLong,
    RequestConflict,
    SawyerError,
    SessionEnded,
    WrongManifest,
)
from sawyer.ids import ModelId, RequestId
from sawyer.router.admission import HOLD_MS
from sawyer.router.billing import Biller
from sawyer.router.dispatch import Dispatcher
from sawyer.router.orders import Orders
from sawyer.router.session import Finish, Session
from sawyer.router.tally import Tally
from sawyer.router.times import RequestTimes, Traces
from sawyer.schemas import subjects
from sawyer.schemas.events import MAX_FREE_TOKENS
from sawyer.schemas.session_rows import HiddenRows, decode_session
from sawyer.schemas.sessions import SessionClose, SessionOpen, SessionOpened
from sawyer.schemas.tensors import encode_error

MAX_SESSIONS: Final = 64
"""That run at once: who comes then is told to come again."""
MAX_ENDED: Final = 256
"""Ended ones whose bill can be asked for again."""
IDLE_S: Final = 60.0
"""A client that is not heard for so long is gone: what it got is billed."""
LIFE_S: Final = HOLD_MS / 1000 - 60
"""A session ends this long after it began: a minute is left to post it before the hold expires."""
SWEEP_S: Final = 5.0
STOP_PATIENCE_S: Final = 5.0


class Sessions:
    """For one model. `stopping`: whether the router takes no more."""

    def __init__(
        self,
        bus: Bus,
        router: str,
        model: ModelId,
        engine: Engine,
        dispatcher: Dispatcher,
        orders: Orders,
        biller: Biller,
        tally: Tally,
        traces: Traces,
        clock: Clock,
        stopping: Callable[[], bool],
    ) -> None:
        self._traces = traces
        self._clock = clock
        self._router = router
        self._engine = engine
        self._dispatcher = dispatcher
        self._orders = orders
        self._biller = biller
        self._tally = tally
        self._stopping = stopping
        self._by_secret: OrderedDict[str, Session] = OrderedDict()
        self._by_request: dict[RequestId, Session] = {}
        self._opening: dict[tuple[RequestId, str], asyncio.Task[Session]] = {}
        self._sweeping: asyncio.Task[None] | None = None
        self._services = (
            Service(bus, subjects.open_session(model), self._open, refuse_query, limit=MAX_SESSIONS,
                    workers=MAX_SESSIONS, queue=subjects.ROUTERS),
            Service(bus, subjects.activate(router), self._activate, encode_error, limit=2 * MAX_SESSIONS,
                    workers=MAX_SESSIONS, max_bytes=MAX_PAYLOAD_BYTES),
            Service(bus, subjects.close_session(router), self._close, refuse_query, limit=2 * MAX_SESSIONS,
                    workers=MAX_SESSIONS),
        )  # fmt: skip

    async def start(self) -> None:
        """Open for clients from now on."""
        self._sweeping = asyncio.create_task(self._sweep(), name="sessions whose client is gone")
        for each in self._services:
            await each.start()

    async def stop(self) -> None:
        """Bills what clients got so far; after a while what is not billed is let go."""
        if self._sweeping is None:
            return
        self._sweeping.cancel()
        running = [each for each in self._by_secret.values() if not each.ended]
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_PATIENCE_S):
                await asyncio.gather(*(each.close("cancelled") for each in running), return_exceptions=True)
        for service in self._services:
            await service.stop(STOP_PATIENCE_S)
        begun = [self._sweeping, *self._opening.values()]
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, *(each.abort() for each in self._by_secret.values()), return_exceptions=True)

    @property
    def running(self) -> int:
        """Those that have not ended."""
        return sum(1 for each in self._by_secret.values() if not each.ended)

    async def _open(self, message: Message) -> bytes:
        asked = read(SessionOpen, message.data)
        if self._stopping():
            raise Busy("this router is stopping")
        await self._orders.check(asked.order)
        self._check(asked)
        request = RequestId(asked.order.body.request)
        known = self._by_request.get(request)
        if known is None or known.ended:
            session = await self._shared(request, asked)
        elif known.is_fresh and known.is_of(asked):  # its client did not hear of it
            session = known
        else:
            raise RequestConflict(f"request {request} has a session already", hint="Wait until it has ended.")
        return SessionOpened(router=self._router, session=session.secret, held_tokens=session.held_tokens).canonical()

    async def _shared(self, request: RequestId, asked: SessionOpen) -> Session:
        """A new session; who asks the same meanwhile gets the same one."""
        opening = self._opening.get((request, asked.order.signature.sig))
        if opening is None:
            if self.running + len(self._opening) >= MAX_SESSIONS:
                raise Busy(f"{MAX_SESSIONS} sessions run here")
            opening = asyncio.create_task(self._begin(request, asked), name=f"opening a session for {request}")
            self._opening[request, asked.order.signature.sig] = opening
            opening.add_done_callback(lambda _: self._opening.pop((request, asked.order.signature.sig)))
        return await asyncio.shield(opening)

    async def _begin(self, request: RequestId, asked: SessionOpen) -> Session:
        times, begun_ns = RequestTimes(self._clock.now_ms(), input_tokens=asked.input_tokens), perf_counter_ns()
        reservation = await self._orders.reserve(asked.order, asked.input_tokens)
        times.reserve_us = (perf_counter_ns() - begun_ns) // 1000
        self._traces.keep(request, times)
        session = Session(asked, reservation.tokens, self._engine, self._dispatcher, self._biller, self._tally, times)
        self._by_secret[session.secret] = self._by_request[request] = session
        self._forget_ended(MAX_ENDED)
        return session

    def _check(self, asked: SessionOpen) -> None:
        """Raises WrongManifest, PromptTooLong, MalformedMessage for more free tokens than there are special ones."""
        order, layout, manifest = asked.order.body, self._engine.layout, self._dispatcher.manifest
        if asked.manifest != manifest:
            raise WrongManifest(
                f"the client's trunk is of manifest {asked.manifest[:16]}, this router serves {manifest[:16]}",
                hint="Get the trunk that the network publishes: sawyer models pull NAME --trunk",
            )
        if asked.rows + order.max_tokens > layout.context:
            raise PromptTooLong(
                f"{asked.rows} prompt tokens and {order.max_tokens} new ones are over the context of {layout.context}"
            )
        if not 0 <= asked.rows - asked.input_tokens < MAX_FREE_TOKENS:
            raise MalformedMessage(
                f"of {asked.rows} prompt rows {asked.input_tokens} are said to be billed: "
                f"at most {MAX_FREE_TOKENS - 1} are free"
            )

    async def _activate(self, message: Message) -> bytes:
        sent = decode_session(message.data, HiddenRows)
        session = self._by_secret.get(sent.session)
        if session is None or session.request != sent.request:
            raise SessionEnded("this router knows no such session")
        return await session.answer(sent)

    async def _close(self, message: Message) -> bytes:
        asked = read(SessionClose, message.data)
        session = self._by_secret.get(asked.session)
        if session is None:
            raise SessionEnded("this router knows no such session")
        return (await session.close(asked.finish, end_token=asked.end_token)).canonical()

    def _forget_ended(self, most: int) -> None:
        """All but so many of them, the oldest first."""
        ended = [each for each in self._by_secret.values() if each.ended]
        for each in ended[: max(0, len(ended) - most)]:
            del self._by_secret[each.secret]
            if self._by_request.get(each.request) is each:
                del self._by_request[each.request]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = asyncio.get_running_loop().time()
            for each in [each for each in self._by_secret.values() if not each.ended]:
                if now_s - each.opened_s >= LIFE_S:
                    await self._end(each, "length")
                elif now_s - each.seen_s >= IDLE_S:
                    await self._end(each, "cancelled")

    async def _end(self, session: Session, finish: Finish) -> None:
        with suppress(SawyerError):  # the session has logged it, and tells whoever asks
            await session.close(finish)
