"""Files that a command reads or writes for a person: where it may write, and how much it reads of what was named."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from sawyer import durable
from sawyer.errors import UsageError, VerificationError
from sawyer.home import Home
from sawyer.ledger.tables import with_side_files

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
"""Of a proof or checkpoint."""


def read_text(path: Path) -> str:
    """A proof or a checkpoint that a person named. Raises UsageError for what cannot be read, is no regular file (which
    may have no end, or none to write to it) or is too long, VerificationError for what is no text."""
    try:
        with open(path, "rb", opener=_open_now) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UsageError(f"{path} is not a regular file", hint="Save it to a file first, and name that.")
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="Check the path.") from error
    if len(raw) > MAX_FILE_BYTES:
        raise UsageError(
            f"{path} is larger than {MAX_FILE_BYTES} bytes: it is no proof and no checkpoint", hint="Check the path."
        )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise VerificationError(f"{path} is not text", hint="It was damaged on the way: copy it again.") from error


def write_text(target: Path, text: str, decode: Callable[[str], object]) -> None:
    """Write a file whole, exactly this text. What stands there is replaced only if it is empty, or of the same kind:
    what `decode` raises no VerificationError for. Raises UsageError, OSError."""
    target = target.resolve()
    if target.exists() and not (target.is_file() and _may_go(target, decode)):
        raise UsageError(
            f"{target} exists, and is something else", hint="Name a new file, or delete that one if it is of no use."
        )
    durable.replace(target, text.encode())


def check_target(target: Path, inputs: Iterable[Path], home: Home) -> None:
    """Raises UsageError if a command would write over what it reads, or over the book, the views or the checkpoints of
    a home, this one or another; or if there is no folder to write in."""
    check_folder(target)
    for file in inputs:
        if _is_same(target, file):
            raise UsageError(f"{target} is what this command reads", hint="Write to another file.")
    beside = Home(target.resolve().parent)
    for each in (home, beside) if (beside.path / "network.json").exists() else (home,):
        if any(_is_same(target, file) for file in _kept_by(each)):
            raise UsageError(f"{target} belongs to the home {each.path}", hint="Write to another file.")


def check_folder(target: Path) -> None:
    """Raises UsageError if the file cannot be made where it is named: no folder is made for it."""
    if target.is_dir():
        raise UsageError(f"{target} is a folder", hint="Name a file in it.")
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent}", hint="Make it first, or name another file.")


def _is_same(one: Path, other: Path) -> bool:
    """Whether two names are of one file, which need not be there."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def files_of(book: str | None) -> list[Path]:
    """The files of a book that a person named by `--book`; none for an address."""
    return [] if book is None or "://" in book else with_side_files(Path(book))


def _kept_by(home: Home) -> list[Path]:
    from sawyer.ledger.book import SNAPSHOT_FILE

    snapshot = home.path / SNAPSHOT_FILE
    return [*with_side_files(home.book), *with_side_files(home.views), snapshot, home.checkpoint, home.cosigned]


def _may_go(target: Path, decode: Callable[[str], object]) -> bool:
    with suppress(UsageError, VerificationError):
        held = read_text(target)
        if held:
            decode(held)
        return True
    return False


def _open_now(path: str, flags: int) -> int:
    """A pipe that nobody writes to would be waited for."""
    return os.open(path, flags | os.O_NONBLOCK)
