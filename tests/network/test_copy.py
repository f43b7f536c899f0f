"""The copy in JetStream and a follower of it, both sides as real processes that are killed at any moment under load: in
the end the copy is the book, row by row, and the follower's views are the bookkeeper's."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sawyer.bookkeeper.copying import Copier, Copying, record_of, row_of
from sawyer.bookkeeper.journal_source import JetStreamSource
from sawyer.bus import calls
from sawyer.bus import journal as journals
from sawyer.bus.calls import record
from sawyer.bus.connection import NatsBus
from sawyer.bus.journal import Journal
from sawyer.bus.server import LocalServer
from sawyer.cli.founding import pinned_network
from sawyer.cli.parts import READY
from sawyer.contexts import NatsTarget
from sawyer.errors import UnreachableError
from sawyer.home import Home, Pin
from sawyer.identity.keys import Key, load
from sawyer.ids import NetworkId
from sawyer.ledger.book import Book
from sawyer.ledger.checkpoint import vkey_of
from sawyer.ledger.commands import OPERATOR_NAME, check, command
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.replay import replay
from sawyer.ledger.source import SQLiteSource
from sawyer.ledger.store import Store
from sawyer.schemas.events import AccountOpened, NetworkFounded
from sawyer.schemas.messages import LedgerCommand

PATIENCE_S = 60.0
CLIENTS = 8


@dataclass
class Ground:
    """A home with a founded network, its server, and the processes that run on it."""

    home: Home
    pin: Pin
    server: LocalServer
    bus: NatsBus
    accounts: itertools.count = field(default_factory=itertools.count)
    running: list[asyncio.subprocess.Process] = field(default_factory=list)

    @property
    def network(self) -> NetworkId:
        return NetworkId(self.pin.network)

    @property
    def journal(self) -> Journal:
        return Journal(self.bus, self.network)

    async def start(self, *words: str | Path) -> asyncio.subprocess.Process:
        where = ("--home", str(self.home.path), "--nats", self.server.url)
        made = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sawyer", *map(str, words), *where,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if not name.startswith("SAWYER_")},
        )  # fmt: skip
        self.running.append(made)
        return made

    async def start_bookkeeper(self) -> asyncio.subprocess.Process:
        made = await self.start("bookkeeper")
        said = await made.stdout.readline()
        assert said.startswith(READY.encode()), (await made.communicate())[1].decode()
        return made

    async def start_follower(self, views: Path) -> asyncio.subprocess.Process:
        """Returns when it follows."""
        made = await self.start("ledger", "follow", "--views", views)
        said = await made.stderr.readline()
        assert said.startswith(b"following"), said
        return made

    async def found(self) -> None:
        await record(self.bus, self.founding(), patience_s=PATIENCE_S)

    async def open_accounts(self, count: int) -> None:
        """So many entries, by several clients at once."""
        turns = iter(range(count))

        async def client() -> None:
            for _ in turns:
                await record(self.bus, self.account(), patience_s=PATIENCE_S)

        await asyncio.gather(*(client() for _ in range(CLIENTS)))

    def write(self, count: int) -> None:
        """A founded book with so many accounts, written here: no bookkeeper runs."""
        key = load(self.home.ledger_key)
        book = Book.open(self.home.book, network=self.network, operator=self.pin.operator, ledger_key=key)
        for asked in (self.founding(), *(self.account() for _ in range(count))):
            assert [reply.error for reply in book.commit([check(asked)], 1)] == [None]
        book.close()

    def founding(self) -> LedgerCommand:
        operator = load(self.home.operator_key)
        body = NetworkFounded(
            network=self.network, operator=operator.id, ledger_vkey=self.pin.ledger_vkey, mode="test", founded_ms=1
        )
        return command(body, OPERATOR_NAME, operator)

    def account(self) -> LedgerCommand:
        number = next(self.accounts)
        key = Key.from_raw(number.to_bytes(32, "big"))
        body = AccountOpened(network=self.network, account=f"account-{number}", key=key.id)
        return command(body, body.account, key)

    async def copy(self) -> None:
        """The whole book, without a bookkeeper."""
        store = Store.sqlite(self.home.book)
        copier = Copier(store, self.journal)
        await copier.locate()
        await copier.catch_up()
        store.close()

    async def copied(self) -> list[StoredRow]:
        """What the copy holds once it has all of the book."""
        async with asyncio.timeout(PATIENCE_S):
            while (size := await self.size()) < len(self.book()):
                with contextlib.suppress(UnreachableError):
                    await self.journal.changed(size, 0.1)
        return [row_of(each) async for page in self.journal.pages(0, size) for each in page]

    async def size(self) -> int:
        """Of the copy, as far as it can be asked."""
        try:
            return await self.journal.size()
        except UnreachableError:
            return 0

    def book(self) -> list[StoredRow]:
        store = Store.sqlite(self.home.book)
        try:
            return list(store.rows())
        finally:
            store.close()


@pytest.fixture(autouse=True)
def _ask_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process was asked is asked again: it is recorded once."""
    monkeypatch.setattr(calls, "RECORD_FIRST_S", 0.5)
    monkeypatch.setattr(journals, "API_TIMEOUT_S", 1.0)


