"""Every byte of a small book, of its columns and of its views, changed one at a time: none goes undetected."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from forging import Rows

from sawyer.errors import NotCanonical
from sawyer.identity.keys import Key
from sawyer.ledger.audit import check_views
from sawyer.ledger.book import Book
from sawyer.ledger.chain import read_next
from sawyer.ledger.commands import OPERATOR_NAME, check, command
from sawyer.ledger.entry import StoredRow, decode_entry
from sawyer.ledger.replay import replay
from sawyer.ledger.source import SQLiteSource
from sawyer.ledger.state import State
from sawyer.schemas.events import KINDS, KeyAdded, KeyRevoked, KeyRotated, SubjectErased

DAY_MS = 86_400_000
ENTRIES = 20
NEW = Key.from_raw(bytes([90]) * 32)
SUCCESSOR = Key.from_raw(bytes([91]) * 32, "O")


@pytest.fixture
def made(scene, tmp_path: Path) -> tuple[Path, str]:
    """A folder with a closed book that has an entry of every kind, its views, and the ledger's key."""
    folder = tmp_path / "small"
    folder.mkdir()
    book = Book.open(
        folder / "book.sqlite", network=scene.network, operator=scene.operator, ledger_key=scene.keys["ledger"],
        views=folder / "views.sqlite", snapshot_entries=ENTRIES - 1,
    )  # fmt: skip
    done, given_up, late = scene.order(1), scene.order(2), scene.order(3)
    rotated = KeyRotated(network=scene.network, role="node", name="node-b", key=NEW.id)
    revoked = KeyRevoked(network=scene.network, key=scene.keys["node-b"].id, since_ms=0, reason="old")
    successor = KeyAdded(network=scene.network, role="operator", name=OPERATOR_NAME, key=SUCCESSOR.id)
    erased = SubjectErased(network=scene.network, subject="alice")
    steps = [
        *scene.members(), scene.grant("january", 500), scene.reserve(done), scene.complete(done),
        scene.reserve(given_up), scene.void(given_up), scene.reserve(late, hold_ms=1),
        check(command(rotated, "node-b", scene.keys["node-b"], NEW)), scene.say(revoked, "operator"),
        scene.say(erased, "operator"), scene.say(successor, "operator"),
    ]  # fmt: skip
    _commit(book, steps, scene.now_ms)
    later_ms = scene.now_ms + 30 * DAY_MS
    _commit(book, book.expire(later_ms), later_ms)
    book.close()
    return folder, scene.vkey


def _commit(book: Book, commands: list, now_ms: int) -> None:
    assert [reply.error for reply in book.commit(commands, now_ms)] == [None] * len(commands)


@pytest.fixture
def rows(made: tuple[Path, str]) -> list[StoredRow]:
    return list(SQLiteSource(made[0] / "book.sqlite").rows())


def with_state(rows: list[StoredRow], at: int, state: bytes) -> Rows:
    """The book with other bytes in one row."""
    row = rows[at]
    return Rows([*rows[:at], StoredRow(row.stream, row.version, row.topic, state), *rows[at + 1 :]])


def holds(rows: Rows, vkey: str) -> bool:
    return replay(rows, key=vkey, workers=1).ok


def _undetected(rows: list[StoredRow], at: int, key: str) -> list[int]:
    """Bytes of row `at` that can be changed unseen. Flipping the lowest bit keeps digits digits and most of base64 and
    hex valid: the hardest changes to see. What does not even decode is what replay refuses first (its own tests)."""
    state = rows[at].state
    found = []
    for position in range(len(state)):
        changed = state[:position] + bytes([state[position] ^ 1]) + state[position + 1 :]
        if not rows[at].is_checkpoint and not _decodes(changed):
            continue
        if holds(with_state(rows, at, changed), key):
            found.append(position)
    return found


def _decodes(raw: bytes) -> bool:
    try:
        decode_entry(raw)
    except NotCanonical:
        return False
    return True


