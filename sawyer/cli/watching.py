"""A page on the terminal that is drawn anew while something runs, with notices above it; in a pipe only the notices.
Nobody who reads no more can end what runs: then only the log hears of it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from sawyer.cli.output import plain_table, stdout
from sawyer.cli.status_view import Section
from sawyer.clock import SystemClock, iso

UP_FOOT: Final = "Ctrl-C ends it in order; in another terminal: sawyer generate, chat, status, logs"

log = logging.getLogger(__name__)


class Screen:
    """Use it as a context manager. On a terminal it owns the lower part of the screen. What is told is logged, too."""

    def __init__(self, foot: str = UP_FOOT) -> None:
        self._foot = Text(f"\n{foot}", style="dim")
        self._console = stdout()
        self._clock = SystemClock()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._gone = False

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._quietly(self._live.start)
        return self

    def __exit__(self, *_: object) -> None:
        self._quietly(self._live.stop)

    def waiting(self, text: str) -> None:
        """Something that takes a while has begun."""
        self._draw(Spinner("dots", Text(text)))

    def ready(self, text: str) -> None:
        """A line that stays."""
        log.warning(text)
        end = "\n\n" if self._console.is_terminal else "\n"
        self._quietly(lambda: self._console.print(text, markup=False, end=end))

    def notice(self, text: str) -> None:
        """A line with the time, that stays."""
        log.warning(text)
        self._quietly(lambda: self._console.print(f"{iso(self._clock.now_ms())}  {text}", markup=False))

    def show(self, page: Sequence[Section]) -> None:
        """The page as of now."""
        self._draw(Group(*[part for section in page for part in _rendered(section)], self._foot))

    def _draw(self, what: RenderableType) -> None:
        if self._console.is_terminal:
            self._quietly(lambda: self._live.update(what, refresh=True))

    def _quietly(self, show: Callable[[], object]) -> None:
        if self._gone:
            return
        try:
            show()
        except (OSError, SystemExit, ValueError):  # the terminal or the pipe is closed; rich exits on a broken pipe
            self._gone = True
            with contextlib.suppress(Exception):
                self._console.file.close()


def _rendered(section: Section) -> list[RenderableType]:
    """An empty line and a bold title, then lines and the table, cut at the right edge: what comes first stays whole."""
    parts: list[RenderableType] = [Text(f"\n{section.title}", style="bold")] if section.title else []
    lines = list(section.lines)
    if section.columns:
        lines += plain_table(section.columns, section.rows, section.numeric)
    return parts + [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]
