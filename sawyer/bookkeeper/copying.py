"""Committed rows -> JetStream. The database is the book; the copy may lag, never lead: rows are read from the store,
after their commit, and never taken from the writer's memory. Owns when to copy and whether what is there is a copy of
this book; a copy that is not is never overwritten.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from sawyer.bus.connection import NatsBus
from sawyer.bus.journal import WINDOW_RECORDS, Journal, Record
from sawyer.contexts import NatsTarget
from sawyer.errors import BookCorrupt, CopyDiffers, SawyerError
from sawyer.ids import NetworkId
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.merkle import leaf_hash
from sawyer.ledger.store import Store, open_store

CHECK_EVERY_S: Final = 60.0
"""Where nothing is written, it still looks whether the copy is there."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0

log = logging.getLogger(__name__)


class Copier:
    """Copies one book into one journal. `copied` is how many rows the journal has."""

    def __init__(self, store: Store, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._last: StoredRow | None = None
        self.copied = 0

    async def locate(self) -> None:
        """Find where the copy stands, and make the stream if there is none. Raises NoCopy without JetStream,
        CopyDiffers if the copy's newest row is not the row of that number in the book."""
        await self._journal.ensure()
        last = await self._journal.last()
        if last is None:
            self.copied, self._last = 0, None
            return
        number, record = last
        row = row_of(record)
        await asyncio.to_thread(self._check, number, row)
        self.copied, self._last = number, row

    async def catch_up(self) -> None:
        """Copy what the book has and the journal has not; `locate` comes first. Raises UnreachableError, SawyerError:
        then it is to be located again."""
        rows = await asyncio.to_thread(self._rows)
        while page := await asyncio.to_thread(lambda: list(islice(rows, WINDOW_RECORDS))):
            await self._journal.append(self.copied, [record_of(row) for row in page])
            self.copied, self._last = self.copied + len(page), page[-1]

    def _rows(self) -> Iterator[StoredRow]:
        """What the book has after the copy's newest row."""
        last = self._last
        return self._store.rows(self._store.number(last.stream, last.version) if last is not None else 0)

    def _check(self, number: int, row: StoredRow) -> None:
        """Numbers in the table equal the copy's, or run ahead of them where a database leaves gaps; never behind."""
        name = f"row {number} of {self._journal.stream} (version {row.version} of {row.stream})"
        try:
            at, held = self._store.number(row.stream, row.version), self._store.row(row.stream, row.version)
        except BookCorrupt as error:
            raise CopyDiffers(
                f"{name} is not in the book: the copy is of another book, or the book was cut short ({error.message})"
            ) from error
        if held != row or at < number:
            raise CopyDiffers(f"{name} differs from the book's, which is number {at}")


class Copying:
    """Keeps a copy up to date, beside a writer that it never holds up: a connection of its own, and each failure is
    told once and tried again."""

    def __init__(self, book: Path | str, target: NatsTarget, network: NetworkId) -> None:
        """`book` is where the book lies, as open_store takes it."""
        self._book = book
        self._target = target
        self._network = network
        self._wake = asyncio.Event()
        self._told = ""

    def wake(self) -> None:
        """There are new rows in the book."""
        self._wake.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """It runs beside what is inside."""
        task = asyncio.create_task(self.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def run(self) -> None:
        """Until it is cancelled."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._copy()
            except SawyerError as error:
                pause_s = FIRST_PAUSE_S if self._told == "" else min(2 * pause_s, LONGEST_PAUSE_S)
                self._tell(error)
            except Exception:
                log.exception("copying the book failed; it goes on without its copy")
            await asyncio.sleep(pause_s)

    async def _copy(self) -> None:
        """Until something fails."""
        async with contextlib.AsyncExitStack() as stack:
            bus = await NatsBus.connect(self._target, name="bookkeeper-copy")
            stack.push_async_callback(bus.close)
            store = await asyncio.to_thread(open_store, self._book)
            stack.callback(store.close)
            copier = Copier(store, Journal(bus, self._network))
            while True:
                self._wake.clear()
                await copier.locate()
                await copier.catch_up()
                if self._told:
                    log.warning("the copy in JetStream is up to date again, with %d rows", copier.copied)
                    self._told = ""
                await self._copy_each(copier)

    async def _copy_each(self, copier: Copier) -> None:
        """What is committed from now on; returns where nothing was for a while."""
        while True:
            try:
                async with asyncio.timeout(CHECK_EVERY_S):
                    await self._wake.wait()
            except TimeoutError:
                return
            self._wake.clear()
            await copier.catch_up()

    def _tell(self, error: SawyerError) -> None:
        if error.message != self._told:
            log.warning("the book is not copied to JetStream: %s. %s", error.message, error.hint)
            self._told = error.message


def record_of(row: StoredRow) -> Record:
    """A row as the journal holds it. Its id is the leaf hash of an entry, the SHA-256 of a checkpoint's note."""
    if row.is_checkpoint:
        return Record(
            hashlib.sha256(row.state).hexdigest(), "checkpoint", row.stream, row.version, row.topic, row.state
        )
    return Record(leaf_hash(row.state).hex(), "entry", row.stream, row.version, row.topic, row.state)


def row_of(record: Record) -> StoredRow:
    """The row in a record. Raises CopyDiffers if the record names it otherwise than the row itself."""
    row = StoredRow(record.stream, record.version, record.topic, record.data)
    named = record_of(row)
    if (named.id, named.word) != (record.id, record.word):
        raise CopyDiffers(f"a record of {record.stream} is named {record.word} {record.id}, expected {named.id}")
    return row
