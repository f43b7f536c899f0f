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
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sawyer.router.forward import Forward, Place

MOST_ROWS: Final = 64
"""Of one pass."""
PASSES: Final = 1
"""So many passes run at once. A second one could attend while the first waits for nodes, and doubles the messages: on
two cores it cost a third more CPU a token."""
STALLED_S: Final = 1.0
"""A pass that takes so long keeps nobody else from starting one: some expert is late, and not everybody needs it."""
WINDOW_S: Final = 0.005
PROMPTS: Final = 2
"""So many prompts are read at once: reading one more keeps everybody who writes waiting."""

Logits = NDArray[np.float32]


@dataclass(eq=False, slots=True)
class _Step:
    place: Place
    token: int
    done: asyncio.Future[Logits]


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

    async def step(self, place: Place, token: int) -> Logits:
        """Logits [V] after one more token of a member. Raises ExpertUnavailable."""
        step = _Step(place, token, asyncio.get_running_loop().create_future())
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
        try:
            told: Sequence[Logits | BaseException] = await self._forward.tokens(
                [step.place for step in steps], [step.token for step in steps]
            )
        except asyncio.CancelledError:
            for step in steps:
                step.done.cancel()
            raise
        except Exception as error:  # noqa: BLE001  (told to whoever waits)
            told = [error] * len(steps)
        for step, each in zip(steps, told, strict=True):
            if step.done.done():  # nobody waits any more
                continue
            if isinstance(each, BaseException):
                step.done.set_exception(each)
            else:
                if step.place in self._members:
                    self._due.add(step.place)
                step.done.set_result(each)
