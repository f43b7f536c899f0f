"""Starting from a snapshot: the same as starting from the first entry, or not done at all. Never a wrong balance."""

from __future__ import annotations

import logging
import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sawyer.errors import BookCorrupt, NotAuthorised, RefusedError, SawyerError, VerificationError
from sawyer.ledger import snapshot
from sawyer.ledger.book import SNAPSHOT_FILE, Book
from sawyer.ledger.checkpoint import Checkpoint
from sawyer.ledger.decide import decide
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.store import PAGE_ROWS, MemoryStore
from sawyer.projections.fold import ROWS_VERSION

EVERY = 12
FLIPS = 250


class Watched(MemoryStore):
    """Remembers from where it was last read, and can be told that its disk is full."""

    def __init__(self) -> None:
        super().__init__()
        self.read_after = -1
        self.appends_left = 10**9

    def rows(self, after: int = 0, page_rows: int = PAGE_ROWS) -> Iterator[StoredRow]:
        if page_rows == PAGE_ROWS:
            self.read_after = after
        return super().rows(after, page_rows)

    def append(self, rows: Sequence[StoredRow]) -> None:
        self.appends_left -= 1
        if self.appends_left < 0:
            raise SawyerError("cannot write to the book: disk full")
        super().append(rows)


@dataclass
class Place:
    """One book that is opened again and again."""

    scene: object
    store: Watched
    file: Path

    def open(self, *, snapshots: bool = True, held: str | None = None, every: int = EVERY) -> Book:
        return Book(
            self.store, network=self.scene.network, operator=self.scene.operator, ledger_key=self.scene.keys["ledger"],
            successors=[self.scene.keys["ledger-2"]], snapshots=self.file if snapshots else None, held=held,
            snapshot_entries=every,
        )  # fmt: skip

    def digest(self, *, snapshots: bool) -> str:
        return self.open(snapshots=snapshots)._state.digest()

    def rewrite(self, **changes: object) -> None:
        found = snapshot.read(self.file.read_bytes())
        self.file.write_bytes(msgspec.msgpack.encode(msgspec.structs.replace(found, **changes)))


@pytest.fixture
def place(scene, tmp_path: Path) -> Place:
    """A book with two snapshots, one open request, and entries after the newest."""
    made = Place(scene, Watched(), tmp_path / SNAPSHOT_FILE)
    book = made.open()
    scene.work(book, 8)
    book.commit([scene.reserve(scene.order(50))], scene.now_ms)
    assert book._state.audit.version("ledger:snapshots") == 2
    assert book.size > book._at.snapshot_size + 1
    return made


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- the same state ---------------------------------------------------------------------------------------------------


def test_start_from_a_snapshot_equals_the_start_from_the_first_entry(place: Place, scene, caplog) -> None:
    from_first, from_snapshot = place.open(snapshots=False), place.open()
    assert place.store.read_after > 0
    assert from_snapshot._state.digest() == from_first._state.digest()
    assert (from_snapshot.root, from_snapshot.checkpoint()) == (from_first.root, from_first.checkpoint())
    assert from_snapshot.account("alice", scene.now_ms) == from_first.account("alice", scene.now_ms)
    assert from_snapshot.network(1) == from_first.network(1)
    assert from_snapshot.members() == from_first.members()
    assert warned(caplog) == []


def test_book_that_was_started_from_a_snapshot_goes_on_as_the_other_would(place: Place, scene) -> None:
    """The request that the snapshot holds open is completed, the one before it is remembered by the book."""
    book = place.open()
    order = scene.order(50)
    again, done = book.commit([scene.complete(scene.order(1)), scene.complete(order)], scene.now_ms)
    assert (again.error.code, done.error) == ("request_conflict", None)
    assert place.digest(snapshots=True) == place.digest(snapshots=False)


def test_snapshot_is_taken_every_so_many_entries_and_the_file_is_the_newest(place: Place, scene) -> None:
    sizes = [snapshot.read(place.file.read_bytes()).size]
    for number in range(60, 68):
        book = place.open()
        scene.work(book, 1, start=number)
        sizes.append(snapshot.read(place.file.read_bytes()).size)
    assert sizes == sorted(sizes)
    assert all(later - earlier >= EVERY for earlier, later in pairwise(sizes) if later != earlier)
    assert len(set(sizes)) >= 2


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(0, 9), min_size=5, max_size=40), every=st.integers(9, 20))
def test_snapshots_of_random_histories_lead_to_the_state_of_their_entries(
    scene, tmp_path_factory, steps: list[int], every: int
) -> None:
    scene = type(scene)(scene.keys)
    place = Place(scene, Watched(), tmp_path_factory.mktemp("snapshots") / SNAPSHOT_FILE)
    book = place.open(every=every)
    book.commit(scene.opening(tokens=200), scene.now_ms)
    for number, step in enumerate(steps):
        book = _live_on(book, scene, place, number, step, every)
    assert place.open(every=every)._state.digest() == place.digest(snapshots=False)


