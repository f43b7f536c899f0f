"""The thread in which experts run: in order, off the event loop, and no result is lost or raised into nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator

import pytest

from sawyer.node.compute import ComputeThread

PATIENCE_S = 10.0


@pytest.fixture
async def thread() -> AsyncIterator[ComputeThread[object]]:
    made = ComputeThread[object]("test")
    yield made
    await made.stop()


async def test_work_runs_in_one_other_thread(thread: ComputeThread[object]) -> None:
    where = [await thread.do(threading.current_thread) for _ in range(3)]
    assert len(set(where)) == 1
    assert where[0] is not threading.current_thread()


async def test_what_work_raises_is_raised_where_it_is_awaited(thread: ComputeThread[object]) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await thread.do(fail)
    assert await thread.do(lambda: 7) == 7


async def test_caller_that_is_cancelled_hinders_nobody(thread: ComputeThread[object]) -> None:
    gate, begun = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert gate.wait(PATIENCE_S)

    waiting = asyncio.create_task(thread.do(wait))
    await asyncio.to_thread(begun.wait, PATIENCE_S)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.set()
    assert await thread.do(lambda: 7) == 7


async def test_stop_ends_the_thread_after_its_work() -> None:
    thread = ComputeThread[object]("test")
    before = await thread.do(threading.current_thread)
    await thread.stop()
    await thread.stop()
    assert isinstance(before, threading.Thread)
    assert not before.is_alive()


async def test_stop_leaves_the_loop_to_others_while_work_runs() -> None:
    thread, gate, begun = ComputeThread[object]("test"), threading.Event(), threading.Event()

    def wait() -> bool:
        begun.set()
        return gate.wait(PATIENCE_S)

    working = asyncio.create_task(thread.do(wait))
    await asyncio.to_thread(begun.wait, PATIENCE_S)
    stopping = asyncio.create_task(thread.stop())
    asyncio.get_running_loop().call_later(0.01, gate.set)  # only a loop that runs opens it
    await stopping
    assert await working is True


def test_program_that_ends_waits_for_the_work_that_runs() -> None:
    script = """
import asyncio, threading, time
from sawyer.node.compute import ComputeThread
begun = threading.Event()
def work():
    begun.set()
    time.sleep(0.3)
    print("done", flush=True)
async def main():
    asyncio.create_task(ComputeThread("test").do(work))
    await asyncio.to_thread(begun.wait)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "done\n"
