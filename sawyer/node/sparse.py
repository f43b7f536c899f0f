"""Warnings that anybody can cause, and so may come in floods: a log must stay readable, and small."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Final

EVERY_S: Final = 1.0


class SparseWarnings:
    """Logs the first warning at once, and after it at most one in EVERY_S, which says how many were left out."""

    def __init__(self, log: logging.Logger, now_s: Callable[[], float] = monotonic) -> None:
        self._log = log
        self._now_s = now_s
        self._quiet_until_s = float("-inf")
        self._left_out = 0

    def warning(self, text: str, *arguments: object) -> None:
        """As `logging` takes it: a format and its arguments."""
        now_s = self._now_s()
        if now_s < self._quiet_until_s:
            self._left_out += 1
            return
        if self._left_out:
            text, arguments = text + " (and %d more warnings before it)", (*arguments, self._left_out)
        self._log.warning(text, *arguments)
        self._quiet_until_s, self._left_out = now_s + EVERY_S, 0
