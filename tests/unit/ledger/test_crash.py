"""Power cuts, as near as a process can come: SIGKILL of a real writer under load, and a disk that fails."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest

from sawyer.errors import SawyerError
from sawyer.ledger.book import Book
from sawyer.ledger.entry import StoredRow, decode_entry
from sawyer.ledger.replay import replay
from sawyer.ledger.source import Source, SQLiteSource, source_of
from sawyer.ledger.store import MemoryStore, Store
from sawyer.ledger.views import Views

T = TypeVar("T")

WRITER = Path(__file__).with_name("crash_writer.py")
ROUNDS = int(os.environ.get("SAWYER_CRASH_ROUNDS", "7"))
"""Each starts a process: some seconds in all. SAWYER_CRASH_ROUNDS=200 is for a night."""


def writer(folder: Path, first: int, url: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, WRITER, str(folder), str(first), url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def told(lines: list[str]) -> dict[int, str]:
    """What the clients were told: seq -> leaf. The last line may be cut."""
    return {int(seq): leaf for seq, leaf in (line.split() for line in lines if line.endswith("\n"))}


def kill_under_load(folder: Path, first: int, acknowledgements: int, url: str = "") -> dict[int, str]:
    """Run a writer, and kill it after so many lines, wherever it is then. What it had acknowledged."""
    with writer(folder, first, url) as running:
        assert running.stdout is not None
        lines = [running.stdout.readline() for _ in range(acknowledgements)]
        running.kill()
        lines += running.stdout.readlines()
    return told(lines)


def stored(source: Source) -> dict[int, str]:
    entries = (decode_entry(row.state) for row in source.rows() if not row.is_checkpoint)
    return {entry.seq: entry.leaf for entry in entries}


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_acknowledged_entries_survive_sigkill_and_views_count_each_once(
    request, scene, tmp_path: Path, backend: str
) -> None:
    url = request.getfixturevalue("postgres_url") if backend == "postgres" else str(tmp_path / "book.sqlite")
    chance, acknowledged = random.Random(ROUNDS), {}
    points = [1, *(chance.randint(2, 200) for _ in range(ROUNDS - 1 if backend == "sqlite" else ROUNDS // 3))]
    for number, after in enumerate(points, start=1):
        acknowledged |= kill_under_load(tmp_path, 1_000_000 * number, after, url)
        found = stored(source_of(url))
        assert acknowledged.items() <= found.items()
        assert sorted(found) == list(range(1, len(found) + 1))
        book = scene.open(tmp_path, url=url)
        assert book.size == len(found)
        book.close()
    assert len(acknowledged) >= sum(points)
    report = replay(source_of(url), key=scene.vkey, views=tmp_path / "views.sqlite")
    assert (report.problem, report.views_seq) == (None, report.size)


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_of_two_writer_processes_one_is_fenced_and_both_told_the_truth(
    request, scene, tmp_path: Path, backend: str
) -> None:
    url = request.getfixturevalue("postgres_url") if backend == "postgres" else str(tmp_path / "book.sqlite")
    book = scene.open(tmp_path, views=False, url=url)
    book.commit(scene.opening(50_000_000), scene.now_ms)
    book.close()
    folders = [tmp_path / "one", tmp_path / "two"]
    running = [writer_to_file(folder, 1_000_000 * number, url) for number, folder in enumerate(folders, start=1)]
    try:
        fenced = until(lambda: [at for at, process in enumerate(running) if process.poll() is not None], running)[0]
        (other,) = {0, 1} - {fenced}
        size = (folders[other] / "out").stat().st_size
        until(lambda: (folders[other] / "out").stat().st_size > size, running)
        assert running[other].poll() is None, "who was not fenced goes on"
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert "WriterFenced" in (folders[fenced] / "err").read_text()
    found = stored(source_of(url))
    for folder in folders:
        assert told((folder / "out").read_text().splitlines(keepends=True)).items() <= found.items()
    book = scene.open(tmp_path, views=False, url=url)
    assert book.size == len(found)
    book.close()


def writer_to_file(folder: Path, first: int, url: str) -> subprocess.Popen[str]:
    """Nobody reads along, so nothing holds it up."""
    folder.mkdir()
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        return subprocess.Popen([sys.executable, WRITER, folder, str(first), url], stdout=out, stderr=err)


def until(holds: Callable[[], T], processes: list[subprocess.Popen[str]]) -> T:
    """Look again and again, for as long as the test may take."""
    while not (found := holds()):
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
    return found


class FailingStore(MemoryStore):
    """A disk that is full from the moment on that `full` is set."""

    full = False

    def append(self, rows: list[StoredRow]) -> None:
        if self.full:
            raise SawyerError("cannot write to the book: database or disk is full", hint="Check the disk.")
        super().append(rows)


def _open(store: Store, scene, views: Views | None = None) -> Book:
    return Book(store, network=scene.network, operator=scene.operator, ledger_key=scene.keys["ledger"], views=views)


def test_full_disk_refuses_the_batch_whole_and_memory_forgets_it(scene, tmp_path: Path) -> None:
    store = FailingStore()
    book = _open(store, scene)
    book.commit(scene.opening(), scene.now_ms)
    before = (book.size, book.root, book.balance("alice", scene.now_ms))
    store.full = True
    with pytest.raises(SawyerError, match="disk is full"):
        book.commit([scene.reserve(scene.order())], scene.now_ms)
    assert (book.size, book.root, book.balance("alice", scene.now_ms)) == before
    store.full = False
    (reply,) = book.commit([scene.reserve(scene.order())], scene.now_ms)
    assert (reply.error, reply.entry.seq) == (None, 9)


def test_views_that_cannot_be_written_lag_and_are_made_good(scene, tmp_path: Path, caplog) -> None:
    views = Views(tmp_path / "views.sqlite")
    book = _open(Store.sqlite(tmp_path / "book.sqlite", "NORMAL"), scene, views)
    book.commit(scene.opening(), scene.now_ms)
    with views.datastore.transaction(commit=True) as cursor:
        cursor.execute("CREATE TRIGGER full BEFORE INSERT ON view_rows BEGIN SELECT RAISE(ABORT, 'full'); END")
    (reply,) = book.commit([scene.reserve(scene.order())], scene.now_ms)
    book.catch_up()
    assert reply.error is None
    assert "the views lag behind the book" in caplog.text
    with views.datastore.transaction(commit=True) as cursor:
        cursor.execute("DROP TRIGGER full")
    book.commit([scene.void(scene.order())], scene.now_ms)
    book.catch_up()
    report = replay(SQLiteSource(tmp_path / "book.sqlite"), key=scene.vkey, views=tmp_path / "views.sqlite")
    book.close()
    assert (report.problem, report.views_seq) == (None, 10)
