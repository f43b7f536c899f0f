"""`sawyer ledger export`: the book for other programs, to a file or to stdout. Owns where it goes, not what it says."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final

import typer

from sawyer import durable
from sawyer.cli import output
from sawyer.cli.ledger import BookOption, HomeOption, book_of
from sawyer.cli.targets import check_target, files_of
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.ledger.source import Source

NOT_VERIFIED: Final = "signatures were not verified: `sawyer ledger replay` proves the book"


class Form(StrEnum):
    """What the export is written in."""

    NDJSON = "ndjson"
    BEANCOUNT = "beancount"
    HLEDGER = "hledger"


def export(
    form: Annotated[Form, typer.Option("--format", help="ndjson: every row, replayable; else a journal.")],
    to: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write here (default: stdout).")
    ] = None,
    home: HomeOption = None,
    book: BookOption = None,
) -> None:
    """Write the book for other programs: its rows, or its postings for beancount or hledger. Reads only."""
    source = book_of(home, book)
    if to is not None:
        check_target(to, files_of(book), Settings.load(home=home).home)
    with _opened(to) as file:
        told = _write_rows(source, file) if form is Form.NDJSON else _write_journal(source, form, file)
    output.say(told + (f", in {to}" if to is not None else ""))
    output.say(NOT_VERIFIED)


def _write_rows(source: Source, file: BinaryIO) -> str:
    from sawyer.ledger.export import ndjson

    rows = 0
    for line in ndjson(source):
        file.write(line)
        rows += 1
    return f"{rows:,} rows"


def _write_journal(source: Source, form: Form, file: BinaryIO) -> str:
    from sawyer.cli.facts import summary
    from sawyer.ledger.export import JOURNALS, Export

    made = Export(source, JOURNALS[form](), summary)
    for line in made.lines():
        file.write(line.encode() + b"\n")
    for kind, count in sorted(made.unknown.items()):
        output.say(f"left out {count} entries of kind {kind}, which this version does not know")
    return f"{made.transactions:,} transactions of {made.entries:,} entries"


@contextmanager
def _opened(target: Path | None) -> Generator[BinaryIO, None, None]:
    """Where to write. A file appears whole, at the end, or not at all; a pipe or a terminal is written to as it is."""
    if target is None:
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif target.exists() and not target.is_file():
        with target.open("wb") as file:
            yield file
    else:
        with _draft(target.resolve()) as file:
            yield file


@contextmanager
def _draft(target: Path) -> Generator[BinaryIO, None, None]:
    with durable.naming(target):
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    durable.sync_folder(target.parent)
