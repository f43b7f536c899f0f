"""One request's tokens: its prompt, then a step a token, together with whoever else writes; sample; text.

The pass through the model is forward.py, who takes part in it decoding.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sawyer.engine.answer import Answer, Sampled
from sawyer.engine.conversing import Conversing
from sawyer.engine.offload import Offload
from sawyer.engine.sampling import Sampler
from sawyer.engine.tokenizer import Tokenizer
from sawyer.engine.trunk import Trunk
from sawyer.model.artifacts import Artifacts
from sawyer.router.decoding import Decoding, Row
from sawyer.router.dispatch import RequestScope
from sawyer.router.forward import Place
from sawyer.router.speculating import Guesses
from sawyer.schemas.generation import GenerateParams
from sawyer.schemas.messages import LayerCall
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
        kind, fed = _token_kind(self._params), len(prompt)
        with self._decoding.member(place):
            while True:
                for row in rows:
                    if row.place is not place:
                        place.take(row.place)
                        fed += 1
                    token, logprob = await self._engine.compute.run(kind, sampler.sample, row.logits)
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


def _token_kind(params: GenerateParams) -> str:
    """Tokens of one kind take about as long: greedy, drawn, penalised, told of."""
    extras = (params.temperature_milli > 0, params.repetition_penalty_milli != 1000, params.logprobs is not None)
    return f"token {''.join(str(int(each)) for each in extras)}"
