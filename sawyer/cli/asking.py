"""One question of a chat on its way through the network, and what Ctrl-C means meanwhile.

The main thread waits; the event loop runs in another one, so that the connection lives while a person thinks. A signal
handler that does not raise at the first Ctrl-C makes sure that it stops the answer and not the program.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from sawyer.cli.answer import tell
from sawyer.cli.session import Consumer
from sawyer.client.stream import TextStream
from sawyer.client.waiting import LoopThread
from sawyer.errors import Cancelled, SawyerError, UnreachableError
from sawyer.schemas.generation import ChatMessage
from sawyer.schemas.messages import Usage


@dataclass(frozen=True)
class Answer:
    """What was answered, what that cost, and whether it was `cut` at the most tokens that it may have."""

    text: str
    cut: bool
    usage: Usage


class Asking:
    """Asks once, or again with a shorter prompt; `stopped` once Ctrl-C was pressed."""

    def __init__(self, loop: LoopThread, me: Consumer, show: Callable[[str], None]) -> None:
        self._loop = loop
        self._me = me
        self._show = show
        self._presses = 0
        self._stream: TextStream | None = None

    @property
    def stopped(self) -> bool:
        return self._presses > 0

    def ask(self, prompt: str | tuple[ChatMessage, ...], model: str, options: dict[str, Any]) -> Answer:
        """Returns with the bill. Raises Cancelled if it was stopped before it began, and what the request met."""
        try:
            answer: Answer = self._loop.call(lambda: self._ask(prompt, model, options))
            return answer
        except KeyboardInterrupt as error:
            raise SawyerError(
                "gave up waiting for the bill", hint="What was delivered is billed all the same: /balance shows it."
            ) from error

    def press(self) -> None:
        """Ctrl-C: the first asks the network to stop, the second ends the wait. Raises KeyboardInterrupt then."""
        self._presses += 1
        if self._presses > 1:
            raise KeyboardInterrupt
        self._loop.soon(self._stop)

    async def _ask(self, prompt: str | tuple[ChatMessage, ...], model: str, options: dict[str, Any]) -> Answer:
        await self._me.refresh()  # prices may have changed since the last order
        stream = self._me.client.stream(prompt, model=model, **options)
        if self.stopped:
            raise Cancelled("the answer was stopped before it began")
        self._stream = stream
        text = await tell(stream, self._show)
        assert stream.usage is not None, "the stream ends with the bill, or raises"
        return Answer(text, stream.finish == "length", stream.usage)

    async def _stop(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(UnreachableError):  # then nobody can be told, and the stream will say so
                await self._stream.cancel()


class CtrlC:
    """What Ctrl-C means now: KeyboardInterrupt, or the end of the answer that is under way."""

    def __init__(self) -> None:
        self._asking: Asking | None = None

    @contextlib.contextmanager
    def stops(self, asking: Asking) -> Iterator[None]:
        """Until this ends, Ctrl-C stops this answer; only the second one raises."""
        self._asking = asking
        try:
            yield
        finally:
            self._asking = None

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listen; the handler that was there before comes back at the end."""
        before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._asking is None:
            raise KeyboardInterrupt
        self._asking.press()
