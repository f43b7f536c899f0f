"""Two participants on a bus in memory: one asks, one is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sawyer.bus.memory import MemoryBus, MemoryNetwork


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
async def asker(network: MemoryNetwork) -> AsyncIterator[MemoryBus]:
    bus = MemoryBus(network)
    yield bus
    await bus.close()


@pytest.fixture
async def asked(network: MemoryNetwork) -> AsyncIterator[MemoryBus]:
    bus = MemoryBus(network)
    yield bus
    await bus.close()
