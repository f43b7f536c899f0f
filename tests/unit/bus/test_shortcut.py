"""The shortcuts around nats-py: taken by the installed version, and left whenever its own way must decide."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sawyer.bus.connection import NatsBus
from sawyer.bus.protocol import Message
from sawyer.bus.server import LocalServer

PATIENCE_S = 10.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    with LocalServer.start(tmp_path / "nats") as made:
        yield made


@pytest.fixture
async def bus(server: LocalServer) -> AsyncIterator[NatsBus]:
    made = await NatsBus.connect(server.url, name="shortcut")
    yield made
    await made.close()


class Ear:
    """What came on one subject."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Message] = asyncio.Queue()

    async def next(self) -> Message:
        async with asyncio.timeout(PATIENCE_S):
            return await self.heard.get()


async def listening(bus: NatsBus, subject: str) -> Ear:
    ear = Ear()
    await bus.subscribe(subject, ear.heard.put_nowait)
    await bus.flush()
    return ear


async def test_installed_nats_py_takes_both_shortcuts(bus: NatsBus, monkeypatch: pytest.MonkeyPatch) -> None:
    ear = await listening(bus, "a")

    async def own_way(*_: object) -> None:
        raise AssertionError("nats-py went its own way")

    monkeypatch.setattr(bus._client, "publish", own_way)
    monkeypatch.setattr("nats.aio.client.Client._process_msg", own_way)
    await bus.publish("a", b"data", "reply.here")
    assert await ear.next() == Message("a", b"data", "reply.here")
    assert bus._client.stats["out_msgs"] == bus._client.stats["in_msgs"] == 1


async def test_message_does_not_overtake_one_that_waits_to_be_written(bus: NatsBus) -> None:
    ear = await listening(bus, "a")
    await bus._client.publish("a", b"first")
    assert not bus._client.send_now("a", b"second", "")
    await bus.publish("a", b"second")
    assert [(await ear.next()).data for _ in range(2)] == [b"first", b"second"]


async def test_messages_keep_their_order_when_the_socket_is_full(bus: NatsBus) -> None:
    ear = await listening(bus, "a")
    sent = [bytes([n]) * 1_000_000 for n in range(30)]
    for data in sent:
        await bus.publish("a", data)
    assert [(await ear.next()).data == data for data in sent] == [True] * len(sent)


@pytest.mark.parametrize(
    ("subject", "reply"), [("a b", ""), ("a\r\nPUB b 0", ""), ("", ""), ("a", "b c"), ("a", "b\n")]
)
async def test_subject_with_white_space_is_left_to_nats_py(bus: NatsBus, subject: str, reply: str) -> None:
    assert not bus._client.send_now(subject, b"", reply)


async def test_payload_over_the_servers_limit_is_left_to_nats_py(bus: NatsBus) -> None:
    assert not bus._client.send_now("a", bytes(bus._client.max_payload + 1), "")


async def test_closed_connection_is_left_to_nats_py(bus: NatsBus) -> None:
    await bus.close()
    assert not bus._client.send_now("a", b"", "")


async def test_nats_py_without_the_names_goes_its_own_way(bus: NatsBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(bus._client, "_pending")
    assert not bus._client.send_now("a", b"", "")


async def test_unsubscribed_handler_is_forgotten(bus: NatsBus) -> None:
    subscription = await bus.subscribe("a", lambda _: None)
    assert len(bus._client._handlers) == 1
    await subscription.unsubscribe()
    assert bus._client._handlers == {}