def _live_on(book: Book, scene, place: Place, number: int, step: int, every: int) -> Book:
    """One random step of a network's life."""
    order = scene.order(number)
    scene.now_ms += 100_000
    acts: dict[int, Callable[[], list]] = {
        0: lambda: [scene.reserve(order, hold_ms=600_000)],
        1: lambda: [scene.grant(f"g{number}", 50, end_ms=(number % 5) * 200_000 + 1)],
        2: lambda: [scene.reserve(order), scene.void(order)],
        3: lambda: [scene.erase()],
        4: lambda: [scene.rotate("node", "node-b", "node-a-2")],
        5: lambda: [scene.say(scene.sheet.changed(sheet=f"s{number}"), "operator")],
        6: lambda: [scene.revoke("router-2")],
        7: lambda: book.expire(scene.now_ms),
        8: lambda: [scene.reserve(order), scene.complete(order)],
    }
    if step not in acts:
        return place.open(every=every)
    remembered = dict(scene.receipts)
    replies = book.commit(acts[step](), scene.now_ms)
    if any(reply.error for reply in replies):
        scene.receipts = remembered
    return book


def test_key_that_a_node_once_had_is_its_own_after_a_start_from_a_snapshot_too(place: Place, scene) -> None:
    """What is kept beside the rows must come back from the rows: else the writer allows what replay refuses."""
    book = place.open()
    book.commit([scene.rotate("node", "node-a", "node-a-2")], scene.now_ms)
    while book._at.snapshot_size <= 20 or book._at.snapshot_size < book.size - 2:
        scene.now_ms += 1
        book.commit([scene.grant(f"more-{book.size}", 1)], scene.now_ms)
    for opened in (place.open(), place.open(snapshots=False)):
        (reply,) = opened.commit([scene.node("node-z", "bob", key="node-a")], scene.now_ms)
        assert "registered as node node-a" in reply.error.message


def test_start_from_a_snapshot_that_a_former_ledger_key_signed(place: Place, scene) -> None:
    book = place.open(every=10**6)
    book.commit([scene.add_key("ledger", "ledger-2")], scene.now_ms)
    book.commit([scene.grant("more", 1)], scene.now_ms)
    again = place.open()
    assert place.store.read_after > 0
    assert again.size == book.size


# --- a snapshot that is not ours, or was touched ----------------------------------------------------------------------


def test_flipped_byte_anywhere_gives_the_same_state_or_is_found(place: Place, caplog) -> None:
    """FLIPS places all over the file, the same ones each time."""
    expected, raw = place.digest(snapshots=False), place.file.read_bytes()
    chosen = random.Random(1)
    found = 0
    for at in sorted({*range(40), *(chosen.randrange(len(raw)) for _ in range(FLIPS))}):
        changed = bytearray(raw)
        changed[at] ^= 1 << chosen.randrange(8)
        place.file.write_bytes(bytes(changed))
        caplog.clear()
        assert place.digest(snapshots=True) == expected, f"byte {at}"
        found += len(warned(caplog))
    assert found > FLIPS // 2


@pytest.mark.parametrize("length", [0, 1, 7, 100, -1, -33])
def test_snapshot_that_was_cut_is_not_used(place: Place, caplog, length: int) -> None:
    expected = place.digest(snapshots=False)
    place.file.write_bytes(place.file.read_bytes()[:length])
    assert place.digest(snapshots=True) == expected
    assert "from its first entry" in warned(caplog)[0]


def _doubled(place: Place) -> dict[str, list[tuple[str, bytes]]]:
    views = snapshot.read(place.file.read_bytes()).views
    return {**views, "balances": [*views["balances"], *views["balances"]]}


def _richer(place: Place) -> dict[str, list[tuple[str, bytes]]]:
    views = snapshot.read(place.file.read_bytes()).views
    rows = [(key, row.replace(b'"available":4', b'"available":9')) for key, row in views["balances"]]
    assert rows != views["balances"]
    return {**views, "balances": rows}


def _without_a_view(place: Place) -> dict[str, list[tuple[str, bytes]]]:
    views = snapshot.read(place.file.read_bytes()).views
    return {name: rows for name, rows in views.items() if name != "payouts"}


