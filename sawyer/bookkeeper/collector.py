"""Python's collector in a process that keeps a book: it finds next to nothing, and looks through the whole memory.

What the writer makes by the thousand (facts, entries, replies) holds no circles and ends by itself. What it keeps (the
folds) grows with members and accounts, and would be looked through again and again.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

SELDOM: Final = (50_000, 20, 100)
"""Objects made since the last look before the next; so many looks at the young before one at the older; and so on."""


@contextmanager
def calm_collector() -> Iterator[None]:
    """What is there now is not looked through again, and what comes only seldom: for a program that has just read its
    book. Afterwards everything is as it was."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
