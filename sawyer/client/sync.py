"""`Client`: `AsyncClient` for code that waits. One background thread a client runs its event loop, and every call goes
there (waiting.py): there is one client, not two. Owns no message."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, cast

from sawyer.bus.protocol import Bus
from sawyer.client.aio import DEFAULT_TIMEOUT_S, AsyncClient
from sawyer.client.asked import Conversation, messages_of
from sawyer.client.offer import OfferedModel
from sawyer.client.stream import Generation, TextStream, TokenLogprob
from sawyer.client.waiting import LoopThread
from sawyer.clock import Clock
from sawyer.contexts import NatsTarget
from sawyer.errors import Cancelled, UsageError
from sawyer.identity.keys import Key
from sawyer.ids import RequestId
from sawyer.schemas.messages import (
    Accepted,
    AccountReply,
    BalanceReply,
    EntryRef,
    NetworkReply,
    RouterReply,
    Trace,
    Usage,
)

OptionsP = ParamSpec("OptionsP")
ReturnT = TypeVar("ReturnT")


def _with_options_of(
    asked: Callable[Concatenate[AsyncClient, OptionsP], TextStream],
) -> Callable[[Callable[..., ReturnT]], Callable[Concatenate[Client, OptionsP], ReturnT]]:
    """The method takes exactly what `asked` takes: the options are named once, in aio.py."""

    def named(method: Callable[..., ReturnT]) -> Callable[Concatenate[Client, OptionsP], ReturnT]:
        gives = inspect.signature(method).return_annotation
        method.__signature__ = inspect.signature(asked).replace(return_annotation=gives)  # type: ignore[attr-defined]
        return method

    return named


class Client:
    """An account's door to a network, for code that waits for its answers.

        with Client("nats://127.0.0.1:4222", account="alice", key=Path("alice.nk")) as client:
            answer = client.generate("It was a", model="austen-8m")
            print(answer.text, answer.usage.billed_tokens)

    The arguments are those of AsyncClient. Several threads may use one client, and it works where an event loop runs
    already (notebooks). A KeyboardInterrupt ends a wait at once and cancels what was waited for. Not across a fork.
    """

    def __init__(
        self,
        url: str | NatsTarget | None = None,
        *,
        account: str | None = None,
        key: Key | Path | None = None,
        context: str = "",
        creds: Path | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        trunk: Literal["hosted", "local"] | Path = "hosted",
        bus: Bus | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Connects nowhere yet. Raises UsageError for a name that is none, or a key file that is not there."""
        self._client = AsyncClient(
            url, account=account, key=key, context=context, creds=creds, timeout_s=timeout_s, trunk=trunk, bus=bus,
            clock=clock,
        )  # fmt: skip
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._closed = False

    def __enter__(self) -> Client:
        self.connect()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def connect(self) -> None:
        """Raises what AsyncClient.connect does; then the client is closed."""
        with self._lock:
            if self._thread is None and not self._closed:
                self._thread = LoopThread()
        try:
            self._wait(self._client.connect)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Idempotent. What other threads still wait for is cancelled."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._closed = True
        if thread is None:
            return
        try:
            thread.call(self._client.close)
        finally:
            thread.stop()

    def network(self, *, timeout_s: float | None = None) -> NetworkReply:
        """The network's models, prices and ledger key, as of now."""
        return self._wait(functools.partial(self._client.network, timeout_s=timeout_s))

    def models(self, *, timeout_s: float | None = None) -> tuple[OfferedModel, ...]:
        """The models that the network publishes now, by name, with shape and price."""
        return self._wait(functools.partial(self._client.models, timeout_s=timeout_s))

    def routers(self) -> tuple[RouterReply, ...]:
        """What the routers serve and see now, by name. Raises NobodyServes if there is none, NoAnswer."""
        return self._wait(self._client.routers)

    def open_account(self, *, timeout_s: float | None = None) -> EntryRef:
        """See AsyncClient.open_account."""
        return self._wait(functools.partial(self._client.open_account, timeout_s=timeout_s))

    def account(self, *, timeout_s: float | None = None) -> AccountReply:
        """See AsyncClient.account."""
        return self._wait(functools.partial(self._client.account, timeout_s=timeout_s))

    def balance(self, *, timeout_s: float | None = None) -> BalanceReply:
        """Raises UnknownAccount before it was opened."""
        return self._wait(functools.partial(self._client.balance, timeout_s=timeout_s))

    @_with_options_of(AsyncClient.stream)
    def generate(self, *prompt: Any, **options: Any) -> Generation:
        """The whole answer. Options and errors are those of AsyncClient.stream and AsyncClient.generate."""
        with self.stream(*prompt, **options) as stream:
            return stream.result()

    def chat(self, messages: str | Conversation, *, model: str, **options: Any) -> Generation:
        """The whole answer to a conversation; a text alone is its one user turn. Options are those of
        AsyncClient.stream, errors those of AsyncClient.chat."""
        return self.generate(messages_of(messages), model=model, **options)

    @_with_options_of(AsyncClient.stream)
    def stream(self, *prompt: Any, **options: Any) -> BlockingTextStream:
        """A stream to use as `with client.stream(...) as stream: for piece in stream: ...`. Options are those of
        AsyncClient.stream."""
        return BlockingTextStream(self, self._do(functools.partial(self._client.stream, *prompt, **options)))

    def _wait(self, function: Callable[[], Awaitable[ReturnT]]) -> ReturnT:
        return cast(ReturnT, self._do(function))

    def _do(self, function: Callable[[], Any]) -> Any:
        """What this function, or the coroutine it makes, returns on the client's own event loop. An interrupted wait is
        cancelled there. Raises UsageError before `connect` and after `close`, Cancelled if another thread closes the
        client meanwhile."""
        thread = self._thread
        if thread is None:
            raise _closed() if self._closed else _not_connected()
        return thread.call(function)


