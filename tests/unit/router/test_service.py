"""The router's program: what it answers besides requests, and a start that fails."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.protocol import Message
from sawyer.clock import SystemClock
from sawyer.errors import SawyerError, ServerUnreachable
from sawyer.identity.keys import Key
from sawyer.ids import ModelId, RequestId
from sawyer.node.capability import BODIES_BYTES, PING_BYTES
from sawyer.router.service import MAX_ECHO_BYTES, Router, RouterIdentity, echo_service
from sawyer.schemas import subjects

MODEL = ModelId("austen")
PATIENCE_S = 10.0


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
async def asker(network: MemoryNetwork) -> MemoryBus:
    await echo_service(MemoryBus(network), MODEL).start()
    return MemoryBus(network)


@pytest.mark.parametrize("size", [PING_BYTES, *BODIES_BYTES])
async def test_router_echoes_all_that_a_node_measures_its_way_with(asker: MemoryBus, size: int) -> None:
    body = os.urandom(size)
    assert await asker.request(subjects.echo(MODEL), body, PATIENCE_S) == body


async def test_echo_over_the_limit_is_refused(asker: MemoryBus) -> None:
    reply = await asker.request(subjects.echo(MODEL), bytes(MAX_ECHO_BYTES + 1), PATIENCE_S)
    assert b"malformed" in reply


@pytest.mark.parametrize(
    "reply",
    [subjects.cancel(RequestId("a" * 32)), subjects.roll_call(), "$JS.API.STREAM.DELETE.X", "orders.new", "_SYS.x", ""],
)
async def test_echo_speaks_to_inboxes_only(asker: MemoryBus, reply: str) -> None:
    heard: list[Message] = []
    await asker.subscribe(reply or "none", heard.append)
    for body in (b"", b"{}", bytes(MAX_ECHO_BYTES + 1)):
        await asker.publish(subjects.echo(MODEL), body, reply)
    await asker.request(subjects.echo(MODEL), b"after them", PATIENCE_S)
    assert heard == []


@pytest.mark.parametrize("inbox", ["_INBOX.x.1", "_INBOX_maria.x.1", "_R_.abc.1"])
async def test_echo_reaches_inboxes_under_a_prefix_of_the_users_own(asker: MemoryBus, inbox: str) -> None:
    heard: asyncio.Queue[Message] = asyncio.Queue()
    await asker.subscribe(inbox, heard.put_nowait)
    await asker.publish(subjects.echo(MODEL), b"body", inbox)
    async with asyncio.timeout(PATIENCE_S):
        assert (await heard.get()).data == b"body"


class Held:
    """Stands for the engine."""

    manifest = "ab" * 32
    layout = SimpleNamespace(moe_layers=(0,), experts=1)
    trunk = compute = None
    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("last", ["_gatherer", "_directory", "_requests"])
async def test_router_that_cannot_start_ends_what_it_began(
    network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    engine: Any = Held()
    before = asyncio.all_tasks()
    router = Router(MemoryBus(network), RouterIdentity("router-1", Key.generate()), MODEL, engine, SystemClock())

    async def nothing() -> None: ...

    async def fail() -> None:
        raise ServerUnreachable("gone")

    monkeypatch.setattr(router._directory, "start", nothing)
    failing: Callable[[], Any] = fail
    monkeypatch.setattr(getattr(router, last), "start", failing)
    with pytest.raises(SawyerError, match="gone"):
        await router.run()
    assert network.listeners == []
    assert engine.closed
    assert asyncio.all_tasks() == before


async def test_router_that_is_cancelled_while_it_waits_for_nodes_leaves_nothing(
    network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = Held()
    router = Router(MemoryBus(network), RouterIdentity("router-1", Key.generate()), MODEL, engine, SystemClock())
    waiting = asyncio.Event()

    async def nothing() -> None: ...

    def missing(*_: object) -> list[tuple[int, int]]:
        waiting.set()
        return [(0, 0)]

    monkeypatch.setattr(router._directory, "start", nothing)
    monkeypatch.setattr(router._directory.placement, "missing", missing)
    before = asyncio.all_tasks()
    running = asyncio.create_task(router.run())
    await waiting.wait()
    running.cancel()
    await asyncio.wait({running})
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert network.listeners == []
