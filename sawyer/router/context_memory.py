"""Memory for what running requests keep of the tokens before (keys and values): a limit, those who wait, and an orderly
refusal. Knows no cache: callers say how many bytes one may take."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from sawyer.errors import Busy, RefusedError

PATIENCE_S: Final = 20.0
"""So long a request waits for others to end. It holds no tokens meanwhile."""


class ContextMemory:
    """For one event loop. Who came first gets room first: a big request is not passed by small ones for ever."""

    def __init__(self, limit_bytes: int, *, patience_s: float = PATIENCE_S) -> None:
        self.limit_bytes = limit_bytes
        self.taken_bytes = 0
        self._patience_s = patience_s
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that wait for room."""
        return len(self._waiting)

    @asynccontextmanager
    async def room(self, size_bytes: int) -> AsyncIterator[None]:
        """Room for this many bytes while inside. Raises RefusedError for more than there is at all, Busy if there was
        none for PATIENCE_S."""
        if size_bytes > self.limit_bytes:
            raise RefusedError(
                f"this request may need {_mb(size_bytes)} for its context, and this router has {_mb(self.limit_bytes)}",
                hint="Ask for fewer tokens, or say less. The router's operator can give it more: --context-memory.",
            )
        await self._enter(size_bytes)
        try:
            yield
        finally:
            self.taken_bytes -= size_bytes
            self._let_in()

    async def _enter(self, size_bytes: int) -> None:
        entry = size_bytes, asyncio.get_running_loop().create_future()
        self._waiting.append(entry)
        self._let_in()
        try:
            async with asyncio.timeout(self._patience_s):
                await entry[1]
        except BaseException as error:
            if entry in self._waiting:
                self._waiting.remove(entry)
            elif entry[1].done() and not entry[1].cancelled():  # let in at the same moment
                self.taken_bytes -= size_bytes
            self._let_in()
            if isinstance(error, TimeoutError):
                raise Busy(
                    f"other requests take all {_mb(self.limit_bytes)} that this router has for contexts",
                    details={"retry_after_ms": str(int(self._patience_s * 1000))},
                ) from error
            raise

    def _let_in(self) -> None:
        while self._waiting and self.taken_bytes + self._waiting[0][0] <= self.limit_bytes:
            size_bytes, entered = self._waiting.popleft()
            if not entered.done():
                self.taken_bytes += size_bytes
                entered.set_result(None)


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
