"""The bus in memory alone: subject matching against the rule as NATS words it, and requests that are cancelled."""

from __future__ import annotations

import asyncio
import re
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.bus.memory import MemoryBus, MemoryNetwork, matches
from sawyer.bus.protocol import Message
from sawyer.errors import NobodyServes

TOKEN = st.sampled_from(["a", "b", "ab"])
SUBJECT = st.lists(TOKEN, min_size=1, max_size=4)
PATTERN = st.builds(
    lambda tokens, rest: [*tokens, *rest],
    st.lists(TOKEN | st.just("*"), min_size=1, max_size=4),
    st.sampled_from([[], [">"]]),
)


def by_regular_expression(pattern: list[str], subject: str) -> bool:
    """`*` is exactly one token, `>` at the end one or more."""
    parts = {"*": r"[^.]+", ">": r".+"}
    return re.fullmatch(r"\.".join(parts.get(token, re.escape(token)) for token in pattern), subject) is not None


async def test_participants_in_several_threads_hear_each_other_on_their_own_loops() -> None:
    network = MemoryNetwork()
    heard: list[int] = []

    async def answer(listening: threading.Event, done: threading.Event) -> None:
        bus, tasks = MemoryBus(network), set()

        def hear(message: Message) -> None:
            heard.append(threading.get_ident())
            tasks.add(asyncio.create_task(bus.publish(message.reply, message.data[::-1])))

        await bus.subscribe("turn", hear)
        listening.set()
        await asyncio.to_thread(done.wait)

    listening, done = threading.Event(), threading.Event()
    other = threading.Thread(target=lambda: asyncio.run(answer(listening, done)))
    other.start()
    await asyncio.to_thread(listening.wait)
    try:
        assert await MemoryBus(network).request("turn", b"abc", 10) == b"cba"
        assert heard == [other.ident]
    finally:
        done.set()
        await asyncio.to_thread(other.join)
    with pytest.raises(NobodyServes):  # its loop is gone, and so is whoever listened there
        await MemoryBus(network).request("turn", b"abc", 10)


async def test_cancel_that_comes_with_the_answer_is_not_swallowed() -> None:
    """Or whoever cancels a task that asks, and waits for its end, may wait forever."""
    bus = MemoryBus(MemoryNetwork())
    tasks: list[asyncio.Task[object]] = []

    async def answer_and_cancel(reply: str) -> None:
        await bus.subscribe(reply, lambda _: asking.cancel())  # heard right after the asker heard it
        await bus.publish(reply, b"answer")

    await bus.subscribe("question", lambda m: tasks.append(asyncio.create_task(answer_and_cancel(m.reply))))
    asking = asyncio.create_task(bus.request("question", b"", 60))
    with pytest.raises(asyncio.CancelledError):
        await asking


@given(PATTERN, SUBJECT)
def test_match_agrees_with_the_rule(pattern: list[str], subject: list[str]) -> None:
    assert matches(tuple(pattern), ".".join(subject)) == by_regular_expression(pattern, ".".join(subject))


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [(">", "a.b.c", True), ("a.>", "a", False), ("a.>", "a.b", True), ("*.b", "a.b", True), ("a", "a.b", False)],
)
def test_match_at_the_edges(pattern: str, subject: str, expected: bool) -> None:
    assert matches(tuple(pattern.split(".")), subject) is expected
