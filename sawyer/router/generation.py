"""One request's tokens: its prompt, then a step a token, together with whoever else writes; sample; text.

The pass through the model is forward.py, who takes part in it decoding.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Literal

from sawyer.engine.answer import Answer, Sampled
from sawyer.engine.loaded import Engine
from sawyer.engine.sampling import Sampler, token_kind
from sawyer.router.decoding import Decoding, Row
from sawyer.router.forward import Place
from sawyer.router.scope import RequestScope
from sawyer.router.speculating import Guesses
from sawyer.schemas.generation import GenerateParams
from sawyer.schemas.messages import LayerCall


@dataclass(frozen=True, slots=True)
class TokenStep:
    """One sampled token, and what each layer on its way asked of nodes: (layer, calls)."""

    step: int
    sampled: Sampled
    calls: tuple[tuple[int, tuple[LayerCall, ...]], ...]


class Generation:
    """One request on its way. Iterate over `tokens()` once. `speculate`: what may come next is guessed and computed
    with what does; that changes no token, and no bill."""

    def __init__(
        self, engine: Engine, decoding: Decoding, scope: RequestScope, params: GenerateParams, *, speculate: bool = True
    ) -> None:
        self._engine = engine
        self._decoding = decoding
        self._scope = scope
        self._params = params.settled(engine.generation)
        self.speculate = speculate
        self.cancelled = False
        self.expired = False
        self.drafted = self.accepted = 0
        """Tokens guessed, and those of them that were right."""

    async def tokens(self, prompt: Sequence[int]) -> AsyncIterator[TokenStep]:
        """Samples until an end token, a stop string, max_tokens, `cancelled` or `expired` (the hold is about to end:
        what is there is posted in time). The last step carries the finish reason and any text that was held back.
        Raises ExpertUnavailable."""
        sampler = Sampler(self._params, prompt)
        answer = Answer(self._params, self._engine.tokenizer, self._engine.layout.eos)
        place = Place(self._scope, self._engine.trunk.new_cache(len(prompt) + self._params.max_tokens))
        guesses = Guesses(prompt, self._params.max_tokens, self._decoding.pace, len(self._engine.layout.moe_layers))
        rows = [Row(place, await self._decoding.prompt(place, prompt))]
        kind, fed = token_kind(self._params), len(prompt)
        with self._decoding.member(place):
            while True:
                for row in rows:
                    if row.place is not place:
                        place.take(row.place)
                        fed += 1
                    begun_ns = perf_counter_ns()
                    token, logprob = await self._engine.compute.run(kind, sampler.sample, row.logits)
                    self._scope.times.sample_us += (perf_counter_ns() - begun_ns) // 1000
                    sampled = answer.take(token, logprob, self._ending())
                    calls, place.calls = tuple(place.calls), []
                    yield TokenStep(self._scope.step, sampled, calls)
                    if sampled.finish is not None:
                        return
                    self._scope.step += 1
                    if not guesses.said(token, row.guess):
                        break
                place.cache.truncate(fed)
                drafts = guesses.drafts(answer.left - 1) if self.speculate and self._decoding.has_room else ()
                self.drafted, self.accepted = guesses.drafted, guesses.accepted
                rows = await self._decoding.step(place, token, drafts)
                fed += 1

    def _ending(self) -> Literal["length", "cancelled"] | None:
        if self.cancelled:
            return "cancelled"
        return "length" if self.expired else None
