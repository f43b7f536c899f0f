"""Copies of a book's file: made while the writer writes, and put back. Owns the files; what they hold replay judges."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sawyer import durable
from sawyer.errors import BookCorrupt, SawyerError, UsageError, WriterFenced
from sawyer.ledger.source import Source
from sawyer.ledger.store import PAGE_ROWS, Store
from sawyer.ledger.tables import BOOK_SCHEMA, SELECT_SCHEMA, SIDE_FILES, is_damage, schema_problem

Progress = Callable[[int, int], None]
"""(done, total), of whatever is counted."""
STEP_PAGES: Final = 4_000
"""How much is copied before the progress is told (16 MB)."""
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
"""What a file system says that has no hard links, as FAT and many shares, or that allows us none."""
_HINT: Final = "Check that the disk has space, and that the files may be read and written."


def back_up(book: Path, target: Path, progress: Progress | None = None) -> None:
    """Copy a SQLite book, as it stands at one moment, into one new file. The writer goes on meanwhile. Raises
    UsageError if `target` exists or its folder does not, or there is no book, BookCorrupt if it is none, SawyerError if
    it cannot be read or written; then there is no `target`."""
    if not book.is_file():
        raise UsageError(f"no book at {book}", hint="Name the --home of the network's founder.")
    with _drafted(target) as draft:
        with (
            _failing(f"cannot back up {book}"),
            closing(_read_only(book)) as source,
            closing(sqlite3.connect(draft)) as copy,
        ):
            source.execute("BEGIN")  # one snapshot: otherwise SQLite begins anew after each commit of the writer
            problem = schema_problem(source.execute(SELECT_SCHEMA), BOOK_SCHEMA)
            if problem:
                raise BookCorrupt(f"{book} is no book: {problem}")
            source.backup(copy, pages=STEP_PAGES, progress=_telling(progress))
            copy.execute("PRAGMA journal_mode=DELETE")  # whole in one file
        _sync(draft)


def rebuild(source: Source, target: Path, progress: Progress | None = None) -> None:
    """Write every row of a book into a new SQLite file. Raises what the source does, and BookCorrupt for
    a row that stands twice."""
    with closing(Store.sqlite(target, "NORMAL")) as store:
        _copy(source, store, progress)
    _sync(target)


def fill(source: Source, store: Store) -> None:
    """Write every row of a book that was verified into an empty store. Raises UsageError if it is not empty."""
    held = store.size()
    if held:
        raise UsageError(
            f"the database holds {held} rows of a book already",
            hint="Name an empty schema: SAWYER_LEDGER_URL='postgresql://...?schema=NAME'.",
        )
    _copy(source, store)


@dataclass(frozen=True)
class Compared:
    """Two books, row by row. `equal`: how many of the first rows are the same; `lost`: the number of rows that only the
    older one has; `differ`: both have a row after the equal ones, and not the same; `same`: neither has a row that the
    other has not."""

    equal: int
    lost: int
    differ: bool
    same: bool = False


def compare(older: Source, newer: Source) -> Compared:
    """Whether `newer` goes on where `older` ends."""
    equal = 0
    with closing(older.rows()) as old, closing(newer.rows()) as new:
        pairs = zip_longest(old, new)
        for ours, theirs in pairs:
            if ours == theirs:
                equal += 1
                continue
            lost = 0 if ours is None else 1 + sum(1 for left, _ in pairs if left is not None)
            return Compared(equal, lost, ours is not None and theirs is not None)
    return Compared(equal, 0, False, same=True)


def put_in_place(made: Path, book: Path) -> Path | None:
    """Make `made` the book. The one that stands there is kept beside it; its new name is returned. Raises UsageError if
    a program has it open, SawyerError; then nothing has changed."""
    with _failing(f"cannot put the book {book} in place"):
        _close_wal(made)
        former = _set_aside(book) if book.exists() else None
        made.replace(book)
        durable.sync_folder(book.parent)
    return former


def _set_aside(book: Path) -> Path:
    """Give the book a second name, so that at every moment there is one under the first."""
    _close_wal(book)
    former = durable.former_name(book)
    for suffix in SIDE_FILES:
        with suppress(FileNotFoundError):
            book.with_name(book.name + suffix).rename(former.with_name(former.name + suffix))
    try:
        former.hardlink_to(book)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with _folder_beside(former) as folder:
            draft = folder / "copy"
            shutil.copy2(book, draft)
            _sync(draft)
            _move_to_new(draft, former)
    return former


def _close_wal(book: Path) -> None:
    """Fold the -wal file into the book, which SQLite does only for who is alone with it. What is no database is left
    as it is: SQLite would delete what lies beside it."""
    try:
        with closing(_read_only(book)) as connection:
            connection.execute(SELECT_SCHEMA).fetchall()
        with closing(sqlite3.connect(book, isolation_level=None, timeout=0)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE").fetchone()
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise UsageError(f"a program has {book} open", hint="Stop the bookkeeper first.") from error
        if not is_damage(error):
            raise


@contextmanager
def _drafted(target: Path) -> Iterator[Path]:
    """A file beside `target` that becomes it in the end, whole or not at all."""
    with _failing(f"cannot write {target}"):
        if target.exists() or target.is_symlink():
            raise UsageError(f"{target} exists", hint="Name a new file: a backup never takes the place of another.")
        if not target.parent.is_dir():
            raise UsageError(f"there is no folder {target.parent}", hint="Make it first, or name another file.")
        with _folder_beside(target) as folder:
            draft = folder / "draft"
            yield draft
            draft.chmod(0o600)
            try:
                target.hardlink_to(draft)  # which fails if there is one by now
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                _move_to_new(draft, target)
            durable.sync_folder(target.parent)


@contextmanager
def _folder_beside(file: Path) -> Iterator[Path]:
    """A folder on the same disk, gone in the end."""
    folder = Path(tempfile.mkdtemp(dir=file.parent, prefix=f".{file.name}."))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_to_new(made: Path, name: Path) -> None:
    """Where there are no hard links: take the name, which fails if there is one by now, and put the file there."""
    name.touch(exist_ok=False)
    made.replace(name)


def _copy(source: Source, store: Store, progress: Progress | None = None) -> None:
    total = source.size_rows() if progress is not None else 0
    done = 0
    with closing(source.rows()) as rows:
        while batch := list(islice(rows, PAGE_ROWS)):
            try:
                store.append(batch)
            except WriterFenced as error:
                raise BookCorrupt(f"one of the rows {done + 1} to {done + len(batch)} stands twice") from error
            done += len(batch)
            if progress is not None:
                progress(done, max(done, total))


def _read_only(book: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(book.resolve()))}?mode=ro", uri=True, isolation_level=None)


def _telling(progress: Progress | None) -> Callable[[int, int, int], object] | None:
    if progress is None:
        return None
    return lambda _, left, total: progress(total - left, total)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _failing(what: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if is_damage(error):
            raise BookCorrupt(f"{what}: it is damaged, or no database: {error}") from error
        raise SawyerError(f"{what}: {error}", hint=_HINT) from error
    except OSError as error:
        raise SawyerError(f"{what}: {error.strerror}", hint=_HINT) from error
