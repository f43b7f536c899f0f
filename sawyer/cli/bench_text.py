"""What the benchmarks ask and print alike: how many rounds, what is measured now, a number of several rounds, goals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import typer

from sawyer.cli.output import heading, stderr, table

if TYPE_CHECKING:
    from sawyer.bench.result import Goal
    from sawyer.bench.timing import Spread

MAX_ROUNDS: Final = 100


def rounds_option(usual: int, quick: int) -> Any:
    """`--rounds`, of a benchmark that takes so many by itself."""
    return typer.Option("--rounds", min=1, max=MAX_ROUNDS, help="Interleaved rounds.",
                        show_default=f"{usual}; quick: {quick}")  # fmt: skip


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


def rounds_text(rounds: int) -> str:
    """What the numbers of a table are."""
    return f"median of {rounds} rounds (lowest to highest)" if rounds > 1 else "one round"


def show_goals(goals: Iterable[Goal], title: str = "Goals") -> None:
    """What was wanted, and what came of it."""
    heading(title)
    rows = [[each.name, f"{each.got:,.4g}", f"{each.wanted:,.4g}", "met" if each.met else "missed"] for each in goals]
    table(["goal", "got", "wanted", ""], rows, numeric=["got", "wanted"])
