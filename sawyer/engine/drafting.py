"""What may be said next, guessed from what was said before: after the last tokens comes what came after them the last
time (prompt lookup, https://github.com/apoorvumang/prompt-lookup-decoding). No model, and nothing depends on a guess
being right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST_SEEN: Final = 2
"""So many tokens must have stood there before, in this order."""
MOST_SEEN: Final = 8
"""So many are compared."""


class Guess(NamedTuple):
    """The tokens that may come next, and how many of those before stood before them the last time."""

    seen: int
    ids: tuple[int, ...]


class Drafter:
    """The tokens of one request, prompt and answer."""

    def __init__(self, prompt: Sequence[int], room: int) -> None:
        """`room`: how many may be added."""
        self._ids: NDArray[np.int32] = np.empty(len(prompt) + room, np.int32)
        self._ids[: len(prompt)] = prompt
        self._length = len(prompt)

    def push(self, token: int) -> None:
        """One more was said."""
        self._ids[self._length] = token
        self._length += 1

    def guess(self, most: int) -> Guess | None:
        """At most so many tokens, after the longest and, of equals, the last place that looks like this one."""
        if most < 1:
            return None
        ids, last = self._ids, self._length - 1
        places = np.flatnonzero(ids[:last] == ids[last])
        seen = 0
        while len(places) and seen < MOST_SEEN:
            seen, like = seen + 1, places
            places = like[like >= seen]
            places = places[ids[places - seen] == ids[last - seen]] if last >= seen else places[:0]
        if seen < LEAST_SEEN:
            return None
        start = int(like[-1]) + 1
        period = self._length - start
        return Guess(seen, tuple(int(ids[start + n % period]) for n in range(most)))
