"""Small files that must survive a power cut: whole or not at all, mode 0600. Owns how they are written, not what.

A rename is durable only once the folder is synced; a draft has a name of its own, so two writers never share one.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

_UNNAMED = getattr(os, "O_TMPFILE", 0)


def replace(path: Path, content: bytes) -> None:
    """Set the file to `content`; its folder is made (0700) if missing. Raises OSError; then the old file stands."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with naming(path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        draft = Path(name)
        try:
            _fill(descriptor, content)
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def create(path: Path, content: bytes) -> None:
    """Make the file; its folder is made (0700) if missing. Raises FileExistsError if there is one: of two processes one
    wins. On Linux the draft has no name, so that a crash leaves no secret behind."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with naming(path):
        if not _link_unnamed(path, content):
            _link_draft(path, content)
        sync_folder(path.parent)


def destroy(path: Path) -> None:
    """Remove the file, its bytes overwritten first: as far as the file system and the disk really write in place, and
    not in copies elsewhere. Nothing happens if there is none. Raises OSError."""
    with naming(path):
        try:
            descriptor = os.open(path, os.O_WRONLY)
        except FileNotFoundError:
            return
        _fill(descriptor, bytes(os.fstat(descriptor).st_size))
        path.unlink(missing_ok=True)
        sync_folder(path.parent)


def former_name(path: Path) -> Path:
    """A name beside it that nothing has, for what must not be lost where something else takes its place."""
    names = (path.with_name(f"{path.name}.former-{number}") for number in count(1))
    return next(name for name in names if not os.path.lexists(name))


def set_aside(path: Path) -> Path:
    """Give a file a name beside it, for good, and return that. Raises OSError."""
    with naming(path):
        former = path.rename(former_name(path))
        sync_folder(path.parent)
    return former


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError in here names the file that is written: a person knows nothing of drafts and descriptors."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _link_unnamed(path: Path, content: bytes) -> bool:
    """False where the system or the file system has no unnamed files."""
    if not _UNNAMED:
        return False
    try:
        descriptor = os.open(path.parent, _UNNAMED | os.O_RDWR, 0o600)
    except OSError:
        return False
    try:
        _write(descriptor, content)
        # naming a folder descriptor makes Python call linkat, which follows this link; link(2) does not
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)
    except FileNotFoundError:  # no /proc here
        return False
    finally:
        os.close(descriptor)
    return True


def _link_draft(path: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    draft = Path(name)
    try:
        _fill(descriptor, content)
        os.link(draft, path)
    finally:
        draft.unlink()


def _fill(descriptor: int, content: bytes) -> None:
    try:
        _write(descriptor, content)
    finally:
        os.close(descriptor)


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """A rename is durable when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
