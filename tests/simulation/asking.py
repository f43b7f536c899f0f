"""What clients do: ask, read, leave, cancel, ask once more; and what they have seen when it is over."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import Final

from simulation.plan import Asking
from simulation.tiny import MODEL

from sawyer.client.aio import AsyncClient
from sawyer.client.stream import TextStream
from sawyer.errors import SawyerError
from sawyer.ids import RequestId
from sawyer.schemas.generation import GenerateParams
from sawyer.schemas.messages import Trace, Usage

TIMEOUT_S: Final = 10.0
"""What clients wait for at most before they ask again."""
BOUND_S: Final = 240.0
"""Any request has ended by then: all patience there is, added up."""


@dataclass
class Outcome:
    """One request as its client saw it. `once_more`: it was asked before, under the same id. `error` is what ended it,
    if that was no bill; `left` that the client itself ended it; `hung` that it did not end within BOUND_S."""

    request: RequestId
    asking: Asking
    once_more: bool = False
    params: GenerateParams | None = None
    pieces: list[str] = field(default_factory=list)
    ids: tuple[int, ...] = ()
    usage: Usage | None = None
    finish: str = ""
    error: BaseException | None = None
    left: bool = False
    hung: bool = False
    repeated: bool = False
    traces: tuple[Trace, ...] = ()
    took_s: float = 0.0

    def told(self) -> str:
        """One line for the transcript."""
        error = self.error.code if isinstance(self.error, SawyerError) else type(self.error).__name__
        how = "hung" if self.hung else "left" if self.left and self.usage is None else error
        how = f"{self.finish} entry {self.usage.entry}" if self.usage is not None else how
        return f"{self.asking.account} {self.request[:8]} {list(self.ids)} {how}"


async def ask(client: AsyncClient, asking: Asking, number: int) -> list[Outcome]:
    """The outcome of a request, and of asking for it once more."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(asking.at_s)
    request = RequestId(hashlib.md5(f"{number} {asking}".encode()).hexdigest())
    found = []
    for once_more in (False, True)[: 1 + asking.once_more]:
        outcome, started_s = Outcome(request, asking, once_more), loop.time()
        task = asyncio.create_task(_read(client, outcome), name=f"request {request}")
        if asking.ending == "is_cancelled":
            loop.call_later(0.02 * asking.after**3, task.cancel)
        await asyncio.wait({task}, timeout=BOUND_S)
        outcome.hung = not task.done()
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            outcome.error = outcome.error or task.exception()
        outcome.left = outcome.left or task.cancelled()
        outcome.took_s = loop.time() - started_s
        found.append(outcome)
    return found


async def _read(client: AsyncClient, outcome: Outcome) -> None:
    try:
        async with _stream(client, outcome) as stream:
            await _take(stream, outcome)
    except SawyerError as error:
        outcome.error = error


def _stream(client: AsyncClient, outcome: Outcome) -> TextStream:
    asking = outcome.asking
    stream = client.stream(
        asking.params.prompt or "",
        model=MODEL,
        max_tokens=asking.params.max_tokens,
        temperature=asking.params.temperature_milli / 1000,
        seed=asking.params.seed,
        stop=asking.params.stop,
        request_id=outcome.request,
        trace=asking.trace,
        speculate=asking.speculate,
    )
    outcome.params = stream._request.params
    return stream


async def _take(stream: TextStream, outcome: Outcome) -> None:
    asking = outcome.asking
    try:
        if asking.ending in ("leaves", "cancels") and not asking.after:
            await _end(stream, outcome)
        async for piece in stream:
            outcome.pieces.append(piece)
            if asking.ending in ("leaves", "cancels") and len(outcome.pieces) == asking.after:
                await _end(stream, outcome)
                if outcome.left:
                    return
    finally:
        outcome.ids, outcome.usage, outcome.finish = tuple(stream.ids), stream.usage, stream.finish or ""
        outcome.repeated, outcome.traces = stream.repeated, tuple(stream.traces)


async def _end(stream: TextStream, outcome: Outcome) -> None:
    """Leave it, or cancel it and read on."""
    if outcome.asking.ending == "leaves":
        outcome.left = True
    else:
        await stream.cancel()
