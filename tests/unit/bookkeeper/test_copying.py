"""The copier over a real nats-server: the copy becomes the book row by row, whatever stopped it, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from sawyer.bookkeeper import copying
from sawyer.bookkeeper.copying import Copier, Copying, record_of, row_of
from sawyer.bookkeeper.journal_source import JetStreamSource, is_nats
from sawyer.bus import journal as journals
from sawyer.bus.connection import NatsBus
from sawyer.bus.journal import Journal
from sawyer.bus.server import LocalServer
from sawyer.contexts import NatsTarget
from sawyer.errors import CopyDiffers, NoCopy, UsageError
from sawyer.ids import NetworkId
from sawyer.ledger.entry import CHECKPOINT_STREAM, CHECKPOINT_TOPIC, StoredRow
from sawyer.ledger.store import Store

NETWORK = NetworkId("sawyer-net/3f9a1c22")
PATIENCE_S = 20.0


def row(number: int, text: str = "") -> StoredRow:
    """Every fourth row is a checkpoint."""
    if number % 4 == 0:
        return StoredRow(CHECKPOINT_STREAM, number // 4, CHECKPOINT_TOPIC, f"note {number}{text}".encode())
    return StoredRow(f"request:{number:032x}", 1, "tokens.reserved.v1", f"entry {number}{text}".encode())


def rows(first: int, last: int) -> list[StoredRow]:
    return [row(number) for number in range(first, last + 1)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store.sqlite(tmp_path / "book.sqlite", "NORMAL")
    yield made
    made.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    with LocalServer.start(tmp_path / "nats") as running:
        yield running


@pytest.fixture
async def journal(server: LocalServer) -> AsyncIterator[Journal]:
    bus = await NatsBus.connect(server.url, name="test")
    yield Journal(bus, NETWORK)
    await bus.close()


async def copied(journal: Journal) -> list[StoredRow]:
    return [row_of(each) async for page in journal.pages(0, await journal.size()) for each in page]


async def until_copied(journal: Journal, expected: list[StoredRow]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(NoCopy):
                if await journal.size() >= len(expected):
                    break
            await journal_changes(journal)
    assert await copied(journal) == expected


async def journal_changes(journal: Journal) -> None:
    with contextlib.suppress(NoCopy):
        await journal.changed(await journal.size(), 0.05)


async def test_copy_equals_the_book_row_by_row(store: Store, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "WINDOW_RECORDS", 7)
    monkeypatch.setattr(journals, "WINDOW_RECORDS", 5)
    store.append(rows(1, 40))
    copier = Copier(store, journal)
    await copier.locate()
    await copier.catch_up()
    store.append(rows(41, 50))
    await copier.catch_up()
    assert await copied(journal) == list(store.rows()) == rows(1, 50)
    assert copier.copied == 50


async def test_message_ids_are_leaf_hashes_and_hashes_of_notes(store: Store, journal: Journal) -> None:
    store.append(rows(1, 4))
    copier = Copier(store, journal)
    await copier.locate()
    await copier.catch_up()
    found = await journal.page(0)
    entries = [hashlib.sha256(b"\0" + each.state).hexdigest() for each in rows(1, 3)]
    assert [each.id for each in found] == [*entries, hashlib.sha256(row(4).state).hexdigest()]
    assert [each.word for each in found] == ["entry"] * 3 + ["checkpoint"]


async def test_new_copier_goes_on_where_the_copy_ends(store: Store, journal: Journal) -> None:
    for upto in (10, 11, 30):
        store.append(rows(len(list(store.rows())) + 1, upto))
        copier = Copier(store, journal)
        await copier.locate()
        await copier.catch_up()
        assert await copied(journal) == rows(1, upto)


async def test_copier_that_was_cut_off_within_a_batch_goes_on_there(store: Store, journal: Journal) -> None:
    store.append(rows(1, 30))
    await journal.ensure()
    await journal.append(0, [record_of(each) for each in rows(1, 17)])
    copier = Copier(store, journal)
    await copier.locate()
    assert copier.copied == 17
    await copier.catch_up()
    assert await copied(journal) == rows(1, 30)


async def test_copy_of_another_book_is_refused_and_left_alone(store: Store, journal: Journal) -> None:
    store.append(rows(1, 30))
    await journal.ensure()
    theirs = [*rows(1, 9), row(10, "another")]
    await journal.append(0, [record_of(each) for each in theirs])
    with pytest.raises(CopyDiffers, match=r"row 10 of SAWYER_LEDGER_.* differs from the book's") as error:
        await Copier(store, journal).locate()
    assert "--rebuild" in error.value.hint
    assert await copied(journal) == theirs


async def test_copy_that_is_longer_than_the_book_is_refused(store: Store, journal: Journal) -> None:
    store.append(rows(1, 5))
    await journal.ensure()
    await journal.append(0, [record_of(each) for each in rows(1, 9)])
    with pytest.raises(CopyDiffers, match=r"row 9 .* is not in the book: .* cut short"):
        await Copier(store, journal).locate()


async def test_copy_with_a_row_too_many_is_refused(store: Store, journal: Journal) -> None:
    store.append(rows(1, 9))
    await journal.ensure()
    await journal.append(0, [record_of(each) for each in (*rows(1, 5), row(99, "inserted"), *rows(6, 9))])
    with pytest.raises(CopyDiffers, match=r"row 10 .* which is number 9"):
        await Copier(store, journal).locate()


async def test_two_copiers_at_once_make_one_copy(
    store: Store, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "WINDOW_RECORDS", 3)
    store.append(rows(1, 60))
    copiers = [Copier(store, journal) for _ in range(3)]
    for copier in copiers:
        await copier.locate()
    await asyncio.gather(*(copier.catch_up() for copier in copiers))
    assert await copied(journal) == rows(1, 60)


async def test_copying_follows_commits(store: Store, server: LocalServer, journal: Journal, tmp_path: Path) -> None:
    store.append(rows(1, 4))
    keeping = Copying(tmp_path / "book.sqlite", NatsTarget(url=server.url), NETWORK)
    async with keeping.running():
        await until_copied(journal, rows(1, 4))
        for upto in (8, 12, 40):
            store.append(rows(upto - 3 if upto < 40 else 13, upto))
            keeping.wake()
            await until_copied(journal, rows(1, upto))


async def test_uncommitted_rows_are_never_copied(
    store: Store, server: LocalServer, journal: Journal, tmp_path: Path
) -> None:
    store.append(rows(1, 4))
    keeping = Copying(tmp_path / "book.sqlite", NatsTarget(url=server.url), NETWORK)
    async with keeping.running():
        await until_copied(journal, rows(1, 4))
        writer = sqlite3.connect(tmp_path / "book.sqlite", isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        for each in rows(5, 8):
            writer.execute(
                "INSERT INTO stored_events VALUES (?,?,?,?)", (each.stream, each.version, each.topic, each.state)
            )
        keeping.wake()
        await journal.changed(4, 0.2)
        assert await copied(journal) == rows(1, 4)
        writer.execute("COMMIT")
        writer.close()
        keeping.wake()
        await until_copied(journal, rows(1, 8))


async def test_copying_survives_its_server(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "FIRST_PAUSE_S", 0.02)
    store.append(rows(1, 200))
    listen = ""
    made: Copying | None = None
    async with contextlib.AsyncExitStack() as stack:
        for upto in (200, 300, 400):
            with LocalServer.start(tmp_path / "nats", **({"listen": listen} if listen else {})) as server:
                listen = server.url.removeprefix("nats://")
                bus = await NatsBus.connect(server.url, name="test")
                if made is None:
                    target = NatsTarget(url=server.url)
                    made = Copying(tmp_path / "book.sqlite", target, NETWORK)
                    await stack.enter_async_context(made.running())
                made.wake()
                await until_copied(Journal(bus, NETWORK), rows(1, upto))
                await bus.close()
                server.process.kill()
            store.append(rows(upto + 1, upto + 100))
            made.wake()


async def test_copy_that_vanished_is_made_anew(
    store: Store, server: LocalServer, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "FIRST_PAUSE_S", 0.02)
    store.append(rows(1, 20))
    keeping = Copying(tmp_path / "book.sqlite", NatsTarget(url=server.url), NETWORK)
    async with keeping.running():
        await until_copied(journal, rows(1, 20))
        await journal.destroy()
        store.append(rows(21, 24))
        keeping.wake()
        await until_copied(journal, rows(1, 24))


async def test_server_without_jetstream_is_told_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = asyncio.Event()

    class Counted(Copying):
        async def _copy(self) -> None:
            counts.append(1)
            if len(counts) > 3:
                tries.set()
            await super()._copy()

    counts: list[int] = []
    monkeypatch.setattr("sawyer.bus.server._CONFIG", "listen: {listen}\nports_file_dir: {folder}\n# {store}\n")
    monkeypatch.setattr(copying, "FIRST_PAUSE_S", 0.01)
    with LocalServer.start(tmp_path / "plain") as server, caplog.at_level(logging.WARNING):
        counted = Counted(tmp_path / "book.sqlite", NatsTarget(url=server.url), NETWORK)
        async with counted.running(), asyncio.timeout(PATIENCE_S):
            await tries.wait()
    told = [each.getMessage() for each in caplog.records if each.name == copying.log.name]
    assert len(told) == 1
    assert "no JetStream" in told[0]


async def test_record_named_otherwise_than_its_row_is_refused() -> None:
    made = record_of(row(1))
    assert row_of(made) == row(1)
    for wrong in ({"id": "00" * 32}, {"word": "checkpoint"}, {"data": b"other"}, {"stream": CHECKPOINT_STREAM}):
        with pytest.raises(CopyDiffers, match="is named"):
            row_of(type(made)(**{**{name: getattr(made, name) for name in made.__slots__}, **wrong}))


class TestSource:
    """The copy as a source of a replay."""

    @pytest.fixture
    def source(self, server: LocalServer) -> Callable[[], JetStreamSource]:
        return lambda: JetStreamSource(NatsTarget(url=server.url), NETWORK)

    async def test_source_gives_the_rows_up_to_the_newest_checkpoint(
        self, source: Callable[[], JetStreamSource], journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journals, "WINDOW_RECORDS", 7)
        await journal.ensure()
        await journal.append(0, [record_of(each) for each in rows(1, 42)])
        assert await asyncio.to_thread(lambda: (source().size_rows(), list(source().rows()))) == (40, rows(1, 40))

    async def test_source_is_one_snapshot(self, source: Callable[[], JetStreamSource], journal: Journal) -> None:
        await journal.ensure()
        await journal.append(0, [record_of(each) for each in rows(1, 8)])
        reading = source().rows()
        found = [await asyncio.to_thread(next, reading)]
        await journal.append(8, [record_of(each) for each in rows(9, 16)])
        found += await asyncio.to_thread(list, reading)
        assert found == rows(1, 8)

    async def test_only_copy_is_found_without_its_name(
        self, journal: Journal, server: LocalServer, tmp_path: Path
    ) -> None:
        read = lambda: list(JetStreamSource(NatsTarget(url=server.url)).rows())  # noqa: E731
        with pytest.raises(NoCopy, match="no copy of a book"):
            await asyncio.to_thread(read)
        await journal.ensure()
        await journal.append(0, [record_of(each) for each in rows(1, 4)])
        assert await asyncio.to_thread(read) == rows(1, 4)
        await Journal(journal._bus, NetworkId("other.net/00")).ensure()
        with pytest.raises(UsageError, match=f"2 books: other.net/00, {NETWORK}"):
            await asyncio.to_thread(read)

    async def test_source_without_a_copy_says_so(self, source: Callable[[], JetStreamSource]) -> None:
        with pytest.raises(NoCopy, match="no stream SAWYER_LEDGER_sawyer-net_3f9a1c22"):
            await asyncio.to_thread(lambda: list(source().rows()))

    async def test_source_outlives_a_server_that_restarts(
        self, journal: Journal, tmp_path: Path, server: LocalServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journals, "WINDOW_RECORDS", 5)
        monkeypatch.setattr(journals, "PAGE_TIMEOUT_S", 0.5)
        await journal.ensure()
        await journal.append(0, [record_of(each) for each in rows(1, 40)])
        reading = JetStreamSource(NatsTarget(url=server.url), NETWORK).rows()
        found = [await asyncio.to_thread(next, reading)]
        server.process.kill()
        server.process.wait()
        with LocalServer.start(tmp_path / "nats", listen=server.url.removeprefix("nats://")):
            found += await asyncio.to_thread(list, reading)
        assert found == rows(1, 40)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("nats://h:4222", True), ("tls://h", True), ("wss://h", True), ("postgresql://h/b", False), ("nats", False)],
)
def test_address_of_a_nats_server_is_told_from_other_books(text: str, expected: bool) -> None:
    assert is_nats(text) is expected
