"""The shortcuts around nats-py: taken by the installed version, and left whenever its own way must decide."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from sawyer.bus.connection import NatsBus
from sawyer.bus.protocol import Message
from sawyer.bus.server import LocalServer
from sawyer.bus.shortcut import ShortClient, reads_as_known

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


async def test_connection_that_was_lost_and_nobody_noticed_yet_is_left_to_nats_py(bus: NatsBus) -> None:
    bus._client._transport._io_writer.transport.abort()
    assert bus._client.is_connected
    assert not bus._client.send_now("a", b"", "")
    await bus.publish("a", b"")


async def test_write_that_uvloop_refuses_is_left_to_nats_py(bus: NatsBus, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(_: bytes) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    with monkeypatch.context() as patched:
        patched.setattr(bus._client._transport, "write", closed)
        assert not bus._client.send_now("a", b"", "")
    assert bus._client.stats["out_msgs"] == 0


async def test_message_for_a_socket_that_is_gone_before_nats_py_knows_waits_for_the_reconnect(
    bus: NatsBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its flusher has ended there; so it writes to the socket itself, and uvloop raises."""

    def closed(_: object) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    client = bus._client
    with monkeypatch.context() as patched:
        for write in ("write", "writelines"):
            patched.setattr(client._transport, write, closed)
        client._flusher_task.cancel()
        await asyncio.gather(client._flusher_task, return_exceptions=True)
        await bus.publish("a", b"kept")
    assert any(b"kept" in each for each in client._pending)


async def test_nats_py_without_the_names_goes_its_own_way(bus: NatsBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(bus._client, "_pending")
    assert not bus._client.send_now("a", b"", "")


async def test_unsubscribed_handler_is_forgotten(bus: NatsBus) -> None:
    subscription = await bus.subscribe("a", lambda _: None)
    assert len(bus._client._handlers) == 1
    await subscription.unsubscribe()
    assert bus._client._handlers == {}


async def test_message_with_headers_goes_nats_pys_way_and_is_not_overtaken(bus: NatsBus) -> None:
    ear = await listening(bus, "a")
    for data, headers in ((b"first", {"k": "v"}), (b"second", None), (b"third", {"k": "v"}), (b"fourth", None)):
        await bus._client.publish("a", data, headers=headers)  # queued, so that all come in one read
    assert [(await ear.next()).data for _ in range(4)] == [b"first", b"second", b"third", b"fourth"]


async def test_nobody_listens_is_told_through_a_handed_over_subscription(bus: NatsBus) -> None:
    ear = await listening(bus, "inbox")
    await bus.publish("nobody", b"", "inbox")
    assert (await ear.next()).no_responders


async def test_drained_subscription_hands_over_what_was_sent_before(bus: NatsBus) -> None:
    ear = Ear()
    subscription = await bus.subscribe("a", ear.heard.put_nowait)
    for n in range(100):
        await bus.publish("a", bytes([n]))
    await subscription.drain()
    assert [ear.heard.get_nowait().data for _ in range(100)] == [bytes([n]) for n in range(100)]
    assert (bus._client._handlers, bus._client._subs) == ({}, {})


async def test_shortcuts_are_taken_again_after_a_reconnect(
    server: LocalServer, bus: NatsBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ear, again = await listening(bus, "a"), asyncio.Event()
    told = bus._note_reconnect

    async def note() -> None:
        await told()
        again.set()

    monkeypatch.setattr(bus._client, "_reconnected_cb", note)
    server.process.kill()
    server.process.wait()
    with LocalServer.start(tmp_path / "again", listen=server.url.removeprefix("nats://")):
        async with asyncio.timeout(PATIENCE_S):
            await again.wait()
        await bus.flush()

        async def own_way(*_: object) -> None:
            raise AssertionError("nats-py went its own way")

        monkeypatch.setattr(bus._client, "publish", own_way)
        monkeypatch.setattr("nats.aio.client.Client._process_msg", own_way)
        await bus.publish("a", b"here again")
        assert (await ear.next()).data == b"here again"
        await bus.close()


async def _other_message(self: Client, sid: int, message: object) -> None: ...


def _at_once(self: Client, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None: ...


async def _later(self: Client, sid: int, max_msgs: int = 0) -> None: ...


@pytest.mark.parametrize(
    ("name", "other"),
    [("_process_msg", _other_message), ("_process_msg", _at_once), ("_remove_sub", _later), ("_process_msg", None)],
)
def test_nats_py_that_reads_otherwise_keeps_its_own_methods(
    monkeypatch: pytest.MonkeyPatch, name: str, other: object
) -> None:
    assert reads_as_known(Client, Client())
    if other is None:
        monkeypatch.delattr(Client, name)
    else:
        monkeypatch.setattr(Client, name, other)
    made = ShortClient()
    assert not reads_as_known(Client, made)
    assert getattr(type(made), name, None) is other
    assert name not in vars(made)


async def test_messages_arrive_with_a_nats_py_that_reads_otherwise(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sawyer.bus.shortcut._PROCESS_PARAMETERS", ["self", "message"])
    bus = await NatsBus.connect(server.url, name="shortcut")
    ear = await listening(bus, "a")
    await bus.publish("a", b"data", "reply.here")
    assert await ear.next() == Message("a", b"data", "reply.here")
    assert bus._client._handlers == {}
    await bus.close()
