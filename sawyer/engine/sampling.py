"""From logits to the next token. No state but the generator and the ids seen: one seed and the same logits give the
same choices everywhere.

The order is that of transformers (5.23, `GenerationMixin._get_logits_processor`): repetition penalty, temperature,
top-k, top-p, min-p; each works on what the one before left. Unlike there, of equal logits the lowest id comes first, so
that top-k keeps k tokens and never more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sawyer.errors import VerificationError
from sawyer.schemas.base import MAX_SAFE_INTEGER
from sawyer.schemas.generation import GenerateParams
from sawyer.schemas.messages import Logprob

_DRAW_BITS: Final = 53
"""A draw is the upper 53 of 64 random bits: NumPy promises the raw stream of PCG64 for all versions, and no other."""


class Sampler:
    """Greedy, or a draw. One sampler a request: `prompt` are the ids that the repetition penalty counts as seen."""

    def __init__(self, params: GenerateParams, prompt: Sequence[int] = ()) -> None:
        self._temperature = params.temperature_milli / 1000
        self._top_k = params.top_k
        self._top_p = params.top_p_milli / 1000
        self._least = math.log(params.min_p_milli / 1000) if params.min_p_milli else -math.inf
        self._penalty = params.repetition_penalty_milli / 1000
        self._told = params.logprobs
        self._bits = np.random.PCG64(params.seed)
        self._prompt = prompt
        self._seen: NDArray[np.bool_] | None = None

    def sample(self, logits: NDArray[np.float32]) -> tuple[int, Logprob | None]:
        """`pick`, and how likely the id was, if the request asked for that."""
        token = self.pick(logits)
        return token, None if self._told is None else logprob(logits, token, self._told)

    def pick(self, logits: NDArray[np.float32]) -> int:
        """The next id. `logits` [V]; of equal logits the lowest id wins. Raises VerificationError if the largest is not
        a finite number: then an expert answered nonsense."""
        best = float(logits.max())
        if not np.isfinite(best):
            raise VerificationError(
                "the logits are not finite numbers", hint="A node answers nonsense: audit the nodes."
            )
        if self._penalty != 1:
            return self._pick_unseen(logits)
        if self._temperature == 0:
            return int(logits.argmax())
        return self._draw((logits.astype(np.float64) - best) / self._temperature)

    def _pick_unseen(self, logits: NDArray[np.float32]) -> int:
        """`pick`, after the logits of ids seen were made smaller (CTRL, arXiv:1909.05858, section 4.1; as transformers
        does it, negative logits are multiplied): the penalty works when greedy too. What is picked is seen."""
        if self._seen is None:
            self._seen = np.zeros(len(logits), np.bool_)
            self._seen[list(self._prompt)] = True
        penalised = logits.astype(np.float64)
        ids = np.flatnonzero(self._seen)
        rows = penalised[ids]
        penalised[ids] = np.where(rows > 0, rows / self._penalty, rows * self._penalty)
        if self._temperature == 0:
            token = int(penalised.argmax())
        else:
            token = self._draw((penalised - penalised.max()) / self._temperature)
        self._seen[token] = True
        return token

    def _draw(self, scaled: NDArray[np.float64]) -> int:
        """An id at random, after temperature. `scaled` [V]: the largest is 0."""
        ids, scaled = self._candidates(scaled)
        mass = np.cumsum(np.exp(scaled))
        if self._top_p < 1:
            mass = mass[: int(np.searchsorted(mass, self._top_p * mass[-1])) + 1]
        if self._least > -math.inf:
            mass = mass[: np.count_nonzero(scaled >= self._least)]
        share = (int(self._bits.random_raw()) >> (64 - _DRAW_BITS)) / 2**_DRAW_BITS
        drawn = int(np.searchsorted(mass, share * mass[-1], side="right"))
        return int(ids[min(drawn, len(mass) - 1)])

    def _candidates(self, scaled: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """(ids, scaled logits) of the top k, by falling logit if top-k or top-p need that. Without them min-p is done
        here; else it cuts the end off."""
        if self._top_k or self._top_p < 1:
            ids = _largest(scaled, self._top_k or len(scaled))
        elif self._least > -math.inf:
            ids = np.flatnonzero(scaled >= self._least)
        else:
            return np.arange(len(scaled)), scaled
        return ids, scaled[ids]


def logprob(logits: NDArray[np.float32], token: int, top: int) -> Logprob:
    """How likely `token` and the `top` likeliest ids were, of the softmax of `logits` [V] as the model gave them."""
    wide = logits.astype(np.float64)
    best = wide.max()
    norm = float(best + np.log(np.exp(wide - best).sum()))

    def surprise_micro(each: int) -> int:
        return min(MAX_SAFE_INTEGER, max(0, round((norm - float(wide[each])) * 1_000_000)))

    likeliest = [int(each) for each in _largest(logits, top)] if top else []
    return Logprob(
        token=token,
        surprise_micro=surprise_micro(token),
        top=tuple((each, surprise_micro(each)) for each in likeliest if wide[each] > -math.inf),
    )


def _largest(values: NDArray[np.floating], count: int) -> NDArray[np.intp]:
    """Where the `count` largest stand, by falling value, then rising place."""
    ids = np.arange(len(values))
    if count < len(values):
        ids = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return ids[np.argsort(-values[ids], kind="stable")][:count]


def token_kind(params: GenerateParams) -> str:
    """For Offload: tokens of one kind take about as long: greedy, drawn, penalised, told of."""
    extras = (params.temperature_milli > 0, params.repetition_penalty_milli != 1000, params.logprobs is not None)
    return f"token {''.join(str(int(each)) for each in extras)}"
