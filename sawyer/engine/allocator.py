"""Memory that was freed, back to the system. glibc keeps freed blocks of less than 32 MB for itself: after the third
expert of 44 MB had been dropped and loaded anew, a process held 2.9 of them more than it used. Asking takes 2 ms."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def give_back_freed() -> None:
    """Does nothing where the C library is another one, which has its own ways. Any thread."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    """`malloc_trim` of glibc (man 3 malloc_trim)."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
