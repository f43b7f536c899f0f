"""Every byte of a small book, changed one at a time: none goes undetected."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from sawyer.errors import NotCanonical
from sawyer.ledger.entry import StoredRow, decode_entry
from sawyer.ledger.replay import replay
from sawyer.ledger.source import SQLiteSource


class Rows:
    """A book as a list, with one row replaced."""

    def __init__(self, rows: list[StoredRow], at: int, state: bytes) -> None:
        self._rows = list(rows)
        row = rows[at]
        self._rows[at] = StoredRow(row.stream, row.version, row.topic, state)

    def size_rows(self) -> int:
        return len(self._rows)

    def rows(self) -> Generator[StoredRow, None, None]:
        yield from self._rows


@pytest.fixture
def rows(scene, tmp_path: Path) -> list[StoredRow]:
    """One batch with every kind of entry, and its checkpoint."""
    book = scene.open(tmp_path, views=False)
    done, expired = scene.order(1), scene.order(2)
    steps = [scene.reserve(done), scene.complete(done), scene.reserve(expired, hold_ms=1), scene.void(expired)]
    replies = book.commit([*scene.opening(), *steps], scene.now_ms)
    assert all(reply.error is None for reply in replies)
    book.close()
    return list(SQLiteSource(tmp_path / "book.sqlite").rows())


def _undetected(rows: list[StoredRow], at: int, key: str) -> list[int]:
    """Bytes of row `at` that can be changed unseen. Flipping the lowest bit keeps digits digits and most of base64 and
    hex valid: the hardest changes to see. What does not even decode is what replay refuses first (its own tests)."""
    state = rows[at].state
    found = []
    for position in range(len(state)):
        changed = state[:position] + bytes([state[position] ^ 1]) + state[position + 1 :]
        if not rows[at].is_checkpoint and not _decodes(changed):
            continue
        if replay(Rows(rows, at, changed), key=key).ok:
            found.append(position)
    return found


def _decodes(raw: bytes) -> bool:
    try:
        decode_entry(raw)
    except NotCanonical:
        return False
    return True


@pytest.mark.parametrize("at", range(13))
def test_every_changed_byte_of_a_stored_row_is_detected(rows: list[StoredRow], scene, at: int) -> None:
    assert len(rows) == 13
    assert _undetected(rows, at, scene.vkey) == []


@pytest.mark.parametrize("at", range(12))
def test_entry_that_does_not_decode_is_refused_by_replay_and_named(rows: list[StoredRow], scene, at: int) -> None:
    for changed in (b"", b"{}", rows[at].state[:-1], b" " + rows[at].state, b"\xff" + rows[at].state[1:]):
        assert replay(Rows(rows, at, changed), key=scene.vkey).problem.seq == at + 1


def test_every_changed_column_is_detected(rows: list[StoredRow], scene) -> None:
    for at, row in enumerate(rows):
        for columns in (
            (row.stream + "x", row.version, row.topic),
            (row.stream, row.version + 1, row.topic),
            (row.stream, row.version, row.topic + "0"),
        ):
            changed = Rows(rows, at, row.state)
            changed._rows[at] = StoredRow(*columns, row.state)
            assert not replay(changed, key=scene.vkey).ok, (at, columns)
