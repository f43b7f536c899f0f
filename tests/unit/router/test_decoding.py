"""Continuous batching: who takes part in which pass."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from sawyer.errors import ExpertUnavailable, SawyerError
from sawyer.router import decoding as module
from sawyer.router.decoding import Decoding
from sawyer.router.forward import Forward, Place


class FakeForward:
    """Answers token + 1; a pass ends when the test says so."""

    def __init__(self) -> None:
        self.passes: list[list[int]] = []
        self.gates: list[asyncio.Event] = []
        self.fails: set[int] = set()
        self.held = False
        self.began = asyncio.Event()

    async def tokens(self, places: Sequence[Place], ids: Sequence[int]) -> list[Any]:
        gate = asyncio.Event()
        self.passes.append(list(ids))
        self.gates.append(gate)
        self.began.set()
        if self.held:
            await gate.wait()
        else:
            await asyncio.sleep(0)
        return [
            ExpertUnavailable("no expert", experts=((0, 1),)) if token in self.fails else np.array([token + 1.0])
            for token in ids
        ]


def place() -> Place:
    return Place(cast("Any", None), cast("Any", None))


@pytest.fixture
def forward() -> FakeForward:
    return FakeForward()


def decoding_of(forward: FakeForward, **limits: int) -> Decoding:
    return Decoding(cast("Forward", forward), **limits)


async def write(decoding: Decoding, first: int, count: int) -> list[int]:
    """The tokens of one sequence; each is the answer to the one before."""
    here, said = place(), [first]
    with decoding.member(here):
        for _ in range(count):
            said.append(int((await decoding.step(here, said[-1]))[0].logits[0]))
    return said


async def test_sequences_that_write_at_the_same_time_share_passes(forward: FakeForward) -> None:
    decoding = decoding_of(forward, passes=1)
    said = await asyncio.gather(*(write(decoding, 100 * n, 10) for n in range(5)))
    assert said == [list(range(100 * n, 100 * n + 11)) for n in range(5)]
    assert len(forward.passes) <= 12
    assert [len(each) for each in forward.passes].count(5) >= 8


async def test_two_passes_take_turns_with_an_equal_part_of_all(forward: FakeForward) -> None:
    decoding = decoding_of(forward, passes=2)
    await asyncio.gather(*(write(decoding, 100 * n, 10) for n in range(6)))
    assert max(len(each) for each in forward.passes) <= 3
    assert [len(each) for each in forward.passes].count(3) >= 14


async def test_pass_has_at_most_so_many_rows_and_nobody_is_left_out(forward: FakeForward) -> None:
    decoding = decoding_of(forward, passes=1, most_rows=4)
    said = await asyncio.gather(*(write(decoding, 100 * n, 5) for n in range(9)))
    assert [each[-1] for each in said] == [100 * n + 5 for n in range(9)]
    assert max(len(each) for each in forward.passes) == 4


async def test_sequence_that_ends_is_not_waited_for(forward: FakeForward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_S", 1000.0)
    decoding = decoding_of(forward, passes=1)
    async with asyncio.timeout(10):
        await asyncio.gather(write(decoding, 0, 3), write(decoding, 100, 8))


async def test_sequence_that_stays_away_is_waited_for_once_and_no_longer(
    forward: FakeForward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW_S", 0.001)
    decoding, away = decoding_of(forward, passes=1), place()
    with decoding.member(away):
        await decoding.step(away, 7)
        said = await write(decoding, 0, 4)
    assert said == [0, 1, 2, 3, 4]
    assert forward.passes == [[7], [0], [1], [2], [3]]


async def test_sequence_that_fails_fails_alone(forward: FakeForward) -> None:
    decoding = decoding_of(forward, passes=1)
    forward.fails = {102}
    good, bad = await asyncio.gather(write(decoding, 0, 5), write(decoding, 100, 5), return_exceptions=True)
    assert good == [0, 1, 2, 3, 4, 5]
    assert isinstance(bad, ExpertUnavailable)


async def test_pass_that_breaks_is_told_to_everybody_in_it(forward: FakeForward) -> None:
    class Broken(FakeForward):
        async def tokens(self, places: Sequence[Place], ids: Sequence[int]) -> list[Any]:
            raise SawyerError("broken")

    decoding = decoding_of(Broken(), passes=1)
    told = await asyncio.gather(write(decoding, 0, 1), write(decoding, 1, 1), return_exceptions=True)
    assert [str(each) for each in told] == ["broken", "broken"]


async def test_sequence_that_is_cancelled_in_a_pass_stops_no_other(forward: FakeForward) -> None:
    decoding = decoding_of(forward, passes=1)
    forward.held = True
    one, other = asyncio.create_task(write(decoding, 0, 1)), asyncio.create_task(write(decoding, 100, 1))
    await forward.began.wait()
    one.cancel()
    forward.held = False
    forward.gates[0].set()
    with pytest.raises(asyncio.CancelledError):
        await one
    assert await other == [100, 101]


async def test_pass_that_stalls_keeps_no_other_sequence_waiting(
    forward: FakeForward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALLED_S", 0.001)
    decoding = decoding_of(forward, passes=1)
    forward.held = True
    stuck = asyncio.create_task(write(decoding, 0, 1))
    await forward.began.wait()
    forward.held = False
    assert await write(decoding, 100, 3) == [100, 101, 102, 103]
    assert not stuck.done()
    forward.gates[0].set()
    assert await stuck == [0, 1]


async def test_stop_cancels_who_waits(forward: FakeForward) -> None:
    decoding = decoding_of(forward, passes=1)
    forward.held = True
    writing = asyncio.create_task(write(decoding, 0, 1))
    await forward.began.wait()
    await decoding.stop()
    with pytest.raises(asyncio.CancelledError):
        await writing
