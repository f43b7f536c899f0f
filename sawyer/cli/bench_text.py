"""What both benchmarks print alike: what is measured now, and a number of several rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sawyer.cli.output import stderr

if TYPE_CHECKING:
    from sawyer.bench.timing import Spread


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """On a terminal, one line on stderr that says what is measured now; otherwise nothing."""
    console = stderr()
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("preparing") as status:
        yield status.update


def spread_text(spread: Spread, digits: int = 0) -> str:
    """The median, and the lowest and highest where these differ."""
    middle, low, high = (f"{value:,.{digits}f}" for value in (spread.median, spread.low, spread.high))
    return middle if spread.low == spread.high else f"{middle} ({low} to {high})"