FORGERIES: dict[str, Callable[[Place], dict[str, object]]] = {
    "a balance": lambda place: {"views": _richer(place)},
    "every bucket twice": lambda place: {"views": _doubled(place)},
    "a view left out": lambda place: {"views": _without_a_view(place)},
    "another number of checkpoints": lambda _: {"checkpoints": 3},
    "checkpoints that are not there": lambda _: {"checkpoints": 10**6},
    "another of the snapshots": lambda _: {"version": 1},
    "a version that is not there": lambda _: {"version": 2**52},
    "a version that no database holds": lambda _: {"version": 2**64 - 1},
    "another size": lambda _: {"size": 5},
    "rows of a newer Sawyer": lambda _: {"rows_version": ROWS_VERSION + 1},
    "rows of an older Sawyer": lambda _: {"rows_version": ROWS_VERSION - 1},
    "an empty tree": lambda _: {"tree": bytes(8)},
}


@pytest.mark.parametrize("what", FORGERIES)
def test_forged_snapshot_is_not_used(place: Place, caplog, what: str) -> None:
    expected = place.digest(snapshots=False)
    place.rewrite(**FORGERIES[what](place))
    assert place.digest(snapshots=True) == expected
    assert place.store.read_after == 0
    assert "from its first entry" in warned(caplog)[0]


def test_forged_snapshot_with_twice_the_buckets_does_not_double_the_balance(place: Place, scene) -> None:
    before = place.open(snapshots=False).balance("alice", scene.now_ms)
    place.rewrite(views=_doubled(place))
    assert place.open().balance("alice", scene.now_ms) == before


def test_snapshot_of_another_book_is_not_used(place: Place, scene, tmp_path: Path, caplog) -> None:
    scene.now_ms += 1
    scene.receipts.clear()
    other = Place(scene, Watched(), tmp_path / "other.bin")
    scene.work(other.open(), 8)
    expected = place.digest(snapshots=False)
    place.file.write_bytes(other.file.read_bytes())
    assert place.digest(snapshots=True) == expected
    assert "from its first entry" in warned(caplog)[0]


def test_older_snapshot_of_this_book_is_as_good_as_the_newest(place: Place, scene, caplog) -> None:
    old = place.file.read_bytes()
    scene.work(place.open(), 12, start=70)
    assert place.file.read_bytes() != old
    expected = place.digest(snapshots=False)
    place.file.write_bytes(old)
    assert place.digest(snapshots=True) == expected
    assert place.store.read_after > 0
    assert warned(caplog) == []


def test_missing_snapshot_is_no_matter(place: Place, caplog) -> None:
    expected = place.digest(snapshots=False)
    place.file.unlink()
    assert place.digest(snapshots=True) == expected
    assert warned(caplog) == []


def test_snapshot_of_entries_that_this_copy_of_the_book_lacks_is_not_used(place: Place, scene, caplog) -> None:
    """A backup was put back; the snapshot beside it is newer."""
    backup = Watched()
    backup.append(list(place.store.rows()))
    scene.work(place.open(), 12, start=70)
    restored = Place(scene, backup, place.file)
    assert restored.digest(snapshots=True) == restored.digest(snapshots=False)
    assert "from its first entry" in warned(caplog)[0]


# --- a snapshot and a checkpoint that was kept ------------------------------------------------------------------------


def test_kept_checkpoint_below_and_above_the_snapshots_size_is_held_against_the_tree(place: Place, scene) -> None:
    notes = [row.state.decode() for row in place.store.rows() if row.is_checkpoint]
    size = snapshot.read(place.file.read_bytes()).size
    sizes = [Checkpoint.read(note).size for note in notes]
    assert min(sizes) < size < max(sizes)
    for note in notes:
        place.open(held=note)
        assert place.store.read_after > 0
        held = Checkpoint.read(note)
        forked = Checkpoint(held.origin, held.size, bytes(32)).sign(scene.keys["ledger"])
        with pytest.raises(BookCorrupt, match="has root"):
            place.open(held=forked)


def test_kept_checkpoint_beyond_the_book_is_refused_with_a_snapshot_too(place: Place, scene) -> None:
    beyond = Checkpoint(scene.network, 10_000, bytes(32)).sign(scene.keys["ledger"])
    with pytest.raises(BookCorrupt, match="it was cut"):
        place.open(held=beyond)


def test_kept_checkpoint_of_a_stranger_is_refused_with_a_snapshot_too(place: Place, scene) -> None:
    (note, *_) = [row.state.decode() for row in place.store.rows() if row.is_checkpoint]
    with pytest.raises(VerificationError, match="not of this ledger"):
        place.open(held=Checkpoint.read(note).sign(scene.keys["mallory"]))


