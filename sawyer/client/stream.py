"""A running generation, seen by the client: messages in, text out, the bill at the end."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal

from sawyer.bus.calls import read
from sawyer.bus.protocol import Bus, Message, Subscription
from sawyer.errors import NoAnswer, NobodyServes, ServerUnreachable, UnreachableError
from sawyer.ids import ModelId, RequestId
from sawyer.schemas import subjects
from sawyer.schemas.messages import Accepted, Delta, Done, Failed, InferMessage, InferRequest, Logprob, Trace, Usage

RESENDS: Final = 2
SILENCE_S: Final = 5.0
"""Once work has begun, this long a silence makes the client ask again: a router that lives goes on telling, and one
that was started anew begins at the start. Before that a request may wait in a queue, and is not added to it again."""
FIRST_AWAY_PAUSE_S: Final = 0.05
AWAY_PAUSE_S: Final = 1.0
"""Where nobody listens, it is asked again after a pause that doubles up to this: after a restart of the NATS server all
come back one after another, within a moment, and a router that was started anew takes its time."""
FIRST_HUSH_S: Final = 0.5
"""After the connection was lost, a silence this long means that what was told meanwhile is lost, too: it is asked
again, then after twice as long, and so on up to the usual patience."""
INBOX_LIMIT: Final = 65_536


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was: the natural logarithm of its probability, of the model's own distribution before penalty,
    temperature and limits. `top`: the same of the likeliest tokens, likeliest first: (token, logprob)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, told: Logprob) -> TokenLogprob:
        top = tuple((token, -surprise / 1_000_000) for token, surprise in told.top)
        return cls(told.token, -told.surprise_micro / 1_000_000, top)


@dataclass(frozen=True)
class Generation:
    """A whole answer. `ids` are all tokens that were billed, also those that spell the stop string `text` ends before.
    `repeated`: this request id was completed before; nothing was billed again. `logprobs`: one an id, if asked for."""

    request: RequestId
    text: str
    ids: tuple[int, ...]
    finish: Literal["stop", "length", "cancelled"]
    usage: Usage
    repeated: bool
    logprobs: tuple[TokenLogprob, ...] = ()


class _Gap(NoAnswer):
    """A message of the stream did not come."""


class _Unsettled(NoAnswer):
    """Silence, and the connection was lost a moment ago."""


class TextStream(ABC):
    """Iterate over it for pieces of text; afterwards `.usage`, `.finish`, `.ids`, `.logprobs`. Leaving the `async with`
    block early cancels: what was delivered is billed, and nothing more."""

    def __init__(self, bus: Bus, model: ModelId, request: InferRequest, timeout_s: float) -> None:
        self._bus = bus
        self._model = model
        self._request = request
        self._timeout_s = timeout_s
        self._ended = False
        self.request = RequestId(request.order.body.request)
        self.accepted: Accepted | None = None
        self.traces: list[Trace] = []
        self.ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.usage: Usage | None = None
        self.finish: Literal["stop", "length", "cancelled"] | None = None
        self.repeated = False
        self.on_trace: Callable[[Trace], None] = self.traces.append

    @abstractmethod
    async def __aenter__(self) -> TextStream:
        """Ask."""

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Cancel what has not ended."""

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[str]:
        """Pieces of text, as they come. After an interruption iterate on: nothing is lost. Raises the typed error that
        ended it."""

    @abstractmethod
    async def cancel(self) -> None:
        """Stop after the token that is under way. Iterating on gives the rest and the bill."""

    async def result(self) -> Generation:
        """Read to the end. Raises the typed error that ended it."""
        text = "".join([piece async for piece in self])
        assert self.usage is not None
        assert self.finish is not None
        return Generation(
            self.request, text, tuple(self.ids), self.finish, self.usage, self.repeated, tuple(self.logprobs)
        )


