"""From logits to the next token. No state but the generator: the same seed gives the same choices everywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sawyer.errors import VerificationError
from sawyer.schemas.messages import GenerateParams


class Sampler:
    """Greedy, or temperature with top-k and top-p, in this order. One sampler a request."""

    def __init__(self, params: GenerateParams) -> None:
        self._temperature = params.temperature_milli / 1000
        self._top_k = params.top_k
        self._top_p = params.top_p_milli / 1000
        self._random = np.random.Generator(np.random.PCG64(params.seed))

    def pick(self, logits: NDArray[np.float32]) -> int:
        """The next id. `logits` [V]; of equal logits the lowest id wins. Raises VerificationError if the largest is not
        a finite number: then an expert answered nonsense."""
        best = float(logits.max())
        if not np.isfinite(best):
            raise VerificationError(
                "the logits are not finite numbers", hint="A node answers nonsense: audit the nodes."
            )
        if self._temperature == 0:
            return int(logits.argmax())
        ids, scaled = self._candidates((logits.astype(np.float64) - best) / self._temperature)
        mass = np.cumsum(np.exp(scaled))
        if self._top_p < 1:
            kept = int(np.searchsorted(mass, self._top_p * mass[-1])) + 1
            mass = mass[:kept]
        drawn = int(np.searchsorted(mass, self._random.random() * mass[-1], side="right"))
        return int(ids[min(drawn, len(mass) - 1)])

    def _candidates(self, scaled: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """(ids, scaled logits) by falling logit, then rising id; only the top k of them."""
        ids = np.arange(len(scaled))
        if 0 < self._top_k < len(scaled):
            ids = np.flatnonzero(scaled >= np.partition(scaled, -self._top_k)[-self._top_k])
        elif self._top_p == 1:
            return ids, scaled
        ids = ids[np.argsort(-scaled[ids], kind="stable")]
        if self._top_k:
            ids = ids[: self._top_k]
        return ids, scaled[ids]