# --- what the book says of it -----------------------------------------------------------------------------------------


def say(scene, judge, key: str = "ledger", **changes: object):
    body = snapshot.commitment(judge.state)
    return scene.say(body.changed(**changes), key, by="ledger")


def test_snapshot_with_another_digest_or_size_than_the_books_is_refused(judge, scene) -> None:
    for changes, why in (({"digest": "00" * 32}, "the entries come to"), ({"size": 7}, "the book has 8")):
        with pytest.raises(RefusedError, match=why):
            decide(judge.state, say(scene, judge, **changes), scene.now_ms)


def test_snapshot_said_by_anybody_but_the_ledger_is_refused(judge, scene) -> None:
    for key in ("operator", "router", "mallory"):
        with pytest.raises(NotAuthorised, match="expected the ledger"):
            decide(judge.state, say(scene, judge, key), scene.now_ms)


def test_snapshot_said_twice_is_a_repeat(judge, scene) -> None:
    asked = say(scene, judge)
    judge.write(asked)
    assert decide(judge.state, asked, scene.now_ms).repeated


def test_commit_is_answered_though_its_snapshot_cannot_be_written(place: Place, scene, caplog) -> None:
    """The batch is durable before the snapshot is begun. Memory is read again, and the next snapshot is taken later."""
    book = place.open(every=1)
    place.store.appends_left = 1
    (reply,) = book.commit([scene.grant("more", 7)], scene.now_ms)
    assert reply.error is None
    assert "no snapshot was taken" in warned(caplog)[0]
    place.store.appends_left = 10**9
    (again,) = book.commit([scene.grant("more", 7)], scene.now_ms)
    assert (again.repeated, again.entry) == (True, reply.entry)
    assert book._state.audit.version("ledger:snapshots") == 2
    book.commit([scene.grant("still-more", 7)], scene.now_ms)
    assert book._state.audit.version("ledger:snapshots") == 3
    assert place.digest(snapshots=True) == place.digest(snapshots=False)


def test_batch_of_refusals_and_repeats_takes_no_snapshot_though_one_is_due(place: Place, scene) -> None:
    """After a start from the first entry the next one is due at once: it waits for something to be written."""
    place.file.unlink()
    book = place.open()
    before = (book.size, book.checkpoint(), book._state.audit.head.ts_ms)
    later_ms = scene.now_ms + 60_000
    repeat, refused = book.commit([scene.grant("january", 500_000), scene.grant("no", 1, by="mallory")], later_ms)
    assert (repeat.repeated, refused.error.code) == (True, "not_authorised")
    assert (book.size, book.checkpoint(), book._state.audit.head.ts_ms) == before
    book.commit([scene.grant("more", 1)], later_ms)
    assert place.file.is_file()


def test_snapshot_that_cannot_be_kept_costs_nothing_but_time(place: Place, scene, caplog) -> None:
    place.file.unlink()
    place.file.mkdir()
    book = place.open(every=1)
    (reply,) = book.commit([scene.grant("more", 7)], scene.now_ms)
    assert reply.error is None
    assert "cannot keep the snapshot" in warned(caplog)[0]
    assert place.digest(snapshots=True) == place.digest(snapshots=False)


# --- views beside a snapshot ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", ["older than the snapshot", "of the snapshot itself", "missing", "current"])
def test_views_end_as_the_folds_wherever_the_book_starts_from(scene, tmp_path: Path, views: str) -> None:
    file, kept = tmp_path / "views.sqlite", {"missing": b""}
    book = scene.open(tmp_path, snapshot_entries=EVERY)
    scene.work(book, 1)
    book.close()
    kept["older than the snapshot"] = file.read_bytes()
    book = scene.open(tmp_path, snapshot_entries=EVERY)
    while book._at.snapshot_size != book.size - 1:
        scene.work(book, 1, start=book.size)
    book.close()
    kept["of the snapshot itself"] = file.read_bytes()
    book = scene.open(tmp_path, snapshot_entries=EVERY)
    scene.work(book, 1, start=book.size)
    book.close()
    file.write_bytes(kept.get(views, file.read_bytes()))
    again = scene.open(tmp_path, snapshot_entries=EVERY)
    expected = {(fold.name, key): row for fold in again._state.folds for key, row in fold.encoded_rows()}
    assert again._at.views_size == again.size
    again.close()
    assert _rows(file) == expected


def _rows(views: Path) -> dict[tuple[str, str], bytes]:
    with sqlite3.connect(views) as connection:
        found = connection.execute("SELECT view, key, row FROM view_rows").fetchall()
    connection.close()
    return {(view, key): row for view, key, row in found}
