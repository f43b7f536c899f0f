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

from sawyer.durable import naming, sync_folder
from sawyer.errors import ArtifactCorrupt, Busy, NotCanonical
from sawyer.model.artifacts import read_verified
from sawyer.schemas.models import FileDigest

JOURNAL_FILE: Final = ".split-journal"
PART_SUFFIX: Final = ".part"

Chunk = NDArray[Any] | bytes
Sections = Iterable[tuple[int, Iterable[Chunk]]]
"""(offset in the file, chunks that follow each other from there), ascending; the gaps are zeros."""


class Journal:
    """The files that earlier runs of the same job finished. `job` names everything that decides their bytes: a journal
    of another job is dropped."""

    def __init__(self, folder: Path, job: str) -> None:
        self._folder = folder
        self._path = folder / JOURNAL_FILE
        self._path.touch()
        first, *lines = self._path.read_bytes().split(b"\n")
        self._finished = dict(_digests(lines)) if first == job.encode() else {}
        self._path.write_bytes(b"\n".join([job.encode(), *(one.canonical() for one in self._finished.values()), b""]))

    def kept(self, path: str) -> FileDigest | None:
        """The digest of a file that is finished, and whose bytes on disk still have that digest."""
        digest = self._finished.get(path)
        if digest is not None:
            try:
                read_verified(self._folder, digest)
            except ArtifactCorrupt:
                return None
        return digest

    def append(self, digest: FileDigest) -> None:
        with self._path.open("ab") as stream:
            stream.write(digest.canonical() + b"\n")

    def remove(self) -> None:
        self._path.unlink()


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
    final.parent.mkdir(parents=True, exist_ok=True)
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
