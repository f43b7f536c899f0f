"""One request's tokens: prefill, then one forward pass a token, experts remote, everything else here.

The straight path of the whole project: embed; layer by layer attend and gate, dispatch, combine; logits; sample.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sawyer.engine.answer import Answer, Sampled
from sawyer.engine.cache import KvCache
from sawyer.engine.combine import combine, group_rows
from sawyer.engine.conversing import Conversing
from sawyer.engine.offload import Offload
from sawyer.engine.sampling import Sampler
from sawyer.engine.tokenizer import Tokenizer
from sawyer.engine.trunk import Trunk, prefill_chunks
from sawyer.model.artifacts import Artifacts
from sawyer.router.dispatch import Dispatcher, ExpertRows, RequestScope
from sawyer.schemas.generation import GenerateParams
from sawyer.schemas.messages import LayerCall, Logprob
from sawyer.schemas.models import GenerationDefaults, ModelLayout


@dataclass(frozen=True, slots=True)
class TokenStep:
    """One sampled token, and what each layer on its way asked of nodes: (layer, calls)."""

    step: int
    sampled: Sampled
    calls: tuple[tuple[int, tuple[LayerCall, ...]], ...]


@dataclass(frozen=True)
class Engine:
    """What a router holds of one model. ONNX Runtime runs in `compute`, not on the event loop unless for a moment.
    `chat` is None for a model without a chat template; `generation` is what its maker said of sampling."""

    manifest: str
    layout: ModelLayout
    trunk: Trunk
    tokenizer: Tokenizer
    compute: Offload
    chat: Conversing | None
    generation: GenerationDefaults | None

    @classmethod
    def load(cls, artifacts: Artifacts) -> Engine:
        """Verify and load; blocks, so do it before anybody waits for this process."""
        tokenizer, template = Tokenizer(artifacts), artifacts.read_chat()
        return cls(
            artifacts.digest,
            artifacts.layout,
            Trunk(artifacts),
            tokenizer,
            Offload("trunk"),
            None if template is None else Conversing.of(template, tokenizer),
            artifacts.manifest.generation,
        )

    def close(self) -> None:
        """Idempotent."""
        self.compute.shutdown()
        if self.chat is not None:
            self.chat.close()


class Generation:
    """One request on its way. Iterate over `tokens()` once."""

    def __init__(self, engine: Engine, dispatcher: Dispatcher, scope: RequestScope, params: GenerateParams) -> None:
        self._engine = engine
        self._dispatcher = dispatcher
        self._scope = scope
        self._params = params.settled(engine.generation)
        self._calls: list[tuple[int, tuple[LayerCall, ...]]] = []
        self._cache: KvCache | None = None
        self.cancelled = False
        self.expired = False

    async def tokens(self, prompt: Sequence[int]) -> AsyncIterator[TokenStep]:
        """Samples until an end token, a stop string, max_tokens, `cancelled` or `expired` (the hold is about to end:
        what is there is posted in time). The last step carries the finish reason and any text that was held back.
        Raises ExpertUnavailable."""
        sampler = Sampler(self._params, prompt)
        answer = Answer(self._params, self._engine.tokenizer, self._engine.layout.eos)
        self._cache = self._engine.trunk.new_cache(len(prompt) + self._params.max_tokens)
        ids = prompt
        while True:
            token, logprob = await self._forward(ids, sampler)
            sampled = answer.take(token, logprob, self._ending())
            calls, self._calls = tuple(self._calls), []
            yield TokenStep(self._scope.step, sampled, calls)
            if sampled.finish is not None:
                return
            self._scope.step += 1
            ids = [token]

    async def _forward(self, ids: Sequence[int], sampler: Sampler) -> tuple[int, Logprob | None]:
        """The token sampled after the last of `ids`; all of them enter the cache."""
        assert self._cache is not None
        last: NDArray[np.float32] | None = None
        reach = self._cache.length.bit_length()  # attention takes longer the further back it reaches
        for chunk in prefill_chunks(len(ids)):
            rows = self._engine.trunk.embed(ids[chunk])
            for layer in range(self._engine.layout.layers):
                # a part of a prompt is never short
                rows = await self._layer(layer, rows, f"row {reach}" if len(rows) == 1 else "")
            last = rows[-1:]
        assert last is not None, "admission lets no empty prompt pass"
        kind = _token_kind(self._params)
        return await self._engine.compute.run(kind, lambda: sampler.sample(self._engine.trunk.logits(last)[0]))

    def _ending(self) -> Literal["length", "cancelled"] | None:
        if self.cancelled:
            return "cancelled"
        return "length" if self.expired else None

    async def _layer(self, layer: int, rows: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
        trunk, compute = self._engine.trunk, self._engine.compute
        attended = await compute.run(kind, trunk.attend, layer, rows, self._cache)
        groups = group_rows(attended.experts)
        work = [ExpertRows(group.expert, group.rows) for group in groups]
        if not work:  # a layer without experts
            return attended.residual
        asked = self._dispatcher.layer(self._scope, layer, attended.hidden, work)
        if not trunk.has_shared(layer):
            residual, (blocks, calls) = attended.residual, await asked
        else:  # computed here while the others are asked elsewhere
            shared = compute.run(f"shared {kind}" if kind else "", trunk.shared, layer, attended.hidden)
            answers = asyncio.ensure_future(asked)
            try:
                residual = attended.residual + await shared
                blocks, calls = await answers
            finally:
                answers.cancel()  # nobody asks on for a layer that failed here
        self._calls.append((layer, tuple(calls)))
        return combine(residual, groups, blocks, attended.weights)


def _token_kind(params: GenerateParams) -> str:
    """Tokens of one kind take about as long: greedy, drawn, penalised, told of."""
    extras = (params.temperature_milli > 0, params.repetition_penalty_milli != 1000, params.logprobs is not None)
    return f"token {''.join(str(int(each)) for each in extras)}"
