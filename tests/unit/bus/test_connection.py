"""NATS when it goes wrong: nothing there, something silent there, a server that dies and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import nats.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from sawyer.bus import connection, server
from sawyer.bus.connection import NatsBus
from sawyer.bus.gather import Gatherer, Loss
from sawyer.bus.protocol import Message
from sawyer.bus.server import LocalServer
from sawyer.errors import ServerUnreachable, UsageError

PATIENCE_S = 20.0


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def start(free_port: int, tmp_path: Path) -> Iterator[Callable[[], LocalServer]]:
    """Starts a server, always on the same port."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(LocalServer.start(tmp_path / "nats", listen=f"127.0.0.1:{free_port}"))


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[NatsBus]:
    bus = await NatsBus.connect(url, name="test")
    try:
        yield bus
    finally:
        await bus.close()


async def back(bus: NatsBus) -> None:
    """Returns when the server answers again."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await bus.flush()
            except ServerUnreachable:
                await asyncio.sleep(0.02)


async def test_connecting_to_nothing_fails_and_names_the_address(free_port: int) -> None:
    url = f"nats://127.0.0.1:{free_port}"
    with pytest.raises(ServerUnreachable, match=url) as error:
        await asyncio.wait_for(NatsBus.connect(url, name="test"), PATIENCE_S)
    assert "refused" in error.value.message or "Connect call failed" in error.value.message
    assert error.value.hint


@pytest.mark.parametrize(
    "url", ["nats://127.0.0.1:notaport", "nats://127.0.0.1:99999", "http://[bad", "http://127.0.0.1:4222", "nats://"]
)
async def test_address_that_is_none_fails_typed(url: str) -> None:
    with pytest.raises(UsageError) as error:
        await asyncio.wait_for(NatsBus.connect(url, name="test"), PATIENCE_S)
    assert url in error.value.message


async def test_connecting_to_something_silent_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_CONNECT_TIMEOUT_S", 0.2)
    taken: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: taken.append(writer), "127.0.0.1", 0)
    url = f"nats://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    try:
        with pytest.raises(ServerUnreachable, match=r"no answer within 0\.2 s") as error:
            await asyncio.wait_for(NatsBus.connect(url, name="test"), PATIENCE_S)
        assert url in error.value.message
        assert taken, "the client must have been there"
    finally:
        silent.close()
        for writer in taken:
            writer.close()
        await silent.wait_closed()


async def test_failed_connect_leaves_no_task_behind(free_port: int) -> None:
    before = asyncio.all_tasks()
    with pytest.raises(ServerUnreachable):
        await NatsBus.connect(f"nats://127.0.0.1:{free_port}", name="test")
    assert asyncio.all_tasks() == before


async def test_connection_survives_its_server_and_subscriptions_work_again(start: Callable[[], LocalServer]) -> None:
    first = start()
    async with connected(first.url) as bus, connected(first.url) as other:
        lost, heard = asyncio.Event(), asyncio.Queue[Message]()
        bus.on_disconnect(lost.set)
        await bus.subscribe("a.*", heard.put_nowait)
        await bus.flush()
        first.process.kill()
        await asyncio.wait_for(lost.wait(), PATIENCE_S)
        first.process.wait()
        second = start()
        assert second.url == first.url
        await back(bus)
        await back(other)
        await other.publish("a.b", b"here again")
        assert (await asyncio.wait_for(heard.get(), PATIENCE_S)).data == b"here again"
        assert not bus.closed.is_set()


async def test_answers_that_were_out_are_lost_at_once_when_the_server_dies(start: Callable[[], LocalServer]) -> None:
    local = start()
    async with connected(local.url) as bus, connected(local.url) as other:
        asked = asyncio.Queue[Message]()
        await other.subscribe("silent", asked.put_nowait)
        await other.flush()
        gatherer = Gatherer(bus, urgent=lambda _: False)
        await gatherer.start()
        with gatherer.call() as call:
            await call.send(1, "silent", b"q")
            await asyncio.wait_for(asked.get(), PATIENCE_S)
            local.process.kill()
            arrivals = await asyncio.wait_for(call.wait(3600.0), PATIENCE_S)
        assert [(each.tag, each.loss) for each in arrivals] == [(1, Loss.DISCONNECTED)]


async def test_flush_without_a_server_says_so(
    start: Callable[[], LocalServer],
) -> None:
    local = start()
    async with connected(local.url) as bus:
        lost = asyncio.Event()
        bus.on_disconnect(lost.set)
        local.process.kill()
        await asyncio.wait_for(lost.wait(), PATIENCE_S)
        with pytest.raises(ServerUnreachable, match="does not answer"):
            await bus.flush()


async def test_flush_asks_the_server_after_all_that_was_sent(
    start: Callable[[], LocalServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server answers in order: only a PING that stands behind a message proves that the message was taken."""
    async with connected(start().url) as bus:
        transport, written = bus._client._transport, list[bytes]()
        assert transport is not None
        write, writelines = transport.write, transport.writelines
        monkeypatch.setattr(transport, "write", lambda data: (written.append(data), write(data)))
        monkeypatch.setattr(transport, "writelines", lambda lines: (written.extend(lines), writelines(lines)))
        await bus.publish("a", b"x")
        await bus.subscribe("b", print)
        await bus.flush()
        sent = b"".join(written)
    assert sent.rindex(b"PING") > max(sent.index(b"PUB a "), sent.index(b"SUB b "))


