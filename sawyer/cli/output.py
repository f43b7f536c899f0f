"""The one way to print: data on stdout, talk on stderr; a rich table on a terminal, plain aligned text in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

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
    """One line of talk."""
    stderr().print(text, markup=False)


def heading(text: str) -> None:
    console = stdout()
    console.print(f"\n[bold]{escape(text)}[/bold]" if console.is_terminal else f"\n{text}")


def line(text: str = "") -> None:
    """One line of data."""
    stdout().print(text, markup=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, numeric: Sequence[str] = ()) -> None:
    """Rows under columns. `numeric` names the columns that align right."""
    console = stdout()
    if console.is_terminal:
        console.print(_rich_table(columns, rows, numeric))
        return
    for text in _plain_table(columns, rows, numeric):
        sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_error(error: SawyerError) -> None:
    """What failed, and what to do next."""
    console = stderr()
    console.print(f"[red bold]error:[/] {escape(error.message)}")
    if error.hint:
        console.print(f"[dim]hint:[/]  {escape(error.hint)}")


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[object]], numeric: Sequence[str]) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, justify="right" if column in numeric else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(escape(str(cell)) for cell in row))
    return made


def _plain_table(columns: Sequence[str], rows: Sequence[Sequence[object]], numeric: Sequence[str]) -> list[str]:
    cells = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return [
        "  ".join(
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in cells
    ]
