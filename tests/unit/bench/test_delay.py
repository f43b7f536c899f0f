"""The delayed link: every byte arrives, in order, in both directions, whatever ends first. When a chunk leaves is
arithmetic, and needs no clock."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from sawyer.bench.delay import HOST, DelayProxy, Departures, Link

QUICK = Link(0.001)
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def proxied(talk: Talk, link: Link = QUICK) -> AsyncIterator[DelayProxy]:
    """A proxy to a server that talks so."""
    talking: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talking.add(task)
        try:
            await talk(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, HOST)
    port = server.sockets[0].getsockname()[1]
    async with DelayProxy(HOST, port, link, link) as proxy:
        yield proxy
    server.close()
    await asyncio.gather(*talking)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Each chunk back, until there is no more."""
    while chunk := await reader.read(1 << 16):
        writer.write(chunk)
        await writer.drain()
    writer.write_eof()


# --- when -----------------------------------------------------------------------------------------------------------


def test_chunk_leaves_its_delay_after_it_came() -> None:
    departures = Departures(Link(0.5))
    assert [departures.at_s(1000, now_s) for now_s in (10.0, 10.1, 12.0)] == [10.5, 10.6, 12.5]


def test_rate_holds_chunks_back_until_those_before_them_are_in() -> None:
    departures = Departures(Link(1.0, bytes_per_s=1000))
    assert [departures.at_s(size, now_s) for size, now_s in ((500, 0.0), (1000, 0.0), (500, 9.0))] == [1.5, 2.5, 10.5]


@pytest.mark.parametrize("seed", range(20))
def test_no_chunk_leaves_before_an_earlier_one(seed: int) -> None:
    chance = random.Random(seed)
    departures = Departures(Link(chance.random(), chance.choice([0, 1e3, 1e6])))
    now_s, left = 0.0, []
    for _ in range(200):
        now_s += chance.random() * chance.choice([0, 0.001, 1])
        left.append(departures.at_s(chance.randrange(1, 65536), now_s))
        assert left[-1] >= now_s
    assert left == sorted(left)


# --- what -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [Link(0.0), QUICK, Link(0.001, bytes_per_s=50e6)])
async def test_all_bytes_arrive_in_order_and_come_back(link: Link) -> None:
    sent = random.Random(1).randbytes(3_000_000)
    async with proxied(echo, link) as proxy:
        reader, writer = await asyncio.open_connection(HOST, proxy.port)

        async def send() -> None:
            for at in range(0, len(sent), 70_001):
                writer.write(sent[at : at + 70_001])
                await writer.drain()
            writer.write_eof()

        got, _ = await asyncio.gather(reader.read(-1), send())
        writer.close()
    assert hashlib.sha256(got).digest() == hashlib.sha256(sent).digest()


async def test_server_may_speak_first_and_both_at_once() -> None:
    heard = asyncio.get_running_loop().create_future()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO " * 1000)
        heard.set_result(await reader.readexactly(5000))

    async with proxied(speak) as proxy:
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        writer.write(b"HELLO" * 1000)
        assert await reader.readexactly(5000) == b"INFO " * 1000
        assert await heard == b"HELLO" * 1000
        writer.close()


async def test_connections_do_not_mix() -> None:
    async with proxied(echo) as proxy:

        async def ask(text: bytes) -> bytes:
            reader, writer = await asyncio.open_connection(HOST, proxy.port)
            writer.write(text)
            writer.write_eof()
            answer = await reader.read(-1)
            writer.close()
            return answer

        texts = [bytes([n]) * 10_000 for n in range(20)]
        assert await asyncio.gather(*map(ask, texts)) == texts


async def test_end_of_one_direction_is_passed_on_and_the_other_goes_on() -> None:
    async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%d bytes came" % len(await reader.read(-1)))

    async with proxied(answer_at_the_end) as proxy:
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        writer.write(b"x" * 100_000)
        writer.write_eof()
        assert await reader.read(-1) == b"100000 bytes came"
        writer.close()


async def test_connection_to_nowhere_is_closed() -> None:
    server = await asyncio.start_server(echo, HOST)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with DelayProxy(HOST, port, QUICK, QUICK) as proxy:
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        assert await reader.read(-1) == b""
        writer.close()


async def test_closing_the_proxy_closes_its_connections() -> None:
    async with proxied(echo) as proxy:
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        writer.write(b"once")
        assert await reader.readexactly(4) == b"once"
        await proxy.close()
        assert await reader.read(-1) == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HOST, proxy.port)
        writer.close()
