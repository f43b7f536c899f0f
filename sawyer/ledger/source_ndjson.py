"""A book that was exported as lines (NDJSON), as replay reads it. Judges no entry."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from sawyer.errors import BookCorrupt, SawyerError, UsageError
from sawyer.ledger.entry import CHECKPOINT_STREAM, CHECKPOINT_TOPIC, StoredRow
from sawyer.schemas.base import UNREADABLE, encode_canonical

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
_BLOCK_BYTES: Final = 1024 * 1024
_CHECKPOINT_LINE: Final = b'{"checkpoint":'
"""No entry begins so: its first field is `attestations`."""


def is_ndjson(path: Path) -> bool:
    """True for a file that begins as a line of an export, or is named as one."""
    with _reading(path), path.open("rb") as file:
        return file.read(1) == b"{" or path.suffix == ".ndjson"


class NdjsonSource:
    """A book that was exported: one line a row, an entry's exact bytes or `{"checkpoint":"<note>"}`."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError if there is no such file."""
        if not path.is_file():
            raise UsageError(f"no book at {path}", hint="`sawyer ledger export` writes one.")
        self.path = path

    def size_rows(self) -> int:
        with _reading(self.path), self.path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK_BYTES), b""))

    def rows(self) -> Generator[StoredRow, None, None]:
        """A row's columns are those that its entry names. Only whole lines are rows."""
        checkpoints = 0
        with _reading(self.path), self.path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), start=1):
                if not line.endswith(b"\n"):
                    raise BookCorrupt(f"line {number} is cut, or is longer than {MAX_LINE_BYTES} bytes", seq=0)
                if line.startswith(_CHECKPOINT_LINE):
                    checkpoints += 1
                    yield StoredRow(CHECKPOINT_STREAM, checkpoints, CHECKPOINT_TOPIC, _note_in(line[:-1], number))
                else:
                    yield _row_in(line[:-1], number)


class _Columns(msgspec.Struct):
    stream: str
    version: int
    kind: str


def _row_in(line: bytes, number: int) -> StoredRow:
    try:
        columns = msgspec.json.decode(line, type=_Columns)
    except UNREADABLE as error:
        raise BookCorrupt(f"line {number} is no entry: {error}", seq=0) from error
    return StoredRow(columns.stream, columns.version, columns.kind, line)


def _note_in(line: bytes, number: int) -> bytes:
    try:
        note = msgspec.json.decode(line, type=dict[str, str])["checkpoint"]
    except UNREADABLE as error:
        raise BookCorrupt(f"line {number} is no checkpoint: {error}", seq=0) from error
    if encode_canonical({"checkpoint": note}) != line:
        raise BookCorrupt(f"line {number} is not the canonical line of its checkpoint", seq=0)
    return note.encode()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SawyerError(f"cannot read {path}: {error.strerror}", hint="Check whose it is (`ls -l`).") from error
