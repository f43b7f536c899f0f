"""The limit of context memory: who waits, in which order, and who is refused."""

from __future__ import annotations

import asyncio

import pytest

from sawyer.errors import Busy, RefusedError
from sawyer.router.context_memory import ContextMemory


async def _turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_request_over_the_limit_is_refused_at_once() -> None:
    memory = ContextMemory(100)
    with pytest.raises(RefusedError, match="may need"):
        async with memory.room(101):
            pass
    assert memory.taken_bytes == 0


async def test_request_waits_until_another_ends_and_small_ones_do_not_pass_it() -> None:
    memory, order = ContextMemory(100), list[str]()
    release = {name: asyncio.Event() for name in ("first", "big", "small")}

    async def run(name: str, size: int) -> None:
        async with memory.room(size):
            order.append(name)
            await release[name].wait()

    tasks = []
    for name, size in (("first", 60), ("big", 90), ("small", 30)):
        tasks.append(asyncio.create_task(run(name, size)))
        await _turns()
    assert (order, memory.waiting, memory.taken_bytes) == (["first"], 2, 60)
    release["first"].set()
    await _turns()
    assert (order, memory.waiting, memory.taken_bytes) == (["first", "big"], 1, 90)
    release["big"].set()
    release["small"].set()
    await asyncio.gather(*tasks)
    assert (order, memory.taken_bytes) == (["first", "big", "small"], 0)


async def test_request_that_waited_too_long_is_told_to_come_again() -> None:
    memory = ContextMemory(100, patience_s=0.01)
    async with memory.room(100):
        with pytest.raises(Busy, match="take all") as busy:
            async with memory.room(1):
                pass
        assert busy.value.details == {"retry_after_ms": "10"}
        assert (memory.waiting, memory.taken_bytes) == (0, 100)
    assert memory.taken_bytes == 0


async def test_request_that_is_cancelled_while_it_waits_leaves_the_line() -> None:
    memory = ContextMemory(100)

    async def wait() -> None:
        async with memory.room(50):
            pass

    async with memory.room(100):
        waiting = asyncio.create_task(wait())
        await _turns()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert memory.waiting == 0
    assert memory.taken_bytes == 0
