"""The single-machine reference: trunk and all experts in one process. What a distributed run must equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sawyer.engine.answer import Answer, Sampled
from sawyer.engine.cache import KvCache
from sawyer.engine.combine import combine, group_rows
from sawyer.engine.experts import ExpertPool
from sawyer.engine.layer import Attended
from sawyer.engine.sampling import Sampler
from sawyer.engine.tokenizer import Tokenizer
from sawyer.engine.trunk import Trunk, prefill_chunks
from sawyer.errors import PromptEmpty, UsageError
from sawyer.schemas.generation import GenerateParams
from sawyer.schemas.messages import Logprob

GREEDY: Final = GenerateParams(prompt="", max_tokens=1)


class LocalModel:
    """Computes as the router does, with a pool that hosts every expert instead of nodes.

    `wire_dtype` float16 rounds rows where the wire does: on their way into experts and out of them.
    """

    def __init__(self, trunk: Trunk, pool: ExpertPool, *, wire_dtype: DTypeLike = np.float32) -> None:
        self.trunk = trunk
        self._pool = pool
        self._wire = np.dtype(wire_dtype)

    def forward(self, ids: Sequence[int], cache: KvCache) -> NDArray[np.float32]:
        """Hidden states after the last layer, [T, H], of T new tokens. Raises PromptEmpty, PromptTooLong."""
        if not ids:
            raise PromptEmpty("no tokens to compute")
        return np.concatenate([self._chunk(ids[part], cache) for part in prefill_chunks(len(ids))])

    def prefill(self, ids: Sequence[int], cache: KvCache) -> NDArray[np.float32]:
        """Logits [V] of the last of T new tokens."""
        last: NDArray[np.float32] = self.trunk.logits(self.forward(ids, cache)[-1:])[0]
        return last

    def step(self, token: int, cache: KvCache) -> NDArray[np.float32]:
        """Logits [V] after one more token."""
        return self.prefill([token], cache)

    def steps(self, tokens: Sequence[int], caches: Sequence[KvCache]) -> NDArray[np.float32]:
        """One more token of each of B sequences: logits [B, V]. An expert is asked once a layer, for the rows of all.
        Each row is what `step` gives, bit for bit."""
        return self.trunk.logits(self._through(tokens, partial(self.trunk.attend_many, caches=caches)))

    def generate(self, ids: Sequence[int], count: int, params: GenerateParams = GREEDY) -> list[int]:
        """`count` new token ids, or fewer up to and without an end-of-sequence token."""
        return [*self.stream(ids, count, params)]

    def stream(self, ids: Sequence[int], count: int, params: GenerateParams = GREEDY) -> Iterator[int]:
        """The ids of `generate`, as they are sampled. Raises UsageError for stop strings: ids alone spell no text."""
        if params.stop:
            raise UsageError("stop strings need a tokenizer", hint="Use `answer`.")
        for token, _ in self._sampled(ids, count, params):
            if token in self.trunk.layout.eos:
                return
            yield token

    def answer(self, ids: Sequence[int], params: GenerateParams, tokenizer: Tokenizer) -> Iterator[Sampled]:
        """The whole answer to the prompt `ids` as a router streams it: ids, text up to a stop string, logprobs. The
        last step says why it ended. Of `params`, the prompt's text is not read."""
        answer = Answer(params, tokenizer, self.trunk.layout.eos)
        for token, logprob in self._sampled(ids, params.max_tokens, params):
            sampled = answer.take(token, logprob)
            yield sampled
            if sampled.finish is not None:
                return

    def _sampled(self, ids: Sequence[int], count: int, params: GenerateParams) -> Iterator[tuple[int, Logprob | None]]:
        sampler = Sampler(params, ids)
        cache = self.trunk.new_cache(len(ids) + count)
        logits = self.prefill(ids, cache)
        for done in range(1, count + 1):
            token, logprob = sampler.sample(logits)
            yield token, logprob
            if done < count:
                logits = self.step(token, cache)

    def _chunk(self, ids: Sequence[int], cache: KvCache) -> NDArray[np.float32]:
        return self._through(ids, partial(self.trunk.attend, cache=cache))

    def _through(
        self, ids: Sequence[int], attend: Callable[[int, NDArray[np.float32]], Attended]
    ) -> NDArray[np.float32]:
        """A row for each token, through all layers."""
        x = self.trunk.embed(ids)
        for layer in range(self.trunk.layout.layers):
            attended = attend(layer, x)
            groups = group_rows(attended.experts)
            rows = self._rounded(attended.hidden)
            blocks = [self._rounded(self._pool.run(layer, group.expert, rows[group.rows])) for group in groups]
            residual = attended.residual
            if self.trunk.has_shared(layer):
                residual = residual + self.trunk.shared(layer, attended.hidden)
            x = combine(residual, groups, blocks, attended.weights)
        return x

    def _rounded(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return rows.astype(self._wire, copy=False).astype(np.float32, copy=False)