@pytest.fixture
async def ground(tmp_path: Path) -> AsyncIterator[Ground]:
    home = Home(tmp_path / "home")
    pin = pinned_network(home)
    with LocalServer.start(tmp_path / "nats") as server:
        bus = await NatsBus.connect(server.url, name="test")
        made = Ground(home, pin, server, bus)
        yield made
        for process in made.running:
            if process.returncode is None:
                process.kill()
            await process.communicate()
        await bus.close()


async def stop(process: asyncio.subprocess.Process) -> None:
    process.terminate()
    await process.communicate()


def view_rows(path: Path) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT view, key, row FROM view_rows ORDER BY view, key").fetchall()


async def test_copy_and_followed_views_survive_kills_of_both_sides(ground: Ground, tmp_path: Path) -> None:
    chance, mine = random.Random(4), tmp_path / "mine.sqlite"  # the moments differ anyway: the load is real
    bookkeeper = await ground.start_bookkeeper()
    await ground.found()
    await ground.copied()
    follower = await ground.start_follower(mine)
    for kill_follower in (True, False, True, False):
        load_running = asyncio.create_task(ground.open_accounts(120))
        upto = await ground.size() + chance.randrange(20, 120)
        async with asyncio.timeout(PATIENCE_S):
            while (size := await ground.size()) < upto:
                with contextlib.suppress(UnreachableError):
                    await ground.journal.changed(size, 0.05)
        if kill_follower:
            follower.kill()
            await follower.wait()
            follower = await ground.start_follower(mine)
        else:
            bookkeeper.kill()
            await bookkeeper.wait()
            bookkeeper = await ground.start_bookkeeper()
        await load_running
    copied = await ground.copied()
    await stop(bookkeeper)
    await stop(follower)
    once = await ground.start("ledger", "follow", "--views", mine, "--once")
    assert (await once.communicate(), once.returncode)[1] == 0
    assert copied == ground.book()
    assert view_rows(mine) == view_rows(ground.home.views)


async def test_server_that_is_killed_and_comes_back_loses_nothing(ground: Ground, tmp_path: Path) -> None:
    mine = tmp_path / "mine.sqlite"
    bookkeeper = await ground.start_bookkeeper()
    await ground.found()
    await ground.copied()
    follower = await ground.start_follower(mine)
    listen = ground.server.url.removeprefix("nats://")
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            load_running = asyncio.create_task(ground.open_accounts(60))
            await ground.journal.changed(await ground.size(), PATIENCE_S)
            ground.server.process.kill()
            ground.server.process.wait()
            ground.server = stack.enter_context(LocalServer.start(tmp_path / "nats", listen=listen))
            await load_running
        copied = await ground.copied()
        await stop(bookkeeper)
        await stop(follower)
        once = await ground.start("ledger", "follow", "--views", mine, "--once")
        assert (await once.communicate(), once.returncode)[1] == 0
    assert copied == ground.book()
    assert view_rows(mine) == view_rows(ground.home.views)


async def test_copy_replays_as_the_book_does(ground: Ground) -> None:
    ground.write(40)
    await ground.copy()
    source = JetStreamSource(NatsTarget(url=ground.server.url), ground.network)
    trusted = {"key": ground.pin.ledger_vkey, "operator": ground.pin.operator}
    copy, book = [await asyncio.to_thread(replay, each, **trusted) for each in (source, SQLiteSource(ground.home.book))]
    assert (copy.problem, copy.entries) == (None, 41)
    assert (copy.entries, copy.root, copy.digests) == (book.entries, book.root, book.digests)


