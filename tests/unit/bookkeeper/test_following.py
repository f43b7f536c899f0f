"""A follower whose copy becomes shorter than what it has read: it says so at once, and does not wait for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from sawyer.bookkeeper import following
from sawyer.bookkeeper.copying import record_of
from sawyer.bookkeeper.following import Following
from sawyer.bus.connection import NatsBus
from sawyer.bus.journal import Journal
from sawyer.bus.server import LocalServer
from sawyer.contexts import NatsTarget
from sawyer.errors import CopyDiffers
from sawyer.ids import NetworkId
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.follow import Follower
from sawyer.ledger.store import Store

PATIENCE_S = 30.0


@pytest.fixture
def rows(scene, tmp_path: Path) -> list[StoredRow]:
    book = scene.open(tmp_path / "writer")
    scene.work(book, 4)
    book.close()
    store = Store.sqlite(tmp_path / "writer" / "book.sqlite")
    found = list(store.rows())
    store.close()
    return found


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[LocalServer]:
    with LocalServer.start(tmp_path / "nats") as made:
        yield made


@pytest.fixture
async def journal(server: LocalServer, scene) -> AsyncIterator[Journal]:
    bus = await NatsBus.connect(server.url, name="test")
    yield Journal(bus, NetworkId(scene.network))
    await bus.close()


@pytest.fixture
def follower(scene, tmp_path: Path):
    made = Follower(tmp_path / "mine.sqlite", scene.vkey, scene.operator)
    yield made
    made.close()


async def copy_anew(journal: Journal, rows: list[StoredRow]) -> None:
    await journal.destroy()
    await journal.ensure()
    await journal.append(0, [record_of(row) for row in rows])


async def until_told(told: asyncio.Queue[str], words: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while words not in await told.get():
            pass


@pytest.fixture
async def told() -> asyncio.Queue[str]:
    return asyncio.Queue()


@pytest.fixture
async def running(journal, rows, follower, server, told, monkeypatch) -> AsyncIterator[asyncio.Task[None]]:
    """One that has taken the whole copy."""
    monkeypatch.setattr(following, "LOOK_EVERY_S", 0.05)
    await copy_anew(journal, rows)
    task = asyncio.create_task(Following(follower, NatsTarget(url=server.url), told.put_nowait).run())
    async with asyncio.timeout(PATIENCE_S):
        while follower.rows < len(rows):
            await told.get()
    yield task
    task.cancel()
    with suppress(asyncio.CancelledError, CopyDiffers):
        await task


@pytest.mark.parametrize("left", [0, 5])
async def test_copy_that_is_cut_is_told_at_once_and_gone_on_with_when_it_is_whole_again(
    running, journal: Journal, rows: list[StoredRow], told: asyncio.Queue[str], left: int
) -> None:
    await copy_anew(journal, rows[:left])
    await until_told(told, f"the copy has {left} rows, and {len(rows)} were read of it: it was cut, or lags")
    await journal.append(left, [record_of(row) for row in rows[left:]])
    async with asyncio.timeout(PATIENCE_S):
        while await told.get():
            pass
    assert not running.done()


async def test_copy_that_stays_cut_is_wrong(
    running, journal: Journal, rows: list[StoredRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "SHORT_FOR_S", 0.2)
    await copy_anew(journal, rows[:5])
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(CopyDiffers, match="it was cut") as caught:
            await running
    assert "sawyer ledger copy" in caught.value.hint


async def test_copy_that_ends_before_the_views_is_told_and_is_wrong_if_it_stays_so(
    journal, rows, follower, server, told, scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The views are of an earlier run, so nothing of this copy was read before."""
    monkeypatch.setattr(following, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(following, "SHORT_FOR_S", 0.2)
    follower.take(rows)
    follower.close()
    again = Follower(follower._views._path, scene.vkey, scene.operator)
    await copy_anew(journal, rows[:6])
    target = NatsTarget(url=server.url)
    with pytest.raises(CopyDiffers, match="the copy ends at entry") as once:
        await Following(again, target, told.put_nowait).once()
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(CopyDiffers) as caught:
            await Following(again, target, told.put_nowait).run()
    assert caught.value.message == once.value.message
    await until_told(told, "these views are at")
    again.close()
