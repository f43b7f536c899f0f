"""Bringing files of a repository into a folder: whole, resumable, and checked before they get their names. Owns what a
repository is to us, and one file's way; which files a checkpoint needs is in model.remote, the library in model.hub."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import msgspec

from sawyer.durable import naming, sync_folder
from sawyer.errors import CheckpointCorrupt, NoSpace, UnreachableError
from sawyer.ids import slug_of
from sawyer.model.writing import PART_SUFFIX

PAUSES_S: Final = (0.2, 1.0, 3.0, 10.0)
"""Before it is tried again, as long as nothing comes; each byte that comes starts them anew."""
_READ_BYTES: Final = 1 << 22
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_MAX_ID: Final = 96
_NO_ID: Final = (".", "-", ".git", ".gguf", ".safetensors", ".json")
_NOT_INSIDE: Final = re.compile(r"--|\.\.|[.-]/")
_HUB_ID: Final = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(\w[\w./-]*))?", re.ASCII)


class HubId(msgspec.Struct, frozen=True):
    """A repository and one of its branches, tags or commits: `owner/name` or `owner/name@revision`."""

    repo: str
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> HubId | None:
        """None if it does not read as one, as the hub allows names, or reads as a file's path."""
        found = _HUB_ID.fullmatch(text)
        if found is None or len(found[1]) > _MAX_ID or found[1].endswith(_NO_ID) or _NOT_INSIDE.search(found[1]):
            return None
        return cls(found[1], found[2] or "main")

    @property
    def folder_name(self) -> str:
        """A name for its folder: another revision has another one."""
        named = self.repo if self.revision == "main" else f"{self.repo}@{self.revision}"
        return named.replace("/", "--")

    @property
    def model_name(self) -> str:
        """The repository's name as a model id: `Mixtral-8x7B-v0.1` is mixtral-8x7b-v0-1."""
        return slug_of(self.repo.split("/")[1])

    def __str__(self) -> str:
        return self.repo if self.revision == "main" else f"{self.repo}@{self.revision}"


