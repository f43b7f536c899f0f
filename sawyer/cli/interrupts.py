"""SIGTERM and a closed terminal end a command as Ctrl-C does: what it started is ended first."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


async def interruptible(main: Coroutine[Any, Any, ResultT]) -> ResultT | None:
    """The result, or None: it was interrupted, and has ended in order."""
    task = asyncio.ensure_future(main)
    for each in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(each, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return None
