"""Which event loop a program runs on: uvloop where it is installed, otherwise asyncio's own. Owns that choice alone."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from sawyer.errors import MissingExtra

ResultT = TypeVar("ResultT")


def chosen(kind: str = "auto") -> str:
    """ "uvloop" or "asyncio" for "auto", "uvloop" or "asyncio". Raises MissingExtra for an uvloop that is not there."""
    if kind == "asyncio":
        return kind
    if importlib.util.find_spec("uvloop") is not None:
        return "uvloop"
    if kind == "uvloop":
        raise MissingExtra("uvloop is not installed", hint="pip install 'sawyer[uvloop]', or leave the setting out.")
    return "asyncio"


def run(main: Coroutine[Any, Any, ResultT], kind: str = "auto") -> ResultT:
    """As asyncio.run, on the chosen loop."""
    with asyncio.Runner(loop_factory=_factory(chosen(kind))) as runner:
        return runner.run(main)


def _factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if name == "asyncio":
        return None
    import uvloop  # noqa: PLC0415  (an extra)

    return uvloop.new_event_loop
