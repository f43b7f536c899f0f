"""One request's tokens: prefill, then one forward pass a token, experts remote, everything else here.

The straight path of the whole project: embed; layer by layer attend and gate, dispatch, combine; logits; sample.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from sawyer.engine.combine import combine, group_rows
from sawyer.engine.sampling import Sampler
from sawyer.engine.tokenizer import Tokenizer
from sawyer.engine.trunk import KvCache, Trunk, prefill_chunks
from sawyer.model.artifacts import Artifacts
from sawyer.router.dispatch import Dispatcher, ExpertRows, RequestScope
from sawyer.schemas.messages import GenerateParams, LayerCall
from sawyer.schemas.models import ModelLayout

FinishReason = Literal["stop", "length", "cancelled"]
ReturnT = TypeVar("ReturnT")


@dataclass(frozen=True, slots=True)
class TokenStep:
    """One sampled token. `text` may be empty while a UTF-8 character is incomplete. `finish` on the last. `calls` is
    what each layer on its way asked of nodes: (layer, calls)."""

    step: int
    token: int
    text: str
    finish: FinishReason | None
    calls: tuple[tuple[int, tuple[LayerCall, ...]], ...]


@dataclass(frozen=True)
class Engine:
    """What a router holds of one model. ONNX Runtime runs in `threads`, never on the event loop."""

    manifest: str
    layout: ModelLayout
    trunk: Trunk
    tokenizer: Tokenizer
    threads: Executor

    @classmethod
    def load(cls, artifacts: Artifacts) -> Engine:
        """Verify and load; blocks, so do it before anybody waits for this process."""
        threads = ThreadPoolExecutor(1, thread_name_prefix="trunk")
        return cls(artifacts.digest, artifacts.layout, Trunk(artifacts), Tokenizer(artifacts), threads)


class Generation:
    """One request on its way. Iterate over `tokens()` once."""

    def __init__(self, engine: Engine, dispatcher: Dispatcher, scope: RequestScope, params: GenerateParams) -> None:
        self._engine = engine
        self._dispatcher = dispatcher
        self._scope = scope
        self._params = params
        self._calls: list[tuple[int, tuple[LayerCall, ...]]] = []
        self._cache: KvCache | None = None
        self.cancelled = False
        self.expired = False

    async def tokens(self, prompt: Sequence[int]) -> AsyncIterator[TokenStep]:
        """Samples until an end token, max_tokens, `cancelled` or `expired` (the hold is about to end: what is there is
        posted in time). The last step carries the finish reason and any text
        that was held back. Raises ExpertUnavailable."""
        sampler, text = Sampler(self._params), self._engine.tokenizer.stream()
        self._cache = self._engine.trunk.new_cache(len(prompt) + self._params.max_tokens)
        token = await self._forward(prompt, sampler)
        for count in range(1, self._params.max_tokens + 1):
            finish = self._finish_reason(token, count)
            if finish == "stop":
                yield self._step(token, text.flush(), finish)
                return
            piece = text.push(token)
            if finish is not None:
                yield self._step(token, piece + text.flush(), finish)
                return
            yield self._step(token, piece, None)
            self._scope.step += 1
            token = await self._forward([token], sampler)

    def _step(self, token: int, text: str, finish: FinishReason | None) -> TokenStep:
        calls, self._calls = tuple(self._calls), []
        return TokenStep(self._scope.step, token, text, finish, calls)

    def _finish_reason(self, token: int, count: int) -> FinishReason | None:
        if token in self._engine.layout.eos:
            return "stop"
        if self.cancelled:
            return "cancelled"
        return "length" if self.expired or count >= self._params.max_tokens else None

    async def _forward(self, ids: Sequence[int], sampler: Sampler) -> int:
        """The token sampled after the last of `ids`; all of them enter the cache."""
        last: NDArray[np.float32] | None = None
        for chunk in prefill_chunks(len(ids)):
            rows = self._engine.trunk.embed(ids[chunk])
            for layer in range(self._engine.layout.layers):
                rows = await self._layer(layer, rows)
            last = rows[-1:]
        assert last is not None, "admission lets no empty prompt pass"
        return await self._in_thread(lambda: sampler.pick(self._engine.trunk.logits(last)[0]))

    async def _layer(self, layer: int, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        attended = await self._in_thread(self._engine.trunk.attend, layer, rows, self._cache)
        groups = group_rows(attended.experts)
        work = [ExpertRows(group.expert, group.rows) for group in groups]
        blocks, calls = await self._dispatcher.layer(self._scope, layer, attended.hidden, work)
        self._calls.append((layer, tuple(calls)))
        return combine(attended.residual, groups, blocks, attended.weights)

    async def _in_thread(self, function: Callable[..., ReturnT], *arguments: Any) -> ReturnT:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._engine.threads, function, *arguments)
