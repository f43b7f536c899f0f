"""The one way to print: data on stdout, talk on stderr; a rich table on a terminal, plain aligned text in a pipe."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sawyer.errors import SawyerError


def stdout() -> Console:
    """A console for data. Made anew each time, so that tests may swap sys.stdout."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=True)


def stderr() -> Console:
    """A console for talk."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def emit_json(value: object) -> None:
    """One JSON document on stdout, ASCII-safe, keys in the given order."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """One line of talk; a terminal gets it wrapped between words."""
    console = stderr()
    console.print(printable(text), markup=False, soft_wrap=not console.is_terminal)


def printable(text: str) -> str:
    """Without what could steer a terminal: much of what we print was written by others."""
    return "".join(each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in text)


def heading(text: str) -> None:
    """A line over a table, with space above it."""
    console = stdout()
    if console.is_terminal:
        console.print(f"\n[bold]{escape(printable(text))}[/bold]")
    else:
        console.print(f"\n{text}", markup=False)


def line(text: str = "") -> None:
    """One line of data."""
    console = stdout()
    console.print(printable(text) if console.is_terminal else text, markup=False)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    numeric: Sequence[str] = (),
    wrap: Sequence[str] = (),
    colours: Mapping[str, str] | None = None,
) -> None:
    """Rows under columns. `numeric` names the columns that align right; `wrap` those that a terminal wraps between
    words; `colours` gives cells of the first column a colour there."""
    console = stdout()
    if console.is_terminal:
        console.print(rich_table(columns, rows, numeric, wrap, colours), soft_wrap=not wrap)
        return
    for text in plain_table(columns, rows, numeric):
        sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner on a terminal's stderr while something takes a while."""
    console = stderr()
    if console.is_terminal:
        with console.status(escape(text)):
            yield
    else:
        yield


def print_error(error: SawyerError) -> None:
    """What failed, and what to do next; a terminal gets both wrapped between words."""
    console = stderr()
    parts = [("[red bold]error:[/]", error.message), ("[dim]hint:[/] ", error.hint)]
    told = [(label, escape(printable(text))) for label, text in parts if text]
    if console.is_terminal:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")  # a path must stay whole
        for label, text in told:
            grid.add_row(label, text)
        console.print(grid, soft_wrap=False)
        return
    for label, text in told:
        console.print(f"{label} {text}")


def rich_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    numeric: Sequence[str],
    wrap: Sequence[str] = (),
    colours: Mapping[str, str] | None = None,
) -> Table:
    """Rows under columns, for a terminal."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        folds = column in wrap
        justify: Literal["left", "right"] = "right" if column in numeric else "left"
        made.add_column(column, justify=justify, no_wrap=not folds, overflow="fold" if folds else "ellipsis")
    for row in rows:
        first, *others = (escape(printable(str(cell))) for cell in row)
        colour = (colours or {}).get(first)
        made.add_row(f"[{colour}]{first}[/]" if colour else first, *others)
    return made


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[object]], numeric: Sequence[str]) -> list[str]:
    """Rows under columns as lines of text."""
    cells = [list(columns), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return [
        "  ".join(
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in cells
    ]
