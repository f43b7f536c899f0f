"""Models that were pulled: a folder each, with the signed publication, the manifest, and those of its files that were
needed here. Owns the names, the limit, and which files give way to others; not where the bytes come from.

A file has its name only when it is whole and right. Which one was used last says the time of access: the file that was
not used longest gives way. Readers take a file whole, so one that is read meanwhile does no harm, and who misses one
has it fetched again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from sawyer import durable
from sawyer.errors import ArtifactCorrupt, NoSpace, SawyerError, UsageError
from sawyer.model.artifacts import Artifacts, check_file
from sawyer.model.writing import PART_SUFFIX
from sawyer.schemas.models import MANIFEST_FILE, FileDigest

PUBLISHED_FILE: Final = "published.json"
"""The operator's signed publication of the manifest, beside it."""
_WEIGHTS: Final = ".bin"
_PART_ATTEMPTS: Final = 100
_PULLED: Final = re.compile(r"(.+)-[0-9a-f]{16}")
_LIMIT_HINT: Final = "Raise it: cache_limit in config.toml, or SAWYER_CACHE_LIMIT. Or pull less: --experts, --share."


@dataclass(frozen=True)
class Cached:
    """A weights file in the cache."""

    path: Path
    size_bytes: int
    used_ns: int


class ModelCache:
    """The folder of all pulled models; several processes may use it at once."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._rooms: list[Room] = []
        self._swept = False

    def model(self, model: str, manifest: str) -> Path:
        """The folder of these weights, which may not exist yet."""
        return self.folder / f"{model}-{manifest[:16]}"

    def damaged(self) -> list[tuple[str, Path]]:
        """(model, folder) of what was pulled and has no manifest that can be used, or another's."""
        found = []
        for folder in sorted(self.folder.glob("*/")):
            named = _PULLED.fullmatch(folder.name)
            if named is None:
                continue
            try:
                here = Artifacts.open(folder)
                if self.model(here.manifest.model, here.digest).name == folder.name:
                    continue
            except SawyerError:
                pass
            found.append((named[1], folder))
        return found

    def weights(self) -> list[Cached]:
        """Every weights file, the one that was not used longest first."""
        found = []
        for path in self.folder.glob(f"*/*/**/*{_WEIGHTS}"):
            with contextlib.suppress(FileNotFoundError):  # another process had it give way
                told = path.stat()
                found.append(Cached(path, told.st_size, told.st_atime_ns))
        return sorted(found, key=lambda each: (each.used_ns, each.path))

    def size_bytes(self) -> int:
        """What all weights take."""
        return sum(each.size_bytes for each in self.weights())

    def remove(self, folder: Path) -> int:
        """Delete a pulled model; how many bytes that freed. Raises UsageError for a folder that is not in here."""
        if folder.parent != self.folder or _PULLED.fullmatch(folder.name) is None or not folder.is_dir():
            raise UsageError(f"{folder} is no pulled model in {self.folder}")
        freed = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        (folder / MANIFEST_FILE).unlink(missing_ok=True)  # first: without it nobody takes the rest for a model
        shutil.rmtree(folder)
        return freed

    def sweep(self) -> None:
        """Remove what killed pulls left: parts that nobody holds. Once: this one's own pulls leave none."""
        if self._swept:
            return
        self._swept = True
        for path in self.folder.glob(f"**/.*{PART_SUFFIX}"):
            with contextlib.suppress(OSError), path.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    def check_fits(self, wanted: Sequence[FileDigest], missing: Sequence[FileDigest]) -> None:
        """Raises NoSpace if the wanted files are more than the limit, or the missing ones more than the disk has."""
        size_bytes = sum(each.size_bytes for each in wanted)
        if size_bytes > self.limit_bytes:
            raise NoSpace(
                f"{_gb(size_bytes)} are wanted, and the cache of models holds at most {_gb(self.limit_bytes)}",
                hint=_LIMIT_HINT,
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        needed = sum(each.size_bytes for each in missing)
        over = max(0, self.size_bytes() + needed - self.limit_bytes)  # so much gives way
        free = shutil.disk_usage(self.folder).free + over
        if needed > free:
            raise NoSpace(f"{_gb(needed)} are to be pulled into {self.folder}, and its disk has {_gb(free)} free")

    @contextlib.contextmanager
    def room(self, keep: Collection[Path]) -> Iterator[Room]:
        """Room for some files, which never takes one of `keep`. Lists the cache, once."""
        made = Room(self, keep)
        self._rooms.append(made)
        try:
            yield made
        finally:
            self._rooms.remove(made)

    @contextlib.contextmanager
    def receiving(self, folder: Path, file: FileDigest) -> Iterator[Receiving]:
        """A file on its way into a model's folder. At the end it has its name; raises WrongBytes if it is not what the
        manifest says, and then, or after any other error, nothing is left of it."""
        final = folder / file.path
        final.parent.mkdir(parents=True, exist_ok=True)
        with durable.naming(final):
            part, stream = _part(final)
            try:
                with stream:
                    taking = Receiving(stream, file)
                    yield taking
                    taking.check()
                    stream.flush()
                    os.fsync(stream.fileno())
                    taking.told = os.fstat(stream.fileno())
                    part.replace(final)  # while it is locked: nobody takes it for a leftover
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            durable.sync_folder(final.parent)


class Room:
    """What the cache held when this was made, and what came and gave way since: the cache is not listed for each file.
    What other processes bring meanwhile is counted by the next one."""

    def __init__(self, cache: ModelCache, keep: Collection[Path]) -> None:
        self.taken = 0
        """Bytes of the files that it was taken for."""
        self._cache = cache
        self._lock = threading.Lock()
        here = cache.weights()
        self._sizes = {each.path: each.size_bytes for each in here}
        self._used = sum(self._sizes.values())
        self._oldest = deque(each for each in here if each.path not in keep)

    def take(self, path: Path, size_bytes: int) -> None:
        """Room for this file, made by removing what was not used longest; one that it replaces does not count. Raises
        NoSpace if all of the others are not enough."""
        cache = self._cache
        with self._lock:
            others = sum(each.taken for each in cache._rooms if each is not self)
            self._used += size_bytes - self._sizes.get(path, 0)
            while self._used + others > cache.limit_bytes and self._oldest:
                each = self._oldest.popleft()
                if each.path != path:
                    each.path.unlink(missing_ok=True)
                    self._used -= self._sizes.pop(each.path)
            if self._used + others > cache.limit_bytes:
                self._used -= size_bytes - self._sizes.get(path, 0)
                full = f"the cache of models is full: {_gb(cache.limit_bytes)} in {cache.folder}"
                raise NoSpace(full, hint=_LIMIT_HINT)
            self._sizes[path] = size_bytes
            self.taken += size_bytes


def named_now(folder: Path) -> None:
    """The network just named this pulled model as its own."""
    with contextlib.suppress(OSError):
        os.utime(folder / PUBLISHED_FILE)


def named_last_ns(folder: Path) -> int:
    """When the network named this pulled model last, in ns of the system's clock; 0 if it never did."""
    try:
        return (folder / PUBLISHED_FILE).stat().st_mtime_ns
    except OSError:
        return 0


class WrongBytes(ArtifactCorrupt):
    """What came is not what the manifest says."""


class Receiving:
    """Size and digest of what has come of a file."""

    def __init__(self, stream: BinaryIO, file: FileDigest) -> None:
        self.told: os.stat_result | None = None
        """What the file is to the system, once it has its name."""
        self._stream = stream
        self._file = file
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, chunk: bytes) -> None:
        """Raises WrongBytes as soon as it is too much."""
        self._size += len(chunk)
        if self._size > self._file.size_bytes:
            raise WrongBytes(f"{self._file.path}: expected {self._file.size_bytes} bytes, got more")
        self._hash.update(chunk)
        self._stream.write(chunk)

    def check(self) -> None:
        """Raises WrongBytes unless it is what the manifest says."""
        if self._size != self._file.size_bytes:
            raise WrongBytes(f"{self._file.path}: expected {self._file.size_bytes} bytes, got {self._size}")
        got = self._hash.hexdigest()
        if got != self._file.sha256:
            raise WrongBytes(f"{self._file.path}: expected SHA-256 {self._file.sha256}, got {got}")


