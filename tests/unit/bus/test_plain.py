"""The yardstick: plain nats-py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sawyer.bus.plain import PlainClient
from sawyer.bus.server import LocalServer
from sawyer.errors import NoAnswer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    with LocalServer.start(tmp_path / "nats") as made:
        yield made


async def test_every_subject_answers_with_as_many_bytes_as_it_names(server: LocalServer) -> None:
    asker, one, two = [await PlainClient.connect(server.url, name) for name in ("asker", "one", "two")]
    await one.answer("one")
    await two.answer("two")
    assert await asker.ask_all(["one.3", "two.5", "one.0"], b"?") == [bytes(3), bytes(5), b""]
    for client in (asker, one, two):
        await client.close()


async def test_round_that_nobody_answers_fails_typed(server: LocalServer) -> None:
    asker = await PlainClient.connect(server.url, "asker")
    with pytest.raises(NoAnswer):
        await asker.ask_all(["nobody.1"], b"?")
    await asker.close()