async def test_close_is_told(start: Callable[[], LocalServer]) -> None:
    async with connected(start().url) as bus:
        assert not bus.closed.is_set()
    assert bus.closed.is_set()


async def test_payload_over_a_smaller_limit_of_the_server_is_refused_typed(
    start: Callable[[], LocalServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_CONFIG", server._CONFIG.replace("8MB", "1KB"))
    async with connected(start().url) as bus:
        with pytest.raises(UsageError, match="2048 bytes") as error:
            await bus.publish("a", bytes(2048))
        assert "max_payload" in error.value.hint
        with pytest.raises(UsageError, match="2048 bytes"):
            await bus.request("a", bytes(2048), 1.0)
        await bus.flush()


async def test_subject_that_is_not_utf8_is_dropped_and_the_connection_lives_on(
    start: Callable[[], LocalServer],
) -> None:
    """Anybody may publish one; it must not stop the reader of everybody who listens."""
    local = start()
    port = int(local.url.rsplit(":", 1)[1])
    async with connected(local.url) as bus:
        heard = asyncio.Queue[Message]()
        await bus.subscribe(">", heard.put_nowait)
        await bus.flush()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b'CONNECT {"verbose":false}\r\nPUB a.\xff\xfe 1\r\nx\r\nPUB b \xff 1\r\ny\r\nPUB c 1\r\nz\r\nPING\r\n'
        )
        async with asyncio.timeout(PATIENCE_S):
            while await reader.readline() != b"PONG\r\n":
                pass
        writer.close()
        assert (await asyncio.wait_for(heard.get(), PATIENCE_S)) == Message("c", b"z")
        await bus.flush()


@contextlib.contextmanager
def held_up(local: LocalServer) -> Iterator[None]:
    """The server takes and answers nothing meanwhile, and goes on where it was."""
    os.kill(local.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(local.process.pid, signal.SIGCONT)


@pytest.mark.parametrize("waiting", ["drain", "flush"])
async def test_messages_are_heard_after_an_answer_came_that_nobody_waited_for_any_more(
    start: Callable[[], LocalServer], monkeypatch: pytest.MonkeyPatch, waiting: str
) -> None:
    local = start()
    async with connected(local.url) as bus, connected(local.url) as other:
        heard = asyncio.Queue[Message]()
        await bus.subscribe("a", heard.put_nowait)
        drained = await bus.subscribe("b", print)
        await bus.flush()
        with held_up(local), monkeypatch.context() as patch:
            patch.setattr(connection, "DRAIN_TIMEOUT_S", 0.1)
            patch.setattr(connection, "CONNECT_TIMEOUT_S", 0.1)
            if waiting == "drain":
                await drained.drain()
            else:
                with pytest.raises(ServerUnreachable):
                    await bus.flush()
        await bus.flush()
        await other.publish("a", b"the only one")
        assert (await asyncio.wait_for(heard.get(), PATIENCE_S)).data == b"the only one"


@pytest.mark.parametrize("end", ["time", "cancel"])
async def test_subscription_whose_drain_did_not_finish_is_heard_no_more(
    start: Callable[[], LocalServer], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    local = start()
    async with connected(local.url) as bus:
        heard = asyncio.Queue[Message]()
        subscription = await bus.subscribe("a", heard.put_nowait)
        await bus.flush()
        with held_up(local), monkeypatch.context() as patch:
            patch.setattr(connection, "DRAIN_TIMEOUT_S", 0.1 if end == "time" else PATIENCE_S)
            draining = asyncio.create_task(subscription.drain())
            if end == "cancel":
                asyncio.get_running_loop().call_soon(draining.cancel)
            await asyncio.wait({draining})
        await bus.flush()
        assert (bus._client._subs, bus._client._handlers) == ({}, {})
        await bus.publish("a", b"x")
        await bus.flush()
        assert heard.empty()


async def test_messages_lost_to_a_full_buffer_are_counted(start: Callable[[], LocalServer]) -> None:
    async with connected(start().url) as bus:
        slow = nats.errors.SlowConsumerError("a", "", 1, bus._client._subs)  # type: ignore[arg-type]
        await bus._note_error(slow)
        await bus._note_error(nats.errors.StaleConnectionError())
        assert bus.dropped == 1


async def test_cancel_that_comes_with_the_answer_to_a_flush_is_not_lost(
    start: Callable[[], LocalServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(start().url) as bus:
        asked = asyncio.Event()

        async def swallow(*_: object, **__: object) -> None:
            """As wait_for does before Python 3.12, where the answer is there already."""
            asked.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

        with monkeypatch.context() as patch:
            patch.setattr(bus._client, "flush", swallow)
            flushing = asyncio.create_task(bus.flush())
            await asked.wait()
            flushing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await flushing


async def test_cancel_that_comes_with_the_word_that_nobody_listens_is_not_lost(
    start: Callable[[], LocalServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(start().url) as bus:
        asked = asyncio.Event()

        async def swallow(*_: object, **__: object) -> None:
            asked.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise nats.errors.NoRespondersError from None

        monkeypatch.setattr(bus._client, "request", swallow)
        asking = asyncio.create_task(bus.request("nobody", b"", PATIENCE_S))
        await asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


@given(st.lists(st.text(st.sampled_from("aé: \t\n\r\v\x1c\u2003"), max_size=9), max_size=5))
def test_headers_are_read_as_nats_py_reads_them(lines: list[str]) -> None:
    raw = "\r\n".join(lines).encode() + b"\r\nBad: \xff\r\n\r\n"
    assert connection._Client._parse_header_lines(raw) == Client._parse_header_lines(raw)


async def test_message_that_headers_push_over_the_limit_is_refused_and_the_connection_lives(
    start: Callable[[], LocalServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_CONFIG", server._CONFIG.replace("8MB", "1MB"))
    async with connected(start().url) as bus:
        almost = bytes(bus.server.max_payload_bytes - 100)
        for send in (bus.publish("a", almost, headers={"Name": "v" * 200}), bus.request("a", almost, 1, {"N": "v"})):
            with pytest.raises(UsageError, match="over the limit"):
                await send
        await bus.flush()
        assert not bus.closed.is_set()
