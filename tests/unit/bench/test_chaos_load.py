"""The load of a chaos run, where there is no network: it says so once, as what it is."""

from __future__ import annotations

import asyncio

import pytest

from sawyer.bench.chaos_load import Asked, Known, Load
from sawyer.errors import ServerUnreachable
from sawyer.identity.keys import Key


async def test_load_without_a_server_raises_what_its_streams_met() -> None:
    load = Load("nats://127.0.0.1:1", "bench", Key.generate(), "austen-8m", (Known("It was", (1,)),), 3, 4)
    asked: list[Asked] = []
    with pytest.raises(ServerUnreachable):
        await load.run(asyncio.Event(), asyncio.Event(), asked)
    assert asked == []