def test_small_book_holds_and_has_an_entry_of_every_kind(made, rows: list[StoredRow]) -> None:
    assert {row.topic for row in rows} == {*KINDS, "checkpoint"}
    assert len(rows) == ENTRIES + 3
    assert replay(Rows(rows), key=made[1], views=made[0] / "views.sqlite").ok


@pytest.mark.parametrize("at", range(ENTRIES + 3))
def test_every_changed_byte_of_a_stored_row_is_detected(made, rows: list[StoredRow], at: int) -> None:
    assert _undetected(rows, at, made[1]) == []


@pytest.mark.parametrize("at", range(17))
def test_entry_that_does_not_decode_is_refused_by_replay_and_named(made, rows: list[StoredRow], at: int) -> None:
    for changed in (b"", b"{}", rows[at].state[:-1], b" " + rows[at].state, b"\xff" + rows[at].state[1:]):
        assert replay(with_state(rows, at, changed), key=made[1], workers=1).problem.seq == at + 1


def test_every_changed_column_is_detected(made, rows: list[StoredRow]) -> None:
    for at, row in enumerate(rows):
        for columns in (
            (row.stream + "x", row.version, row.topic),
            (row.stream, row.version + 1, row.topic),
            (row.stream, row.version, row.topic + "0"),
        ):
            changed = Rows([*rows[:at], StoredRow(*columns, row.state), *rows[at + 1 :]])
            assert not holds(changed, made[1]), (at, columns)


# --- views ------------------------------------------------------------------------------------------------------------

ViewRow = tuple[str, str, bytes]


def _view_rows(views: Path) -> list[ViewRow]:
    with sqlite3.connect(views) as connection:
        found = connection.execute("SELECT view, key, row FROM view_rows").fetchall()
    connection.close()
    return found


def _flipped(row: ViewRow) -> Iterator[ViewRow]:
    """The row with one byte changed: of its view's name, of its key, of itself."""
    for column, value in enumerate(row):
        raw = value.encode() if isinstance(value, str) else value
        for position in range(len(raw)):
            changed = raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]
            yield tuple(  # type: ignore[misc]
                (changed if at == 2 else changed.decode()) if at == column else each for at, each in enumerate(row)
            )


def test_every_changed_byte_of_a_view_is_detected(made, rows: list[StoredRow]) -> None:
    folder, vkey = made
    state, stored = _folded(rows, vkey), _view_rows(folder / "views.sqlite")
    assert check_views(state, _by_view(stored)) is None
    undetected = [
        changed
        for at, row in enumerate(stored)
        for changed in _flipped(row)
        if check_views(state, _by_view([*stored[:at], changed, *stored[at + 1 :]])) is None
    ]
    assert undetected == []


def test_every_changed_byte_of_how_far_the_views_go_is_detected(made) -> None:
    """Replay compares views where they say that they are: at another entry other rows would be there."""
    folder, vkey = made
    views = folder / "views.sqlite"
    head = next(row for row in _view_rows(views) if row[1] == "head")
    undetected, held = [], head
    for changed in _flipped(head):
        _replace(views, held, changed)
        held = changed
        if replay(SQLiteSource(folder / "book.sqlite"), key=vkey, views=views, workers=1).ok:
            undetected.append(changed)
    assert undetected == []


def _folded(rows: list[StoredRow], vkey: str) -> State:
    state = State("sawyer-net/3f9a1c22", vkey, "")
    for row in rows:
        if not row.is_checkpoint:
            state.apply(read_next(row, state))
    return state


def _by_view(rows: list[ViewRow]) -> dict[str, list[tuple[str, bytes]]]:
    found: dict[str, list[tuple[str, bytes]]] = {}
    for view, key, row in rows:
        found.setdefault(view, []).append((key, row))
    return found


def _replace(views: Path, old: ViewRow, new: ViewRow) -> None:
    with sqlite3.connect(views) as connection:
        assert connection.execute("DELETE FROM view_rows WHERE view=? AND key=?", old[:2]).rowcount == 1
        connection.execute("INSERT INTO view_rows VALUES (?,?,?)", new)
    connection.close()
