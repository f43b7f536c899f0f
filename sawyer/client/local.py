"""A generation whose trunk runs here: prompt, keys and values, logits and text never leave this machine. Experts are
asked through a router, which sees normed hidden rows and no token.

The same steps as a router's, in the same order, so the same bits: attend, experts, next layer; sample; text.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sawyer.bus.protocol import Bus
from sawyer.client.rounds import Rounds
from sawyer.client.stream import TextStream, TokenLogprob
from sawyer.engine.answer import Answer, Sampled
from sawyer.engine.cache import KvCache
from sawyer.engine.layer import Attended
from sawyer.engine.loaded import Engine
from sawyer.engine.prompt import billed_input, prompt_ids
from sawyer.engine.sampling import Sampler, token_kind
from sawyer.engine.trunk import prefill_chunks
from sawyer.errors import NoAnswer, SawyerError, SessionEnded, UnreachableError
from sawyer.ids import ModelId
from sawyer.schemas.messages import Accepted, InferRequest
from sawyer.schemas.sessions import SessionClose, SessionClosed, SessionOpen

RESUMES: Final = 2
"""A router that was started anew knows nothing of the session: it begins again at the prompt, so often at most. The
tokens are the same, and those that were given are not given twice."""
AHEAD: Final = 1
"""So many tokens are computed that nobody has read yet."""

Rows = NDArray[np.float32]
_End = SessionClosed | BaseException


class LocalStream(TextStream):
    """Computes in a task of its own, so that an interrupted reader loses nothing."""

    def __init__(
        self,
        bus: Bus,
        model: ModelId,
        request: InferRequest,
        timeout_s: float,
        load: Callable[[], Awaitable[Engine]],
    ) -> None:
        super().__init__(bus, model, request, timeout_s)
        self._load = load
        self._said: asyncio.Queue[Sampled | _End] = asyncio.Queue(AHEAD)
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._given = 0

    async def __aenter__(self) -> LocalStream:
        self._task = asyncio.create_task(self._run(), name=f"local generation {self.request}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def cancel(self) -> None:
        self._cancelled = True

    async def __aiter__(self) -> AsyncIterator[str]:
        while self.usage is None:
            said = await self._said.get()
            if isinstance(said, BaseException):
                self._said.put_nowait(said)  # who reads on is told the same
                raise said
            if isinstance(said, SessionClosed):
                self.finish, self.usage = said.finish, said.usage
            else:
                if said.billed:
                    self.ids.append(said.token)
                if said.logprob is not None:
                    self.logprobs.append(TokenLogprob.of(said.logprob))
                if said.text:
                    yield said.text

    async def _run(self) -> None:
        try:
            end: _End = await self._to_the_bill()
        except Exception as error:  # noqa: BLE001  (raised where the stream is read)
            end = error
        await self._said.put(end)

    async def _to_the_bill(self) -> SessionClosed:
        engine = await self._load()
        params = self._request.params
        ids = await asyncio.to_thread(prompt_ids, params, engine.tokenizer, engine.layout, engine.chat)
        async with Rounds(self._bus, self._model, self.request, engine.manifest, self._timeout_s) as rounds:
            for resumes in range(RESUMES + 1):
                try:
                    return await self._session(engine, rounds, ids)
                except (SessionEnded, UnreachableError) as error:
                    if resumes == RESUMES or rounds.opened is None or isinstance(error, NoAnswer):
                        raise
        raise AssertionError("the last try returns or raises")

    async def _session(self, engine: Engine, rounds: Rounds, ids: Sequence[int]) -> SessionClosed:
        """One whole try, from the held tokens to the bill."""
        input_tokens = billed_input(list(ids), engine.tokenizer.special)
        asked = SessionOpen(
            order=self._request.order, manifest=engine.manifest, rows=len(ids), input_tokens=input_tokens
        )
        opened = await rounds.open(asked, again=rounds.opened is not None)
        self.accepted = Accepted(n=0, router=opened.router, input_tokens=input_tokens, held_tokens=opened.held_tokens)
        close = SessionClose(session=opened.session, finish="cancelled")
        try:
            last = await self._generate(engine, rounds, ids)
        except BaseException:
            with contextlib.suppress(SawyerError):  # then the router ends it by itself
                await rounds.leave(close)
            raise
        assert last.finish is not None, "the last token says why it is the last"
        return await rounds.close(close.model_copy(update={"finish": last.finish, "end_token": not last.billed}))

    async def _generate(self, engine: Engine, rounds: Rounds, ids: Sequence[int]) -> Sampled:
        """Every token, to whoever reads; the last one."""
        params = self._request.params.settled(engine.generation)
        sampler = Sampler(params, ids)
        answer = Answer(params, engine.tokenizer, engine.layout.eos)
        through = _Through(engine, rounds, engine.trunk.new_cache(len(ids) + params.max_tokens))
        logits, kind, number = await through.prompt(ids), token_kind(params), 0
        while True:
            token, logprob = await engine.compute.run(kind, sampler.sample, logits)
            ends = self._cancelled and number >= self._given  # what was given in a try before is billed in this one
            sampled = answer.take(token, logprob, "cancelled" if ends else None)
            number += 1
            if number > self._given:  # not one of a try before
                await self._said.put(sampled)
                self._given = number
            if sampled.finish is not None:
                return sampled
            logits = await through.token(token)


class _Through:
    """One sequence on its way through the model."""

    def __init__(self, engine: Engine, rounds: Rounds, cache: KvCache) -> None:
        self._trunk = engine.trunk
        self._compute = engine.compute
        self._rounds = rounds
        self._cache = cache
        self._step = 0

    async def prompt(self, ids: Sequence[int]) -> Rows:
        """Logits [V] after the last of them."""
        rows = np.empty((0, 0), np.float32)
        for chunk in prefill_chunks(len(ids)):
            rows = await self._rows(ids[chunk])
        return await self._logits(rows)

    async def token(self, token: int) -> Rows:
        """Logits [V] after one more."""
        return await self._logits(await self._rows([token]))

    async def _logits(self, rows: Rows) -> Rows:
        logits: Rows = (await self._compute.run("head 1", self._trunk.logits, rows[-1:]))[0]
        return logits

    async def _rows(self, ids: Sequence[int]) -> Rows:
        """One step: a row each, through all layers."""
        rows, reach = self._trunk.embed(ids), self._cache.length.bit_length()
        kind = f"rows 1 {reach}" if len(ids) == 1 else ""
        for layer in range(self._trunk.layout.layers):
            attended = await self._compute.run(kind, self._trunk.attend, layer, rows, self._cache)
            rows = attended.residual
            if attended.experts.size:
                rows = await self._experts(layer, attended, kind)
        self._step += 1
        return rows

    async def _experts(self, layer: int, attended: Attended, kind: str) -> Rows:
        asked = self._rounds.rows(self._step, layer, attended.hidden)
        if not self._trunk.has_shared(layer):
            return attended.residual + await asked
        total = asyncio.ensure_future(asked)
        try:
            kind = f"shared {kind}" if kind else ""
            shared = await self._compute.run(kind, self._trunk.shared, layer, attended.hidden)
            return attended.residual + shared + await total
        finally:
            total.cancel()
