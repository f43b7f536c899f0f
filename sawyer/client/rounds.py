"""Asking a router for the experts of one layer at a time: one session, its rows in turn, its bill. Lost messages are
sent again, which the router answers with what it has; a router that is away is waited for."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from sawyer.bus.calls import ask_at
from sawyer.bus.gather import Arrival, Gatherer, Loss
from sawyer.bus.protocol import Bus
from sawyer.errors import MalformedMessage, NoAnswer, NobodyServes, ServerUnreachable, UnreachableError
from sawyer.ids import ModelId, RequestId
from sawyer.schemas import subjects, tensors
from sawyer.schemas.session_rows import HiddenRows, SummedRows, decode_session, encode_session
from sawyer.schemas.sessions import SessionClose, SessionClosed, SessionOpen, SessionOpened

FIRST_WAIT_S: Final = 1.0
"""A message or its answer may be lost: it is sent again after this, then after twice as long. A router that still
computes is not asked twice by that."""
MOST_WAIT_S: Final = 8.0
FIRST_PAUSE_S: Final = 0.05
MOST_PAUSE_S: Final = 1.0
TAG_BITS: Final = 62

Rows = NDArray[np.float32]
AnswerT = TypeVar("AnswerT")


class Rounds:
    """A session. Use it as a context manager; then `open`, `rows` in turn, `close`. `timeout_s`: how long a router that
    does not answer is waited for."""

    def __init__(self, bus: Bus, model: ModelId, request: RequestId, manifest: str, timeout_s: float) -> None:
        self._bus = bus
        self._model = model
        self._request = request
        self._manifest = bytes.fromhex(manifest)[: tensors.MANIFEST_PREFIX_BYTES]
        self._timeout_s = timeout_s
        self._gatherer = Gatherer(bus, urgent=lambda _: True)
        self.opened: SessionOpened | None = None

    async def __aenter__(self) -> Rounds:
        await self._gatherer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self._gatherer.stop()

    async def open(self, asked: SessionOpen, *, again: bool) -> SessionOpened:
        """A session in which tokens are held. `again`: a router was there a moment ago, and is waited for. Raises the
        router's refusal, NobodyServes, NoAnswer."""
        subject = subjects.open_session(self._model)
        try:
            self.opened = await self._patient(lambda wait_s: ask_at(self._bus, subject, SessionOpened, asked, wait_s),
                                              waits_for_router=again)  # fmt: skip
        except NobodyServes as error:
            raise NobodyServes(
                f"no router serves {self._model} for clients with a trunk of their own",
                hint="Check the model's name, or start a router for it.",
            ) from error
        return self.opened

    async def rows(self, step: int, layer: int, hidden: Rows) -> Rows:
        """What the experts of this layer add to each of the rows [T, H] that enter them. Raises ExpertUnavailable,
        SessionEnded, and UnreachableError for a router that is gone."""
        opened = self._session
        sent = HiddenRows(self._request, opened.session, self._manifest, step, layer, hidden)
        raw, subject = encode_session(sent), subjects.activate(opened.router)
        got = decode_session(await self._patient(lambda wait_s: self._asked(subject, raw, wait_s)), SummedRows)
        if (got.request, got.step, got.layer, got.rows.shape) != (self._request, step, layer, hidden.shape):
            raise MalformedMessage("the router answered for other rows than were sent")
        rows: Rows = np.asarray(got.rows, np.float32)
        return rows

    async def close(self, asked: SessionClose) -> SessionClosed:
        """The bill. Raises why there is none."""
        subject = subjects.close_session(self._session.router)
        return await self._patient(lambda wait_s: ask_at(self._bus, subject, SessionClosed, asked, wait_s))

    async def leave(self, asked: SessionClose) -> None:
        """Close without waiting for the bill."""
        await self._bus.publish(subjects.close_session(self._session.router), asked.canonical())

    @property
    def _session(self) -> SessionOpened:
        assert self.opened is not None, "open comes first"
        return self.opened

    async def _asked(self, subject: str, raw: bytes, wait_s: float) -> bytes:
        """One message, one answer, one future: through the shared inbox, which costs a third less than a request."""
        with self._gatherer.call() as call:
            await call.send(secrets.randbits(TAG_BITS), subject, raw)
            arrivals: list[Arrival] = await call.wait(wait_s)
        if not arrivals:
            raise NoAnswer(f"no answer from router {self._session.router} within {wait_s:g} s")
        if arrivals[0].loss is Loss.NO_RESPONDERS:
            raise NobodyServes(f"router {self._session.router} is not there")
        if arrivals[0].loss is not None:
            raise ServerUnreachable("the connection to the NATS server was lost")
        return arrivals[0].data

    async def _patient(self, asked: Callable[[float], Awaitable[AnswerT]], *, waits_for_router: bool = True) -> AnswerT:
        """Ask until there is an answer, or for `timeout_s`."""
        now_s = asyncio.get_running_loop().time
        until_s, wait_s, pause_s = now_s() + self._timeout_s, FIRST_WAIT_S, FIRST_PAUSE_S
        while True:
            try:
                return await asked(min(wait_s, max(FIRST_PAUSE_S, until_s - now_s())))
            except NoAnswer:
                wait_s = min(MOST_WAIT_S, 2 * wait_s)
                if now_s() >= until_s:
                    raise
            except UnreachableError:
                if not waits_for_router or now_s() + pause_s >= until_s:
                    raise
                await asyncio.sleep(pause_s)
                pause_s = min(MOST_PAUSE_S, 2 * pause_s)