async def test_network_without_jetstream_keeps_its_book_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sawyer.bus.server._CONFIG", "listen: {listen}\nports_file_dir: {folder}\n# {store}\n")
    home = Home(tmp_path / "home")
    with LocalServer.start(tmp_path / "plain") as server:
        bus = await NatsBus.connect(server.url, name="test")
        ground = Ground(home, pinned_network(home), server, bus)
        bookkeeper = await ground.start_bookkeeper()
        await ground.found()
        await ground.open_accounts(10)
        said = b""
        async with asyncio.timeout(PATIENCE_S):
            while b"not copied" not in said:
                said = await bookkeeper.stderr.readline()
        assert b"this NATS server has no JetStream" in said
        await stop(bookkeeper)
        await bus.close()
        assert len([row for row in ground.book() if not row.is_checkpoint]) == 11


async def test_interrupted_follower_says_where_it_is_and_exits_130(ground: Ground, tmp_path: Path) -> None:
    await ground.start_bookkeeper()
    await ground.found()
    await ground.copied()
    follower = await ground.start_follower(tmp_path / "mine.sqlite")
    assert await follower.stderr.readline() == b"entry 1\n"
    follower.send_signal(signal.SIGINT)
    _, said = await follower.communicate()
    assert follower.returncode == 130
    assert b"the views are at entry 1" in said


async def said_by(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_copy_command_brings_the_copy_up_to_the_book(ground: Ground) -> None:
    ground.write(20)
    book = ground.book()
    await ground.journal.ensure()
    await ground.journal.append(0, [record_of(row) for row in book[:5]])
    code, out, _ = await said_by(await ground.start("ledger", "copy", "--json"))
    assert (code, json.loads(out)["rows"], json.loads(out)["added"]) == (0, len(book), len(book) - 5)
    assert await ground.copied() == book
    code, out, _ = await said_by(await ground.start("ledger", "copy"))
    assert (code, out.startswith(f"{len(book)} rows of {ground.network}"), "up to date" in out) == (0, True, True)


async def test_copy_of_another_book_is_replaced_only_when_told(
    ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    ground.write(3)
    await ground.journal.ensure()
    await ground.journal.append(0, [record_of(ground.book()[0]._replace(state=b"another book"))])
    async with Copying(ground.home.book, NatsTarget(url=ground.server.url), ground.network).running():
        async with asyncio.timeout(PATIENCE_S):
            while "not copied to JetStream: row 1 of" not in caplog.text:
                await ground.journal.changed(1, 0.05)
    code, _, err = await said_by(await ground.start("ledger", "copy"))
    assert (code, "differs from the book's" in err, "--rebuild" in err) == (3, True, True)
    assert await ground.size() == 1
    code, out, _ = await said_by(await ground.start("ledger", "copy", "--rebuild"))
    assert (code, "made anew" in out) == (0, True)
    assert await ground.copied() == ground.book()


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.sqlite")}


async def test_follower_refuses_what_it_does_not_trust(ground: Ground, tmp_path: Path) -> None:
    ground.write(3)
    await ground.copy()
    mine, stranger = tmp_path / "mine.sqlite", vkey_of(ground.network, Key.from_raw(bytes([9]) * 32))
    follow = ("ledger", "follow", "--once", "--views", mine)
    code, _, err = await said_by(await ground.start(*follow, "--key", stranger))
    assert (code, "founding of a network by the key you trust" in err) == (3, True)
    own, before = ground.home.path, everything(ground.home.path)
    link = tmp_path / "link.sqlite"
    link.hardlink_to(ground.home.book)
    (tmp_path / "snapshot.bin").symlink_to(own / "snapshot.bin")
    for views in (own / "views.sqlite", own / "book.sqlite", own / "views.sqlite-wal", link, tmp_path / "snapshot.bin"):
        code, _, err = await said_by(await ground.start(*follow[:-1], views))
        assert (code, "belongs to the home" in err) == (2, True), views
    code, _, err = await said_by(await ground.start(*follow[:-1], tmp_path / "typo" / "mine.sqlite"))
    assert (code, "there is no folder" in err, (tmp_path / "typo").exists()) == (2, True, False)
    (tmp_path / "photos.sqlite").write_bytes(b"")
    with contextlib.closing(sqlite3.connect(tmp_path / "photos.sqlite")) as connection:
        connection.execute("CREATE TABLE photos (a)")
    photos = (tmp_path / "photos.sqlite").read_bytes()
    code, _, err = await said_by(await ground.start(*follow[:-1], tmp_path / "photos.sqlite"))
    assert (code, "photos.sqlite holds no views" in err, "views.sqlite" in err) == (3, True, False)
    assert (tmp_path / "photos.sqlite").read_bytes() == photos
    assert everything(own) == before
    await ground.journal.destroy()
    code, _, err = await said_by(await ground.start(*follow))
    assert (code, "there is no stream" in err) == (4, True)
