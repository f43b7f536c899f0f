"""Books as lines: what was exported is read back as it was, and what is no line of a book is wrong, never a crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from sawyer.errors import BookCorrupt, SawyerError, UsageError, VerificationError
from sawyer.ledger import source_ndjson
from sawyer.ledger.export import ndjson
from sawyer.ledger.replay import replay
from sawyer.ledger.source import SQLiteSource, source_of
from sawyer.ledger.source_ndjson import NdjsonSource


@pytest.fixture
def book(scene, tmp_path: Path) -> Path:
    """The file of a closed book of 12 entries."""
    made = scene.open(tmp_path, views=False)
    scene.work(made, 2)
    made.close()
    return tmp_path / "book.sqlite"


@pytest.fixture
def lines(book: Path) -> Path:
    """The same, exported."""
    file = book.with_name("book.ndjson")
    file.write_bytes(b"".join(ndjson(SQLiteSource(book))))
    return file


def test_exported_rows_are_read_back_as_they_were(book: Path, lines: Path) -> None:
    source = NdjsonSource(lines)
    assert list(source.rows()) == list(SQLiteSource(book).rows())
    assert source.size_rows() == SQLiteSource(book).size_rows()


def test_export_replays_as_the_book_does(book: Path, lines: Path, scene) -> None:
    exported, kept = replay(source_of(str(lines)), key=scene.vkey), replay(source_of(str(book)), key=scene.vkey)
    assert (exported.problem, exported.root, exported.entries) == (None, kept.root, kept.entries)


def test_source_is_chosen_by_what_the_file_holds(book: Path, lines: Path) -> None:
    renamed = lines.rename(lines.with_name("copy.sqlite"))
    empty = lines.with_name("empty.ndjson")
    empty.touch()
    assert isinstance(source_of(str(renamed)), NdjsonSource)
    assert isinstance(source_of(str(empty)), NdjsonSource)
    assert isinstance(source_of(str(book)), SQLiteSource)


def test_missing_file_is_named(tmp_path: Path) -> None:
    for ask in (NdjsonSource, lambda path: source_of(str(path))):
        with pytest.raises(UsageError, match="no book at"):
            ask(tmp_path / "none.ndjson")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"\n", "line 1 is no entry"),
        (b"null\n", "line 1 is no entry"),
        (b"{}\n", "line 1 is no entry"),
        (b'{"stream":"a","version":1.5,"kind":"k"}\n', "line 1 is no entry"),
        (b'{"stream":"a","version":"1","kind":"k"}\n', "line 1 is no entry"),
        (b'{"stream":"\xff","version":1,"kind":"k"}\n', "line 1 is no entry"),
        (b'{"stream":"a","version":1,"kind":"k"}', "line 1 is cut"),
        (b'{"checkpoint":5}\n', "line 1 is no checkpoint"),
        (b'{"checkpoint":"a"\n', "line 1 is no checkpoint"),
        (b'{"checkpoint":"\xff"}\n', "line 1 is no checkpoint"),
        (b'{"checkpoint":"a" }\n', "line 1 is not the canonical line"),
        (b'{"checkpoint":"a","more":"b"}\n', "line 1 is not the canonical line"),
        (b'{"checkpoint":"a","checkpoint":"a"}\n', "line 1 is not the canonical line"),
        (b"[" * 100_000 + b"\n", "line 1 is no entry"),
    ],
)
def test_line_that_is_no_row_is_wrong_and_numbered(tmp_path: Path, line: bytes, why: str) -> None:
    (tmp_path / "book.ndjson").write_bytes(line)
    with pytest.raises(BookCorrupt, match=why):
        list(NdjsonSource(tmp_path / "book.ndjson").rows())


def test_line_without_an_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_ndjson, "MAX_LINE_BYTES", 1000)
    (tmp_path / "book.ndjson").write_bytes(b"{" * 5000)
    with pytest.raises(BookCorrupt, match="line 1 is cut, or is longer than 1000 bytes"):
        list(NdjsonSource(tmp_path / "book.ndjson").rows())


def test_file_that_cannot_be_read_is_not_called_wrong(lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    for ask in (lambda: list(NdjsonSource(lines).rows()), lambda: source_of(str(lines))):
        with pytest.raises(SawyerError, match="Permission denied") as caught:
            ask()
        assert not isinstance(caught.value, VerificationError)


def test_every_changed_byte_of_an_export_is_found(lines: Path, scene) -> None:
    """A prime's multiples meet every field, and other bytes of it in each line. All bytes of the last checkpoint."""
    whole = lines.read_bytes()
    last = whole[:-1].rindex(b"\n")
    for at in [*range(0, last, 47), *range(last, len(whole))]:
        lines.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        report = replay(NdjsonSource(lines), key=scene.vkey)
        assert report.problem is not None, f"byte {at} was changed, and nobody noticed"


@pytest.mark.parametrize("change", ["drop", "twice", "swap"])
def test_entries_that_are_missing_twice_or_swapped_are_found(lines: Path, scene, change: str) -> None:
    """A checkpoint that is left out is not missed: each later one says all that it said."""
    whole = lines.read_bytes().splitlines(keepends=True)
    for at, line in enumerate(whole[:-1]):
        if line.startswith(b'{"checkpoint"') and change == "drop":
            continue
        changed = {
            "drop": [*whole[:at], *whole[at + 1 :]],
            "twice": [*whole[: at + 1], *whole[at:]],
            "swap": [*whole[:at], whole[at + 1], whole[at], *whole[at + 2 :]],
        }[change]
        lines.write_bytes(b"".join(changed))
        assert replay(NdjsonSource(lines), key=scene.vkey).problem is not None, at
