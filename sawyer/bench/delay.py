"""A TCP proxy that is far away: what comes in goes out later, in order, unchanged. Needs no root. Models round-trip
time and, if asked to, a rate; no loss and no slow start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from sawyer.loop import run as run_on_loop

READY: Final = "ready: "
MODULE: Final = "sawyer.bench.delay"
CHUNK_BYTES: Final = 64 * 1024
CHUNKS_LIMIT: Final = 4096
"""On their way in one direction of one connection; beyond these nothing more is read, as with a full link."""
HOST: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Link:
    """One direction: each byte takes `delay_s`, and at most `bytes_per_s` go in (0: as many as come)."""

    delay_s: float
    bytes_per_s: float = 0.0


class Departures:
    """When each chunk leaves a link: never before one that came earlier. No IO; times in seconds."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._free_s = 0.0

    def at_s(self, size_bytes: int, now_s: float) -> float:
        """Of the next chunk, which comes now."""
        taken_s = size_bytes / self._link.bytes_per_s if self._link.bytes_per_s else 0.0
        self._free_s = max(self._free_s, now_s) + taken_s
        return self._free_s + self._link.delay_s


class DelayProxy:
    """Listens on loopback (or `listen`) and passes every connection on to `host`:`port`; use it as an async context
    manager. `there`: from whoever connects to the target; `back`: the other direction."""

    def __init__(self, host: str, port: int, there: Link, back: Link, *, listen: str = HOST) -> None:
        self._listen = listen
        self._target = (host, port)
        self._there, self._back = there, back
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()
        self.port = 0

    async def __aenter__(self) -> DelayProxy:
        self._server = await asyncio.start_server(self._connected, self._listen)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection, and take no more. Idempotent."""
        assert self._server is not None
        self._server.close()
        for each in self._connections:
            each.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        opened = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            opened.append(far_writer)
            await _both(_carry(reader, far_writer, self._there), _carry(far_reader, writer, self._back))
        except OSError:
            pass  # an end is gone, or was never there: the other end sees its connection close
        except asyncio.CancelledError:
            pass  # the proxy is closed; a callback of a server has nobody to tell
        finally:
            self._connections.discard(task)
            for each in opened:
                each.close()


async def _both(there: Coroutine[Any, Any, None], back: Coroutine[Any, Any, None]) -> None:
    """Until both directions are at their end, or one of them fails. Raises OSError."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(there)
            group.create_task(back)
    except* OSError as errors:
        raise ConnectionError(str(errors.exceptions[0])) from errors


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
    """One direction, until its end of file has gone out, too. Raises OSError."""
    on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_LIMIT)
    now_s, departures = asyncio.get_running_loop().time, Departures(link)

    async def take() -> None:
        chunk = b"begun"
        while chunk:
            chunk = await reader.read(CHUNK_BYTES)
            await on_the_way.put((departures.at_s(len(chunk), now_s()), chunk))

    async def give() -> None:
        while True:
            due_s, chunk = await on_the_way.get()
            await asyncio.sleep(max(0.0, due_s - now_s()))
            if not chunk:
                with contextlib.suppress(OSError):  # already closed from the other side
                    writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()

    await _both(take(), give())


async def main(host: str, port: str, delay_ms: str, bits_per_s: str) -> None:
    """A proxy as a program of its own, the same link both ways, until SIGTERM. Prints its port when it is ready."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    link = Link(float(delay_ms) / 1000, float(bits_per_s) / 8)
    async with DelayProxy(host, int(port), link, link) as proxy:
        sys.stdout.write(f"{READY}{proxy.port}\n")
        sys.stdout.flush()
        await stopped.wait()


if __name__ == "__main__":
    run_on_loop(main(*sys.argv[1:]), os.environ.get("SAWYER_LOOP", "auto"))
