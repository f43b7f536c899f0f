"""A follower's views are the writer's, row by row, however it was fed and stopped; what does not hold is named."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sawyer.errors import BookCorrupt, SawyerError, VerificationError, ViewDiffers
from sawyer.identity.keys import Key
from sawyer.ledger.book import Book
from sawyer.ledger.checkpoint import vkey_of
from sawyer.ledger.entry import CHECKPOINT_STREAM, StoredRow
from sawyer.ledger.follow import SNAPSHOT_SUFFIX, Follower
from sawyer.ledger.store import Store
from sawyer.schemas.events import KeyAdded

NEXT_LEDGER = Key.from_raw(bytes([77]) * 32)


@pytest.fixture
def rows(scene, tmp_path: Path) -> list[StoredRow]:
    """A book of several batches and kinds of entries; two snapshots; its ledger key is replaced on the way."""
    folder = tmp_path / "writer"
    with_successor = Book.open(
        folder / "book.sqlite", network=scene.network, operator=scene.operator, ledger_key=scene.keys["ledger"],
        successors=[NEXT_LEDGER], views=folder / "views.sqlite", synchronous="NORMAL", snapshot_entries=15,
    )  # fmt: skip
    scene.work(with_successor, 6)
    body = KeyAdded(network=scene.network, role="ledger", name="ledger", key=NEXT_LEDGER.id)
    for reply in with_successor.commit([scene.say(body, "operator"), scene.grant("june", 10)], scene.now_ms):
        assert reply.error is None
    scene.work(with_successor, 6, start=7)
    with_successor.close()
    store = Store.sqlite(folder / "book.sqlite")
    found = list(store.rows())
    store.close()
    return found


@pytest.fixture
def expected(rows: list[StoredRow], tmp_path: Path) -> list[tuple]:
    return view_rows(tmp_path / "writer" / "views.sqlite")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return tmp_path / "mine.sqlite"


def view_rows(path: Path) -> list[tuple]:
    with sqlite3.connect(path) as connection:
        found = connection.execute("SELECT view, key, row FROM view_rows ORDER BY view, key").fetchall()
    connection.close()
    return found


def follow(path: Path, scene, rows: Sequence[StoredRow], size: int, *, upto: int | None = None) -> Follower:
    """A follower of its own, fed in pages of `size` rows until it has `upto` rows, and closed."""
    made = Follower(path, scene.vkey, scene.operator)
    try:
        feed(made, rows, size, upto)
    finally:
        made.close()
    return made


def feed(follower: Follower, rows: Sequence[StoredRow], size: int, upto: int | None = None) -> None:
    number = follower.commitment()
    if number:
        follower.begin(rows[number - 1] if number <= len(rows) else None)
    until = len(rows) if upto is None else upto
    while follower.rows < until:
        follower.take(rows[follower.rows : min(follower.rows + size, until)])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_views_are_the_writers_whatever_the_pages(scene, rows, expected, mine: Path, size: int) -> None:
    made = follow(mine, scene, rows, size)
    assert view_rows(mine) == expected
    assert (made.rows, made.viewed) == (len(rows), made.entries)


def test_follower_that_stops_anywhere_comes_to_the_same_views(scene, rows, expected, mine: Path) -> None:
    for upto in range(1, len(rows), 3):
        follow(mine, scene, rows, 4, upto=upto)
    follow(mine, scene, rows, 5)
    assert view_rows(mine) == expected


def test_views_are_only_of_entries_that_a_checkpoint_covers(scene, rows, mine: Path) -> None:
    made = Follower(mine, scene.vkey, scene.operator)
    covered = 0
    for row in rows:
        made.take([row])
        covered = made.entries if row.is_checkpoint else covered
        assert made.viewed == covered
    made.close()


def test_new_start_folds_only_what_came_after_the_newest_snapshot(scene, rows, expected, mine: Path) -> None:
    follow(mine, scene, rows, 1000)
    again = Follower(mine, scene.vkey, scene.operator)
    number = again.commitment()
    assert rows[number - 1].topic == "snapshot.taken.v1"
    again.begin(rows[number - 1])
    assert (again.rows, again.entries > 20) == (number - 1, True)
    feed(again, rows, 1000)
    again.close()
    assert view_rows(mine) == expected


def test_views_that_were_deleted_are_made_anew_from_the_snapshot(scene, rows, expected, mine: Path) -> None:
    follow(mine, scene, rows, 1000)
    mine.unlink()
    follow(mine, scene, rows, 1000)
    assert view_rows(mine) == expected


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another row"])
def test_snapshot_that_does_not_fit_is_left_aside(
    scene, rows, expected, mine: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    follow(mine, scene, rows, 1000)
    mine.unlink()
    file = mine.with_name(mine.name + SNAPSHOT_SUFFIX)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= damage == "flipped"
    file.write_bytes({"cut": raw[:-9], "empty": b""}.get(damage, bytes(raw)))
    made = Follower(mine, scene.vkey, scene.operator)
    if number := made.commitment():
        made.begin(rows[0] if damage == "another row" else rows[number - 1])
    assert made.rows == 0
    assert "from its first entry" in caplog.text
    feed_on(made, rows)
    made.close()
    assert view_rows(mine) == expected


def one_by_one(follower: Follower, rows: Sequence[StoredRow]) -> None:
    for row in rows:
        follower.take([row])


def feed_on(follower: Follower, rows: Sequence[StoredRow]) -> None:
    follower.take(rows[follower.rows :])


def test_changed_byte_of_the_snapshot_changes_no_view(scene, rows, expected, mine: Path) -> None:
    follow(mine, scene, rows, 1000)
    file = mine.with_name(mine.name + SNAPSHOT_SUFFIX)
    raw = file.read_bytes()
    for at in range(0, len(raw), 131):
        mine.unlink()
        file.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        follow(mine, scene, rows, 1000)
        assert view_rows(mine) == expected, at


def _changed(rows: list[StoredRow], at: int, **changes: object) -> list[StoredRow]:
    return [*rows[:at], rows[at]._replace(**changes), *rows[at + 1 :]]


def _lies(rows: list[StoredRow]) -> Iterator[tuple[str, list[StoredRow]]]:
    entry = next(at for at, row in enumerate(rows) if row.topic == "tokens.reserved.v1")
    note = next(at for at in range(entry, len(rows)) if rows[at].is_checkpoint)
    state = rows[entry].state
    yield "flipped entry", _changed(rows, entry, state=state.replace(b'"tokens":8', b'"tokens":7'))
    yield "entry left out", rows[:entry] + rows[entry + 1 :]
    yield "entry twice", [*rows[: entry + 1], rows[entry], *rows[entry + 1 :]]
    yield "checkpoint left out", rows[:note] + rows[note + 1 :]
    yield "checkpoint flipped", _changed(rows, note, state=rows[note].state[:-4] + b"AAA\n")
    yield "column changed", _changed(rows, entry, stream="request:" + "00" * 16)
    yield "no entry at all", _changed(rows, entry, state=b"{}")


def test_copy_that_lies_is_refused_and_named_and_the_views_stay(scene, rows, tmp_path: Path) -> None:
    for number, (what, lied) in enumerate(_lies(rows)):
        mine = tmp_path / f"{number}.sqlite"
        made = Follower(mine, scene.vkey, scene.operator)
        with pytest.raises(BookCorrupt) as error:
            one_by_one(made, lied)
        assert error.value.seq, what
        newest = [row for row in lied[: made.rows] if row.is_checkpoint][-1]
        made.close()
        honest = tmp_path / f"{number}-honest.sqlite"
        follow(honest, scene, rows, 1000, upto=rows.index(newest) + 1)
        assert view_rows(mine) == view_rows(honest), what


def test_book_by_another_ledger_key_is_refused(scene, rows, mine: Path) -> None:
    made = Follower(mine, vkey_of(scene.network, scene.keys["mallory"]), scene.operator)
    with pytest.raises(BookCorrupt, match="founding of a network by the key you trust"):
        made.take(rows)
    made.close()


def test_book_by_another_operator_is_refused(scene, rows, mine: Path) -> None:
    made = Follower(mine, scene.vkey, Key.from_raw(bytes([5]) * 32, "O").id)
    with pytest.raises(BookCorrupt, match="the operator is"):
        made.take(rows)
    made.close()


def test_book_is_followed_without_an_operator_to_trust(scene, rows, expected, mine: Path) -> None:
    made = Follower(mine, scene.vkey)
    made.take(rows)
    made.close()
    assert view_rows(mine) == expected


def test_key_that_is_none_is_refused(mine: Path) -> None:
    with pytest.raises(VerificationError):
        Follower(mine, "no key")


def test_views_of_another_book_are_refused(scene, rows, mine: Path, tmp_path: Path) -> None:
    follow(mine, scene, rows, 1000, upto=20)
    mine.with_name(mine.name + SNAPSHOT_SUFFIX).unlink(missing_ok=True)
    other = scene.open(tmp_path / "other")
    scene.work(other, 9, start=100)
    other.close()
    store = Store.sqlite(tmp_path / "other" / "book.sqlite")
    theirs = list(store.rows())
    store.close()
    with pytest.raises(ViewDiffers, match="made from another book") as error:
        follow(mine, scene, theirs, 1)
    assert "another file" in error.value.hint


def test_copy_that_is_behind_the_views_changes_nothing(scene, rows, expected, mine: Path) -> None:
    follow(mine, scene, rows, 1000)
    mine.with_name(mine.name + SNAPSHOT_SUFFIX).unlink()
    made = Follower(mine, scene.vkey, scene.operator)
    made.take(rows[:12])
    assert made.viewed > made.entries
    made.close()
    assert view_rows(mine) == expected


def test_second_follower_of_the_same_file_is_told_so(scene, rows, expected, mine: Path) -> None:
    first, second = (Follower(mine, scene.vkey, scene.operator) for _ in range(2))
    first.take(rows)
    with pytest.raises(SawyerError, match="the views are at entry"):
        second.take(rows)
    first.close()
    second.close()
    assert view_rows(mine) == expected


def test_snapshot_that_says_other_than_the_fold_is_refused(
    scene, rows, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if this Sawyer folded otherwise than the ledger's."""
    made = Follower(mine, scene.vkey, scene.operator)
    monkeypatch.setattr(type(made._state), "digest", lambda _: "00" * 32)
    with pytest.raises(BookCorrupt, match="are not what they come to here"):
        made.take(rows)
    made.close()


def test_rows_of_this_scene_hold_what_these_tests_need(rows: list[StoredRow]) -> None:
    topics = [row.topic for row in rows]
    assert topics.count("snapshot.taken.v1") == 2
    assert sum(row.stream == CHECKPOINT_STREAM for row in rows) > 10
    assert rows[-1].is_checkpoint
