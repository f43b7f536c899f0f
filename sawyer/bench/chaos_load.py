"""The load of a chaos run: streams that ask one thing after another through the real client, and note what comes when.
Owns no judgement: chaos_result.py has that."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final

from sawyer.client.aio import AsyncClient
from sawyer.errors import SawyerError
from sawyer.identity.keys import Key
from sawyer.schemas.messages import Usage

AFTER_FAILURE_S: Final = 0.2
"""A stream whose request failed waits so long: or a network that is down would be asked thousands of times."""
UNFINISHED: Final = "unfinished"


@dataclass(frozen=True, slots=True)
class Known:
    """A prompt, and the ids that one machine alone answers it with."""

    prompt: str
    ids: tuple[int, ...]


@dataclass
class Asked:
    """One request as its client saw it. Times are of perf_counter, in seconds; `tokens_s` when each token came;
    `error` is the code of what ended it, "" if nothing did."""

    known: Known
    asked_s: float
    request: str = ""
    tokens_s: list[float] = field(default_factory=list)
    ended_s: float = 0.0
    ids: tuple[int, ...] = ()
    usage: Usage | None = None
    error: str = UNFINISHED
    why: str = "it had no end"

    @property
    def changed(self) -> bool:
        """Whether it was told another token than the one that is known."""
        told = self.ids if self.error else (*self.ids, None)
        return told != (*self.known.ids, None)[: len(told)]


@dataclass(frozen=True)
class Load:
    """What is asked, of whom, by how many streams at once."""

    url: str
    account: str
    key: Key
    model: str
    known: tuple[Known, ...]
    streams: int
    tokens: int

    async def run(self, stopping: asyncio.Event, moved: asyncio.Event, into: list[Asked]) -> None:
        """Returns when `stopping` is set and every stream has ended what it had begun. Requests are noted when they are
        made, so that one which never ends is there, too. `moved` is set at every token.
        Raises what a stream met before its first request."""
        try:
            async with asyncio.TaskGroup() as group:
                for first in range(self.streams):
                    group.create_task(self._stream(first, stopping, moved, into))
        except* SawyerError as errors:
            raise errors.exceptions[0] from errors

    async def _stream(self, first: int, stopping: asyncio.Event, moved: asyncio.Event, into: list[Asked]) -> None:
        async with AsyncClient(self.url, account=self.account, key=self.key) as client:
            number = first
            while not stopping.is_set():
                asked = Asked(self.known[number % len(self.known)], perf_counter())
                into.append(asked)
                await self._ask(client, moved, asked)
                number += 1
                if asked.error:
                    await asyncio.sleep(AFTER_FAILURE_S)

    async def _ask(self, client: AsyncClient, moved: asyncio.Event, asked: Asked) -> None:
        stream = client.stream(asked.known.prompt, model=self.model, max_tokens=self.tokens)
        asked.request = stream.request
        try:
            async with stream:
                async for _ in stream:
                    asked.tokens_s.append(perf_counter())
                    moved.set()
            asked.usage, asked.error, asked.why = stream.usage, "", ""
        except SawyerError as error:
            asked.error, asked.why = error.code, error.message
        finally:
            asked.ended_s, asked.ids = perf_counter(), tuple(stream.ids)
