"""A page on the terminal that is drawn anew while something runs, with notices above it; in a pipe only the notices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from sawyer.cli.output import rich_table, stdout
from sawyer.cli.status_view import Section
from sawyer.clock import SystemClock, iso


class Screen:
    """Use it as a context manager. On a terminal it owns the lower part of the screen."""

    def __init__(self) -> None:
        self._console = stdout()
        self._clock = SystemClock()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def waiting(self, text: str) -> None:
        """Something that takes a while has begun."""
        self._draw(Spinner("dots", Text(text)))

    def ready(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text + ("\n" if self._console.is_terminal else ""), markup=False)

    def notice(self, text: str) -> None:
        """A line with the time, that stays."""
        self._console.print(f"{iso(self._clock.now_ms())}  {text}", markup=False)

    def show(self, page: Sequence[Section]) -> None:
        """The page as of now."""
        self._draw(Group(*[part for section in page for part in _rendered(section)], _FOOT))

    def _draw(self, what: RenderableType) -> None:
        if self._console.is_terminal:
            self._live.update(what, refresh=True)


_FOOT = Text("\nCtrl-C ends it in order; in another terminal: sawyer generate, chat, status, logs", style="dim")


def _rendered(section: Section) -> list[RenderableType]:
    """Only what matters at a glance: an empty line and a bold title, lines cut at the edge, the table."""
    parts: list[RenderableType] = [Text(f"\n{section.title}", style="bold")] if section.title else []
    parts += [Text(line, no_wrap=True, overflow="ellipsis") for line in section.lines]
    if section.columns:
        parts.append(rich_table(section.columns, section.rows, section.numeric))
    return parts