class HostedStream(TextStream):
    """The router holds the trunk and tells the text.

    Messages are numbered. A gap or a silence longer than `timeout_s` makes the client send the same request again
    (RESENDS times), which the router answers from the start; what was read already is not given twice.
    """

    def __init__(self, bus: Bus, model: ModelId, request: InferRequest, timeout_s: float) -> None:
        super().__init__(bus, model, request, timeout_s)
        self._inbox: asyncio.Queue[Message] = asyncio.Queue(INBOX_LIMIT)
        self._subscription: Subscription | None = None
        self._next_n = 0

    async def __aenter__(self) -> HostedStream:
        await self._send()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if not self._ended:
            with contextlib.suppress(UnreachableError):  # then nobody can be told
                await self.cancel()
        await self._unsubscribe()

    async def cancel(self) -> None:
        await self._bus.publish(subjects.cancel(self.request), b"")

    async def __aiter__(self) -> AsyncIterator[str]:
        resends, pause_s, hush_s = 0, FIRST_AWAY_PAUSE_S, FIRST_HUSH_S
        while self.usage is None:
            try:
                event = await self._next(hush_s)
            except _Unsettled:
                hush_s *= 2
                await self._send()
                continue
            except (NoAnswer, NobodyServes) as error:
                away = isinstance(error, NobodyServes)
                most = RESENDS if isinstance(error, _Gap) else self._most_resends
                if resends >= most or (away and self.accepted is None and not self._bus.settling):
                    raise
                if away:
                    await asyncio.sleep(min(pause_s, self._patience_s))
                resends += pause_s >= AWAY_PAUSE_S or not away
                pause_s = min(AWAY_PAUSE_S, 2 * pause_s) if away else pause_s
                await self._send()
                continue
            pause_s, hush_s = FIRST_AWAY_PAUSE_S, FIRST_HUSH_S
            if isinstance(event, Delta):
                self.ids.extend(event.ids)
                self.logprobs.extend(TokenLogprob.of(each) for each in event.logprobs)
                if event.text:
                    yield event.text
            else:
                self._note(event)

    @property
    def _patience_s(self) -> float:
        """The longest silence before the request is sent again."""
        return self._timeout_s if self.accepted is None else min(self._timeout_s, SILENCE_S)

    @property
    def _most_resends(self) -> int:
        """So many that the whole patience is the same, however often we ask."""
        return int((RESENDS + 1) * self._timeout_s / self._patience_s) - 1 if self._patience_s else RESENDS

    def _note(self, event: Accepted | Trace | Done | Failed) -> None:
        match event:
            case Accepted():
                self.accepted, self.repeated = event, event.repeated
            case Trace():
                self.on_trace(event)
            case Done():
                self._ended = True
                self.finish, self.usage = event.finish, event.usage
            case Failed():
                self._ended = True
                raise event.error.to_error()

    async def _next(self, hush_s: float) -> Accepted | Delta | Trace | Done | Failed:
        """The next event in order. Raises NoAnswer on silence or a gap, NobodyServes."""
        while True:
            message = await self._hear(hush_s)
            if message.no_responders:
                raise NobodyServes(
                    f"no router serves {self._model}", hint="Check the model's name, or start a router for it."
                )
            event = read(InferMessage, message.data).e
            if event.n < self._next_n and not isinstance(event, Failed):
                continue
            if event.n > self._next_n:
                raise _Gap(f"a message of request {self.request} was lost")
            self._next_n = event.n + 1
            return event

    async def _hear(self, hush_s: float) -> Message:
        """The next message. Raises NoAnswer after a silence as long as our patience, and after `hush_s` of it if the
        connection was lost a moment ago."""
        waited_s = 0.0
        while waited_s < self._patience_s:
            turn_s = min(hush_s, self._patience_s - waited_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(turn_s):
                    return await self._inbox.get()
            waited_s += turn_s
            if self._bus.settling and waited_s < self._patience_s:
                raise _Unsettled(f"the connection was lost during request {self.request}")
        raise NoAnswer(f"nothing from the router for {self._patience_s:g} s (request {self.request})")

    async def _send(self) -> None:
        """Ask, on a fresh inbox: answers to an earlier attempt no longer count."""
        await self._unsubscribe()
        inbox: asyncio.Queue[Message] = asyncio.Queue(INBOX_LIMIT)
        self._inbox = inbox
        subject = self._bus.new_inbox()

        def take(message: Message) -> None:
            if not inbox.full():
                inbox.put_nowait(message)

        self._subscription = await self._bus.subscribe(subject, take)
        await self._bus.publish(subjects.infer(self._model), self._request.canonical(), subject)

    async def _unsubscribe(self) -> None:
        if self._subscription is not None:
            with contextlib.suppress(ServerUnreachable):
                await self._subscription.unsubscribe()
            self._subscription = None