class RemoteFile(msgspec.Struct, frozen=True):
    """A file as the repository lists it. Large ones have a SHA-256, small ones the id that git gives their content."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[^./\x00][^/\x00]*$")]
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")]
    git_sha1: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{40}$")]


class Listing(msgspec.Struct, frozen=True):
    """What a repository has at one commit."""

    source: HubId
    commit: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{40,64}$")]
    files: tuple[RemoteFile, ...]

    def file(self, name: str) -> RemoteFile | None:
        """None if there is no such file."""
        return next((file for file in self.files if file.name == name), None)


class Repository(Protocol):
    """Whoever has the files. Both methods raise UnreachableError where trying again may help, and other errors where it
    does not."""

    def listing(self) -> Listing:
        """What is there, now."""
        ...

    def stream(self, commit: str, name: str, start: int, end: int) -> Generator[bytes, None, None]:
        """The bytes of a file from `start` to `end`. Less may come, and more, and it may be wrong."""
        ...


Heard = Callable[[int], None]
"""Hears how many bytes of a file are here."""


def fetch(
    repository: Repository,
    commit: str,
    file: RemoteFile,
    folder: Path,
    heard: Heard | None = None,
    pauses_s: Sequence[float] = PAUSES_S,
) -> Path:
    """Brings one file into the folder, from where an earlier try stopped, and returns it. Raises CheckpointCorrupt (it
    is not what the repository lists), NoSpace, and what the repository raises."""
    final, part = folder / file.name, part_of(folder, file)
    if is_here(folder, file):
        return final
    with _saying_when_full(final):
        while True:
            resumed = part.exists()
            try:
                _fill(repository, commit, file, part, heard or _nobody, pauses_s)
                break
            except _WrongBytes:
                part.unlink(missing_ok=True)
                if not resumed:  # else it may be the old beginning that is wrong: once more without it
                    raise
        part.replace(final)
        sync_folder(folder)
    return final


def is_here(folder: Path, file: RemoteFile) -> bool:
    """Whether the file is whole. It got its name after it was checked, so the size is enough: nobody else's files are
    in the folder (remote.py)."""
    try:
        return (folder / file.name).stat().st_size == file.size_bytes
    except FileNotFoundError:
        return False


def bytes_here(folder: Path, file: RemoteFile) -> int:
    """How much of it needs no download any more."""
    if is_here(folder, file):
        return file.size_bytes
    try:
        return min(part_of(folder, file).stat().st_size, file.size_bytes)
    except FileNotFoundError:
        return 0


def part_of(folder: Path, file: RemoteFile) -> Path:
    """Where its beginning is kept until it is whole."""
    return folder / f".{file.name}{PART_SUFFIX}"


def remove(folder: Path, file: RemoteFile) -> None:
    """Frees the room that it takes."""
    (folder / file.name).unlink(missing_ok=True)
    part_of(folder, file).unlink(missing_ok=True)


def chunks(
    repository: Repository, commit: str, name: str, start: int, end: int, pauses_s: Sequence[float]
) -> Generator[bytes, None, None]:
    """The bytes of a file from `start` to `end`, however often the line breaks. Raises what the repository raises."""
    position, pauses = start, iter(pauses_s)
    while position < end:
        before = position
        try:
            with closing(repository.stream(commit, name, position, end)) as stream:
                for chunk in stream:
                    yield chunk[: end - position]
                    position += len(chunk)
                    if position >= end:
                        return
            problem = UnreachableError(f"{name} ended after {position} of {end} bytes", hint=_GOES_ON)
        except UnreachableError as error:
            problem = error
        if position > before:
            pauses = iter(pauses_s)
        pause_s = next(pauses, None)
        if pause_s is None:
            raise problem
        time.sleep(pause_s)


def _fill(
    repository: Repository, commit: str, file: RemoteFile, part: Path, heard: Heard, pauses_s: Sequence[float]
) -> None:
    """Makes the part whole and right, and its bytes safe."""
    checksum = _Checksum(file)
    with part.open("a+b") as stream:
        stream.seek(0)
        while chunk := stream.read(_READ_BYTES):
            checksum.update(chunk)
        heard(checksum.size)
        for chunk in chunks(repository, commit, file.name, checksum.size, file.size_bytes, pauses_s):
            checksum.update(chunk)
            stream.write(chunk)
            heard(checksum.size)
        checksum.check()
        stream.flush()
        os.fsync(stream.fileno())


class _WrongBytes(CheckpointCorrupt):
    """What came, or was here of an earlier try, is not what was listed."""


class _Checksum:
    """Size and digest of what has come of a file."""

    def __init__(self, file: RemoteFile) -> None:
        self.size = 0
        self._file = file
        self._hash: Any = hashlib.sha256()
        if not file.sha256:
            self._hash = hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)  # as git names a content

    def update(self, chunk: bytes) -> None:
        """Raises CheckpointCorrupt as soon as it is too much."""
        self.size += len(chunk)
        self._hash.update(chunk)
        if self.size > self._file.size_bytes:
            raise _WrongBytes(
                f"{self._file.name}: {self._file.size_bytes} bytes are listed, and more are here", hint=_WRONG
            )

    def check(self) -> None:
        """Raises CheckpointCorrupt unless it is what was listed."""
        wanted, got = self._file.sha256 or self._file.git_sha1, self._hash.hexdigest()
        if got != wanted:
            kind = "SHA-256" if self._file.sha256 else "git id"
            raise _WrongBytes(f"{self._file.name}: expected {kind} {wanted}, got {got}", hint=_WRONG)


_GOES_ON: Final = "Start the same command again: it goes on where it stopped."
_WRONG: Final = (
    "What came was thrown away. Start the same command again; if it says the same, the hub, or a mirror or proxy "
    "between, gives other bytes than it lists."
)


@contextmanager
def _saying_when_full(path: Path) -> Iterator[None]:
    """An OSError in here names the file; a full disk is a NoSpace."""
    try:
        with naming(path):
            yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise NoSpace(
            f"{path}: the disk is full; what came is kept",
            hint="Free some space there (`df -h` shows it), and start the same command again: it goes on.",
        ) from error


def _nobody(_: int) -> None:
    """Nobody listens."""
