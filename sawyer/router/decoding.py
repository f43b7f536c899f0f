"""Continuous batching: every sequence that waits for its next token takes part in the next pass through the model.

A pass costs messages and weights read once, however many rows it has. Sequences join and leave between tokens; nobody
waits for others longer than WINDOW_S, and then only for those that were in the last pass and are about to come again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sawyer.router.forward import Forward, Place
from sawyer.router.speculating import FEW, Pace

MOST_ROWS: Final = 64
"""Of one pass, not counting guesses."""
PASSES: Final = 1
"""So many passes run at once. A second one could attend while the first waits for nodes, and doubles the messages: on
two cores it cost a third more CPU a token."""
STALLED_S: Final = 1.0
"""A pass that takes so long keeps nobody else from starting one: some expert is late, and not everybody needs it."""
WINDOW_S: Final = 0.005
PROMPTS: Final = 2
"""So many prompts are read at once: reading one more keeps everybody who writes waiting."""

Logits = NDArray[np.float32]


class Row(NamedTuple):
    """`logits` [V] after one more token; `guess` is the next token of those that the rows behind this one were computed
    for, None behind the last. A row that follows a right guess is of use, and its place is to be taken."""

    place: Place
    logits: Logits
    guess: int | None = None


@dataclass(eq=False, slots=True)
class _Step:
    """Rows of one sequence: its next token's, and those of guesses what may come then."""

    places: Sequence[Place]
    tokens: Sequence[int]
    done: asyncio.Future[list[Row]]


class Decoding:
    """The sequences of one router. For one event loop."""

    def __init__(self, forward: Forward, *, passes: int = PASSES, most_rows: int = MOST_ROWS) -> None:
        self._forward = forward
        self._most_passes = passes
        self._most_rows = most_rows
        self._members: set[Place] = set()
        self._waiting: deque[_Step] = deque()
        self._due: set[Place] = set()
        """Members that were in a pass which ended, and have not come again."""
        self._passes: set[asyncio.Task[None]] = set()
        self._counted: set[asyncio.Task[None]] = set()
        """Those that are not stalled."""
        self._window: asyncio.TimerHandle | None = None
        self._prompts = asyncio.Semaphore(PROMPTS)
        self.pace = Pace()
        self.passes_run = 0

    @contextmanager
    def member(self, place: Place) -> Iterator[None]:
        """Between its first token and its last a sequence is counted with."""
        self._members.add(place)
        try:
            yield
        finally:
            self._members.discard(place)
            self._due.discard(place)
            self._start()

    async def prompt(self, place: Place, ids: Sequence[int]) -> Logits:
        """Logits [V] after a prompt. Raises ExpertUnavailable."""
        async with self._prompts:
            return await self._forward.prompt(place, ids)

    @property
    def waiting(self) -> int:
        """Sequences whose next token waits for a pass."""
        return len(self._waiting)

    @property
    def has_room(self) -> bool:
        """Whether so few sequences write that passes have room for guesses."""
        return len(self._members) <= FEW

    async def step(self, place: Place, token: int, drafts: Sequence[int] = ()) -> list[Row]:
        """A row after one more token of a member, and one after each of the drafts that may follow it, but for those
        that some expert was not there for. Raises ExpertUnavailable where the first is among these."""
        places = [place, *(place.trial(ahead) for ahead in range(1, len(drafts) + 1))]
        step = _Step(places, (token, *drafts), asyncio.get_running_loop().create_future())
        self._due.discard(place)
        self._waiting.append(step)
        self._start()
        return await step.done

    async def stop(self) -> None:
        """Whoever waits is cancelled."""
        if self._window is not None:
            self._window.cancel()
        for each in self._passes:
            each.cancel()
        await asyncio.gather(*self._passes, return_exceptions=True)

    def _start(self) -> None:
        """A pass, if nobody else is expected for it."""
        while self._waiting and len(self._counted) < self._most_passes:
            room = self._room()
            if self._due and len(self._waiting) < room:
                if self._window is None:
                    self._window = asyncio.get_running_loop().call_later(WINDOW_S, self._give_up_waiting)
                return
            steps = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
            running = asyncio.create_task(self._run(steps), name="a pass through the model")
            self._passes.add(running)
            self._counted.add(running)
            stalled = asyncio.get_running_loop().call_later(STALLED_S, self._discount, running)
            running.add_done_callback(partial(self._ended, stalled))
        if self._window is not None:
            self._window.cancel()
            self._window = None

    def _room(self) -> int:
        """How many rows the next pass takes: an equal part of all sequences, so that passes stay as long as each
        other."""
        return min(self._most_rows, max(1, -(-len(self._members) // self._most_passes)))

    def _give_up_waiting(self) -> None:
        self._window = None
        self._due.clear()
        self._start()

    def _discount(self, running: asyncio.Task[None]) -> None:
        self._counted.discard(running)
        self._start()

    def _ended(self, stalled: asyncio.TimerHandle, running: asyncio.Task[None]) -> None:
        stalled.cancel()
        self._passes.discard(running)
        self._discount(running)

    async def _run(self, steps: Sequence[_Step]) -> None:
        places = [place for step in steps for place in step.places]
        self.passes_run += 1
        started_s = perf_counter()
        try:
            told: Sequence[Logits | BaseException] = await self._forward.tokens(
                places, [token for step in steps for token in step.tokens]
            )
        except asyncio.CancelledError:
            for step in steps:
                step.done.cancel()
            raise
        except Exception as error:  # noqa: BLE001  (told to whoever waits)
            told = [error] * len(places)
        else:
            self.pace.took(len(places), perf_counter() - started_s)
        rows = iter(told)
        for step in steps:
            self._tell(step, [next(rows) for _ in step.places])

    def _tell(self, step: _Step, told: Sequence[Logits | BaseException]) -> None:
        """The rows up to the first that failed; if that is the first of all, why."""
        if step.done.done():  # nobody waits any more
            return
        if isinstance(told[0], BaseException):
            step.done.set_exception(told[0])
            return
        if step.places[0] in self._members:
            self._due.add(step.places[0])
        rows: list[Row] = []
        for place, logits, token in zip(step.places, told, step.tokens, strict=True):
            if isinstance(logits, BaseException):
                break
            if rows:
                rows[-1] = rows[-1]._replace(guess=token)
            rows.append(Row(place, logits))
        step.done.set_result(rows)
