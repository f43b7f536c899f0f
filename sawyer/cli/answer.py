"""One answer on its way to a person: text as it comes, Ctrl-C that stops it on the network, and the bill."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from sawyer.cli.output import printable
from sawyer.cli.wrapping import WordWrap
from sawyer.errors import UnreachableError

if TYPE_CHECKING:
    from sawyer.client.stream import TextStream
    from sawyer.schemas.messages import Usage

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class TextOut:
    """Text on stdout as it comes, word for word. On a terminal lines are broken between words, what could steer it is
    left out, and the last line is ended."""

    def __init__(self) -> None:
        self._wrap = WordWrap(shutil.get_terminal_size().columns) if sys.stdout.isatty() else None
        self._last = "\n"

    @property
    def _terminal(self) -> bool:
        return self._wrap is not None

    def piece(self, text: str) -> None:
        """The next piece. Raises BrokenPipeError when nobody reads any more."""
        self._write(self._wrap.push(printable(text)) if self._wrap else text)

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self._last = text[-1]

    def end(self, *, newline: bool = False) -> None:
        """No more will come. `newline`: end the line in a pipe, too."""
        if self._wrap:
            self._write(self._wrap.flush())
        if self._last != "\n" and (newline or self._terminal):
            sys.stdout.write("\n")
            sys.stdout.flush()
        self._last = "\n"


class Interrupts:
    """How often this answer was interrupted: once asks the network to stop, twice waits for nothing more."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream
        self._task = asyncio.current_task()
        self._stopping: asyncio.Task[None] | None = None
        self.count = 0

    def signal(self) -> None:
        """One more Ctrl-C; on the event loop."""
        self.count += 1
        if self.count == 1:
            self._stopping = asyncio.get_running_loop().create_task(self._stop())
        elif self._task is not None:
            self._task.cancel()

    async def _stop(self) -> None:
        with contextlib.suppress(UnreachableError):  # then nobody can be told, and the stream will say so
            await self._stream.cancel()


@contextlib.contextmanager
def stoppable(stream: TextStream) -> Iterator[Interrupts]:
    """While this runs, SIGINT and SIGTERM stop the answer and not the program."""
    loop, interrupts = asyncio.get_running_loop(), Interrupts(stream)
    for each in STOP_SIGNALS:
        loop.add_signal_handler(each, interrupts.signal)
    try:
        yield interrupts
    finally:
        for each in STOP_SIGNALS:
            loop.remove_signal_handler(each)


async def tell(stream: TextStream, show: Callable[[str], None]) -> str:
    """Ask, and show each piece; the whole text once the bill is there. Raises the typed error that ended it."""
    pieces: list[str] = []
    async with stream:
        async for piece in stream:
            pieces.append(piece)
            show(piece)
    return "".join(pieces)


def tokens_per_second(usage: Usage) -> float:
    """Output tokens over the time from prefill to the last."""
    seconds = (usage.prefill_us + usage.decode_us) / 1e6
    return usage.output_tokens / seconds if seconds else 0.0


def bill_line(usage: Usage, left: int) -> str:
    """What an answer took and cost, in one line."""
    ahead = f" ({usage.accepted_tokens} guessed ahead)" if usage.accepted_tokens else ""
    return (
        f"{usage.input_tokens} in + {usage.output_tokens} out: {usage.billed_tokens:,} tokens billed, "
        f"{tokens_per_second(usage):.1f} tokens/s{ahead}, entry {usage.entry}, {left:,} left"
    )
