"""Writing a folder of large files so that a kill at any moment leaves nothing wrong behind.

A file gets its final name by one rename, after its bytes are on disk. A journal beside the files remembers the digests
of finished ones, so the work continues where it stopped. What the files hold is the caller's business.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sawyer import durable
from sawyer.durable import naming, sync_folder
from sawyer.errors import ArtifactCorrupt, Busy, NotCanonical
from sawyer.model.artifacts import check_file
from sawyer.schemas.models import FileDigest

JOURNAL_FILE: Final = ".split-journal"
PART_SUFFIX: Final = ".part"

Chunk = NDArray[Any] | bytes
Sections = Iterable[tuple[int, Iterable[Chunk]]]
"""(offset in the file, chunks that follow each other from there), ascending; the gaps are zeros."""


class Journal:
    """The files that earlier runs of the same job finished. `job` names everything that decides their bytes: what a
    journal of another job says counts for nothing.

    A run that splits some layers keeps a journal of its own, named after them: so the folders of several machines can
    be copied into one, and each brings the digests of its files."""

    def __init__(self, folder: Path, job: str, part: str = "") -> None:
        self._folder = folder
        self._path = folder / (f"{JOURNAL_FILE}.{part}" if part else JOURNAL_FILE)
        others = [path for path in sorted(folder.glob(f"{JOURNAL_FILE}*")) if path != self._path]
        read = {path: _finished(path, job) for path in (*others, self._path)}
        self.strange = tuple(path.name for path in others if read[path] is None)
        """The journals here that are of another job."""
        own = read[self._path] or {}
        self._finished = {name: digest for each in read.values() for name, digest in (each or {}).items()}
        durable.replace(self._path, b"\n".join([job.encode(), *(one.canonical() for one in own.values()), b""]))

    def digest(self, path: str) -> FileDigest | None:
        """The digest of a file that is finished, if there is still one of that size."""
        digest = self._finished.get(path)
        try:
            return digest if digest and (self._folder / path).stat().st_size == digest.size_bytes else None
        except OSError:
            return None

    def kept(self, path: str) -> FileDigest | None:
        """The digest of a file that is finished, and whose bytes on disk still have that digest."""
        digest = self.digest(path)
        if digest is not None:
            try:
                check_file(self._folder, digest)
            except ArtifactCorrupt:
                return None
        return digest

    def append(self, digest: FileDigest) -> None:
        """The line is on disk when this returns: what the file was made of may go then."""
        with naming(self._path), self._path.open("ab") as stream:
            stream.write(digest.canonical() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._finished[digest.path] = digest

    def remove(self) -> None:
        """All of them, and drafts that a kill left: the work is done."""
        for path in (*self._folder.glob(f"{JOURNAL_FILE}*"), *self._folder.glob(f".{JOURNAL_FILE}*")):
            path.unlink()


def _finished(journal: Path, job: str) -> dict[str, FileDigest] | None:
    """What a journal says; nothing if there is none, None if it is of another job."""
    if not journal.is_file():
        return {}
    first, *lines = journal.read_bytes().split(b"\n")
    return dict(_digests(lines)) if first == job.encode() else None


def _digests(lines: Iterable[bytes]) -> Iterator[tuple[str, FileDigest]]:
    """A line that a kill cut short ends the journal."""
    for line in lines:
        try:
            digest = FileDigest.parse(line)
        except NotCanonical:
            return
        yield digest.path, digest


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Makes the folder and holds its lock; a killed process loses it by itself. Raises Busy if another one holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(
                f"another process is writing to {folder}", hint="Wait for it, or choose another folder."
            ) from None
        yield
    finally:
        os.close(descriptor)


def write_file(folder: Path, path: str, sections: Sections, wrote: Callable[[int], None]) -> FileDigest:
    """Writes folder/path and returns its digest. `wrote` hears the bytes written so far, after each chunk."""
    final = folder / path
    part = final.with_name(f".{final.name}{PART_SUFFIX}")
    _make_folder(final.parent)
    digest, size = hashlib.sha256(), 0
    try:
        with naming(final), part.open("wb") as stream:
            for chunk in _with_gaps(sections):
                digest.update(chunk)
                stream.write(chunk)
                size += chunk.nbytes
                wrote(size)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(final)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(final.parent)
    return FileDigest(path=path, size_bytes=size, sha256=digest.hexdigest())


def _make_folder(folder: Path) -> None:
    """With those above it; their names survive a power cut."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def _with_gaps(sections: Sections) -> Iterator[memoryview]:
    position = 0
    for offset, chunks in sections:
        if offset > position:
            yield memoryview(bytes(offset - position))
            position = offset
        for chunk in chunks:
            view = memoryview(chunk) if isinstance(chunk, bytes) else np.ascontiguousarray(chunk).data.cast("B")
            position += view.nbytes
            yield view