class Verified:
    """Which files of a folder this process found right, and still are the same files: gigabytes are not hashed at every
    look. A disk can change bytes and nothing else: who reads wrong ones has to `forget`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, tuple[int, int, int]] = {}

    def is_right(self, file: FileDigest) -> bool:
        """Whether it is here as the manifest says; then it counts as used now. Reads it if it is not known yet."""
        path = self._folder / file.path
        try:
            with path.open("rb") as stream:
                told = os.fstat(stream.fileno())
                mark = _mark(told)
                if told.st_size != file.size_bytes:
                    return False
                if self._seen.get(file.path) != mark and _sha256(stream) != file.sha256:
                    return False
        except OSError:
            return False
        self._seen[file.path] = mark
        with contextlib.suppress(OSError):
            os.utime(path, ns=(time.time_ns(), told.st_mtime_ns))
        return True

    def remember(self, file: FileDigest, told: os.stat_result) -> None:
        """This file was verified while it came."""
        self._seen[file.path] = _mark(told)

    def forget(self, file: FileDigest) -> None:
        """Read it at the next look."""
        self._seen.pop(file.path, None)


def _mark(told: os.stat_result) -> tuple[int, int, int]:
    return told.st_ino, told.st_size, told.st_mtime_ns


def problems(artifacts: Artifacts, *, partial: bool) -> Iterator[tuple[str, str]]:
    """(path, what is wrong) of every file that is not as the manifest says; with `partial` a missing one is right."""
    for file in artifacts.manifest.files:
        path = artifacts.folder / file.path
        if not path.is_file():
            if not partial:
                yield file.path, "it is missing"
            continue
        try:
            check_file(artifacts.folder, file)
        except ArtifactCorrupt as error:
            yield file.path, error.message.removeprefix(f"{path}: ")


def _sha256(stream: BinaryIO) -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def _part(final: Path) -> tuple[Path, BinaryIO]:
    """A new file beside it, locked for as long as it is open."""
    for _ in range(_PART_ATTEMPTS):
        descriptor, name = tempfile.mkstemp(dir=final.parent, prefix=f".{final.name}.", suffix=PART_SUFFIX)
        stream = os.fdopen(descriptor, "wb")
        fcntl.flock(stream, fcntl.LOCK_EX)
        if Path(name).exists():  # else a sweep took it for a leftover before it was locked
            Path(name).chmod(0o644)
            return Path(name), stream
        stream.close()
    raise OSError(f"cannot keep a file in {final.parent}")


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:,.2f} GB" if size_bytes >= 1e7 else f"{size_bytes:,} bytes"
