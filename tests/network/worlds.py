"""A network as a client sees it, real or `sawyer.testing.StubNetwork`, and what may befall it: for tests of both."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from sawyer.client.aio import AsyncClient
from sawyer.errors import ExpertUnavailable
from sawyer.identity.keys import Key
from sawyer.model.catalog import DEMO_MODEL
from sawyer.testing import StubNetwork

PROMPT = "It was a"
LONG = 400


class World(Protocol):
    """A network, real or not, and what may befall it."""

    model: str

    def client(self, account: str = "alice", key: Key | None = None) -> contextlib.AbstractAsyncContextManager: ...

    def pause_after(self, pieces: int) -> None: ...

    def go_on(self) -> None: ...

    async def break_experts(self) -> None: ...

    async def stop_router(self) -> None: ...

    async def start_router(self) -> None: ...


class RealWorld:
    model = DEMO_MODEL

    def __init__(self, network) -> None:
        self._network = network

    def client(self, account: str = "alice", key: Key | None = None):
        return self._network.client(account, key)

    def pause_after(self, pieces: int) -> None:
        """A real model is slow enough."""

    def go_on(self) -> None: ...

    async def break_experts(self) -> None:
        for node in ("node-1", "node-2"):
            await self._network.parts[node].vanish()

    async def stop_router(self) -> None:
        await self._network.parts["router-1"].stop()

    async def start_router(self) -> None:
        await self._network.add_router()


class StubWorld:
    def __init__(self, stub: StubNetwork) -> None:
        self._stub = stub
        self._keys: dict[str, Key] = {}
        self._pause_after = LONG
        self._gate = threading.Event()
        self._broken = False
        self.model = stub.model
        stub.answering = lambda prompt, params: self._speak()

    def _speak(self) -> Iterator[str]:
        for count in range(LONG):
            if count >= self._pause_after:
                assert self._gate.wait(30)
            if self._broken:
                raise ExpertUnavailable("layer 0: no replica answers", experts=((0, 1), (0, 3)))
            yield f"word{count} "

    @contextlib.asynccontextmanager
    async def client(self, account: str = "alice", key: Key | None = None) -> AsyncIterator[AsyncClient]:
        if account == "alice" and key is None:
            made = self._stub.async_client(timeout_s=20.0)
        else:
            key = key or self._keys.setdefault(account, Key.generate())
            made = AsyncClient(account=account, key=key, bus=self._stub.bus(), timeout_s=20.0)
        async with made as client:
            yield client

    def pause_after(self, pieces: int) -> None:
        self._pause_after = pieces

    def go_on(self) -> None:
        self._gate.set()

    async def break_experts(self) -> None:
        self._broken = True

    async def stop_router(self) -> None:
        await asyncio.to_thread(self._stub.stop_router)

    async def start_router(self) -> None:
        await asyncio.to_thread(self._stub.start_router)


async def tokens(client: AsyncClient) -> tuple[int, int]:
    """(available, held)."""
    balance = await client.balance()
    return balance.available, balance.held
