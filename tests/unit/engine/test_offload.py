"""Where a step runs: in the thread until it proved short, at once while it stays so."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from sawyer.engine import offload
from sawyer.engine.offload import INLINE_BELOW_S, LONG_WINDOW, WINDOW, Offload

SHORT_S, SLOW_S, LONG_S = INLINE_BELOW_S / 10, INLINE_BELOW_S * 2, INLINE_BELOW_S * 10


class Steps:
    """Steps that take as long as they say, by clocks of their own: they compute all the time, unless told to wait."""

    def __init__(self, made: Offload) -> None:
        self.offload = made
        self.now_s = self.computed_s = 0.0

    def step(self, takes_s: float) -> bool:
        """Whether it ran at once."""
        self.computed_s += takes_s
        return self.wait(takes_s)

    def wait(self, takes_s: float) -> bool:
        """A step that is held up, by a busy machine."""
        self.now_s += takes_s
        return threading.current_thread() is threading.main_thread()

    async def many(self, kind: str, takes_s: float, count: int) -> list[bool]:
        return [await self.offload.run(kind, self.step, takes_s) for _ in range(count)]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    made = Steps(Offload("test"))
    monkeypatch.setattr(offload, "perf_counter", lambda: made.now_s)
    monkeypatch.setattr(offload, "thread_time", lambda: made.computed_s)
    yield made
    made.offload.shutdown()


async def test_step_runs_at_once_when_its_last_runs_were_short(steps: Steps) -> None:
    assert await steps.many("row", SHORT_S, WINDOW + 3) == [False] * WINDOW + [True] * 3


async def test_long_step_never_leaves_the_thread(steps: Steps) -> None:
    assert not any(await steps.many("row", LONG_S, 3 * WINDOW))


async def test_step_that_became_long_goes_back_to_the_thread(steps: Steps) -> None:
    await steps.many("row", SHORT_S, WINDOW)
    assert await steps.many("row", LONG_S, 2 * WINDOW) == [True] + [False] * (2 * WINDOW - 1)


async def test_step_that_became_slower_goes_back_to_the_thread(steps: Steps) -> None:
    await steps.many("row", SHORT_S, WINDOW)
    at_once = await steps.many("row", SLOW_S, 2 * WINDOW)
    assert at_once == [True] * (WINDOW // 2 + 1) + [False] * (2 * WINDOW - WINDOW // 2 - 1)


async def test_step_that_was_held_up_once_changes_nothing(steps: Steps) -> None:
    await steps.many("row", SHORT_S, WINDOW)
    assert await steps.offload.run("row", steps.wait, 100 * LONG_S)
    assert await steps.many("row", SHORT_S, 1) == [True]


async def test_long_steps_among_many_short_ones_do_not_run_at_once(steps: Steps) -> None:
    """Three requests with short steps take turns with one whose steps are long."""
    await steps.many("row", SHORT_S, WINDOW)
    long = []
    for _ in range(50):
        await steps.many("row", SHORT_S, 3)
        long += await steps.many("row", LONG_S, 1)
    assert long == [True] + [False] * 49


async def test_kind_is_short_again_when_no_step_was_long_for_long(steps: Steps) -> None:
    await steps.many("row", SHORT_S, WINDOW)
    await steps.many("row", LONG_S, 1)
    assert await steps.many("row", SHORT_S, LONG_WINDOW + 2) == [False] * LONG_WINDOW + [True] * 2


async def test_kinds_are_measured_apart_and_the_empty_kind_stays_in_the_thread(steps: Steps) -> None:
    await steps.many("row", SHORT_S, WINDOW)
    assert await steps.many("token", SHORT_S, 1) == [False]
    assert not any(await steps.many("", SHORT_S, 2 * WINDOW))


async def test_short_step_does_not_overtake_what_waits_for_the_thread(steps: Steps) -> None:
    await steps.many("row", SHORT_S, WINDOW)
    release, order = threading.Event(), []
    first = asyncio.create_task(steps.offload.run("", lambda: (release.wait(), order.append("first"))))
    second = asyncio.create_task(steps.offload.run("row", order.append, "second"))
    asyncio.get_running_loop().call_soon(release.set)
    await asyncio.gather(first, second)
    assert order == ["first", "second"]


async def test_short_step_does_not_run_beside_one_whose_caller_was_cancelled(steps: Steps) -> None:
    await steps.many("row", SHORT_S, WINDOW)
    began, release, order = threading.Event(), threading.Event(), []
    first = asyncio.create_task(steps.offload.run("", lambda: (began.set(), release.wait(), order.append("first"))))
    await asyncio.to_thread(began.wait)
    first.cancel()
    await asyncio.wait({first})
    second = asyncio.create_task(steps.offload.run("row", order.append, "second"))
    asyncio.get_running_loop().call_soon(release.set)
    await second
    assert order == ["first", "second"]
    assert await steps.many("row", SHORT_S, 1) == [True]


async def test_error_of_a_step_reaches_its_caller_from_either_place(steps: Steps) -> None:
    for _ in range(WINDOW + 1):
        with pytest.raises(ZeroDivisionError):
            await steps.offload.run("row", lambda: 1 / 0)
    assert steps.offload.is_short("row")