class BlockingTextStream:
    """Iterate over it for pieces of text; afterwards `.usage`, `.finish`, `.ids`, `.logprobs`. Leaving the `with` block
    early cancels: what was delivered is billed, and nothing more. An interrupted wait loses nothing: iterate on."""

    def __init__(self, client: Client, stream: TextStream) -> None:
        self._client = client
        self._stream = stream
        self._pieces: AsyncIterator[str] | None = None
        self._turn = asyncio.Lock()
        self._read, self._last = 0, ""
        self._given = 0

    def __enter__(self) -> BlockingTextStream:
        try:
            self._client._wait(self._stream.__aenter__)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._leave()

    def __iter__(self) -> Iterator[str]:
        while (piece := self._client._wait(self._next)) is not None:
            self._given += 1
            yield piece

    def cancel(self) -> None:
        """Stop after the token that is under way. Iterating on gives the rest and the bill."""
        self._client._wait(self._stream.cancel)

    def result(self) -> Generation:
        """Read to the end. Raises the typed error that ended it."""
        return self._client._wait(self._rest)

    @property
    def request(self) -> RequestId:
        return self._stream.request

    @property
    def accepted(self) -> Accepted | None:
        return self._stream.accepted

    @property
    def traces(self) -> list[Trace]:
        return self._stream.traces

    @property
    def ids(self) -> list[int]:
        return self._stream.ids

    @property
    def logprobs(self) -> list[TokenLogprob]:
        return self._stream.logprobs

    @property
    def usage(self) -> Usage | None:
        return self._stream.usage

    @property
    def finish(self) -> Literal["stop", "length", "cancelled"] | None:
        return self._stream.finish

    @property
    def repeated(self) -> bool:
        return self._stream.repeated

    async def _next(self) -> str | None:
        """The next piece. A wait that was interrupted may have read one that nobody was given: then this is the one."""
        async with self._turn:
            if self._read > self._given:
                return self._last
            if self._pieces is None:
                self._pieces = aiter(self._stream)
            try:
                piece = await anext(self._pieces, None)
            except BaseException:
                self._pieces = None  # it ended; the stream itself knows how far it was read
                raise
            if piece is not None:
                self._read, self._last = self._read + 1, piece
            return piece

    async def _rest(self) -> Generation:
        async with self._turn:
            late = self._last if self._read > self._given else ""
            answer = await self._stream.result()
            return replace(answer, text=late + answer.text)

    def _leave(self) -> None:
        with contextlib.suppress(UsageError, Cancelled):  # the client was closed first: nobody can be told
            self._client._wait(self._end)

    async def _end(self) -> None:
        await self._stream.__aexit__(None, None, None)
        if inspect.isasyncgen(self._pieces) and not self._turn.locked():
            await self._pieces.aclose()


def _closed() -> UsageError:
    return UsageError("the client is closed", hint="Make a new one: `with Client(...) as client:`.")


def _not_connected() -> UsageError:
    return UsageError("the client is not connected", hint="Use it as `with Client(...) as client:`.")
