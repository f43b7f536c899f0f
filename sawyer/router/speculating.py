"""Speculative decoding: how many guessed tokens are worth a row in the pass that would run anyway.

A guess that is right saves a pass; one that is wrong cost a row. What a row costs beside a pass is measured (a tenth on
a LAN, nothing over a WAN), and how often guesses are right is remembered for each request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from sawyer.engine.drafting import Drafter

MOST_DRAFTS: Final = 8
FEW: Final = 2
"""While so many sequences write, passes have room. Beyond, rows of others fill them, and each is of use."""
PASSES_KEPT: Final = 31
ROW_SHARE: Final = 0.15
"""Of a pass, that one more row in it costs, until it is known."""
LEAST_SHARE: Final = 0.02
RIGHT: Final = {2: 0.3, 3: 0.5, 4: 0.6}
"""How often a guessed token is right, after so many that looked alike (the last: or more), before any was."""
LEARNT: Final = 0.15
"""How much the newest outcome counts for."""
LOOK_AGAIN: Final = 24
"""So many guesses in a row that were not worth a row; then one is tried all the same."""
MOST_GAPS: Final = 24_576
"""Answers of nodes that were not used leave gaps among those that a receipt names, and its message holds so many."""


@dataclass
class Pace:
    """What passes of one router took lately."""

    _single_s: deque[float] = field(default_factory=lambda: deque(maxlen=PASSES_KEPT))
    _row_s: deque[float] = field(default_factory=lambda: deque(maxlen=PASSES_KEPT))

    def took(self, rows: int, seconds: float) -> None:
        """One pass."""
        if rows == 1:
            self._single_s.append(seconds)
        elif self._single_s:
            self._row_s.append((seconds - median(self._single_s)) / (rows - 1))

    def row_share(self) -> float:
        """One more row beside a pass of one: the ratio of their times, LEAST_SHARE to 1."""
        if not self._row_s:
            return ROW_SHARE
        return min(1.0, max(LEAST_SHARE, median(self._row_s) / median(self._single_s)))


class Guesses:
    """Those of one request: `drafted` got a row, `accepted` of them were right. `layers`: those whose experts are
    elsewhere."""

    def __init__(self, prompt: Sequence[int], room: int, pace: Pace, layers: int) -> None:
        self._drafter = Drafter(prompt, room)
        self._pace = pace
        self._layers = layers
        self._right = dict(RIGHT)
        self._alike = 0
        self._passed_over = 0
        self._gaps = 0
        self.drafted = 0
        self.accepted = 0

    def drafts(self, most: int) -> tuple[int, ...]:
        """The guessed tokens, at most so many, that the next pass should have rows for."""
        guess = self._drafter.guess(min(most, MOST_DRAFTS)) if self._gaps < MOST_GAPS else None
        if guess is None:
            return ()
        self._alike = min(guess.seen, max(RIGHT))
        count = self._worth(len(guess.ids))
        if not count:
            self._passed_over += 1
            if self._passed_over < LOOK_AGAIN:
                return ()
            count = 1
        self._passed_over = 0
        self.drafted += count
        return guess.ids[:count]

    def said(self, token: int, guess: int | None) -> bool:
        """One more token was said, and perhaps one was guessed to be. Whether it was right: if not, those behind it
        were for nothing."""
        self._drafter.push(token)
        if guess is None:
            return False
        right = token == guess
        self.accepted += right
        self._gaps += 0 if right else self._layers
        self._right[self._alike] += LEARNT * (right - self._right[self._alike])
        return right

    def _worth(self, most: int) -> int:
        """How many have a better chance to save a pass than a row costs of one. The second is right only if the first
        is."""
        chance, share = 1.0, self._pace.row_share()
        for count in range(most):
            chance *= self._right[self._alike]
            if chance <= share:
                return count
        return most
