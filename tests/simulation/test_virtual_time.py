"""The loop that simulations run on: it waits for nothing, hangs for nobody, and has one order of events."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator

import pytest
from virtual_time import InlineThread, LoopClock, NothingLeft, VirtualLoop, determined

from sawyer.clock import SystemClock
from sawyer.ids import new_request_id

HOP_S = 0.25


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop(lambda: HOP_S)
    yield made
    made.close()


def test_hour_passes_at_once_when_nothing_else_is_to_be_done(loop: VirtualLoop) -> None:
    clock = LoopClock(loop)
    before_ms = clock.now_ms()
    loop.run_until_complete(asyncio.sleep(3600))
    assert loop.time() == pytest.approx(3600)
    assert clock.now_ms() - before_ms == pytest.approx(3_600_000, abs=1)


def test_wait_for_what_never_comes_ends_with_an_error(loop: VirtualLoop) -> None:
    with pytest.raises(NothingLeft):
        loop.run_until_complete(asyncio.Event().wait())


def test_work_for_threads_runs_on_the_loop_after_its_hop(loop: VirtualLoop) -> None:
    async def work() -> tuple[threading.Thread, float]:
        return await asyncio.to_thread(lambda: (threading.current_thread(), loop.time()))

    assert loop.run_until_complete(work()) == (threading.main_thread(), HOP_S)


def test_work_that_is_cancelled_before_its_hop_never_runs(loop: VirtualLoop) -> None:
    ran = []

    async def give_up() -> None:
        work = asyncio.ensure_future(asyncio.to_thread(ran.append, 1))
        await asyncio.sleep(HOP_S / 2)
        work.cancel()
        await asyncio.sleep(HOP_S)

    loop.run_until_complete(give_up())
    assert not ran


def test_steps_of_one_thread_run_in_their_order_one_after_the_other(loop: VirtualLoop) -> None:
    async def steps() -> list[float]:
        thread = InlineThread()
        futures = [asyncio.wrap_future(thread.submit(loop.time)) for _ in range(3)]
        return list(await asyncio.gather(*futures))

    assert loop.run_until_complete(steps()) == [HOP_S, 2 * HOP_S, 3 * HOP_S]


def test_error_of_a_step_reaches_who_waits(loop: VirtualLoop) -> None:
    async def fail() -> None:
        await asyncio.wrap_future(InlineThread().submit(lambda: 1 // 0))

    with pytest.raises(ZeroDivisionError):
        loop.run_until_complete(fail())


def test_same_seed_draws_the_same_ids_and_no_thread_and_no_clock_is_let_in(loop: VirtualLoop) -> None:
    drawn = []
    for _ in range(2):
        with determined(loop, random.Random(7)):
            drawn.append(new_request_id())
            with pytest.raises(AssertionError, match="a thread in a simulation"):
                threading.Thread(target=time.time).start()
            with pytest.raises(AssertionError, match="SystemClock in a simulation"):
                SystemClock().now_ms()
    assert drawn[0] == drawn[1] != new_request_id()
