"""A checkpoint that is in a repository: opened by the headers of its shards, which then come one after the other, while
they are split. Owns which files it needs, when, and how much room they take; one file's way is in model.downloads."""

from __future__ import annotations

import hashlib
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec

from sawyer import durable
from sawyer.errors import CheckpointCorrupt, NoSpace, UnreachableError, UnsupportedModel, UsageError
from sawyer.model.checkpoint import (
    CONFIG_FILE,
    GENERATION_FILE,
    INDEX_FILE,
    MAX_HEADER_BYTES,
    MAX_JSON_BYTES,
    SINGLE_FILE,
    Checkpoint,
    StoredTensor,
    TensorRef,
    parse_header,
    read_header,
    read_index,
)
from sawyer.model.downloads import (
    PAUSES_S,
    HubId,
    Listing,
    RemoteFile,
    Repository,
    bytes_here,
    chunks,
    fetch,
    is_here,
    remove,
)
from sawyer.model.families import family_of
from sawyer.model.layout import TOKENIZER_FILE
from sawyer.model.supply import Step, in_order_of_shards, last_uses, missing_shards, most_added
from sawyer.model.writing import only_writer

LISTING_FILE: Final = ".hub.json"
"""What the repository listed when the download began: it goes on with that, not with what came later."""
BESIDE: Final = (
    TOKENIZER_FILE, GENERATION_FILE, "tokenizer_config.json", "chat_template.jinja", "chat_template.json",
    "special_tokens_map.json",
)  # fmt: skip
"""What comes along where it is there."""
_ANOTHER_FOLDER: Final = "Name another folder with --download-to: files in it are replaced and deleted as needed."
_NEW: Final = ".hub.new."
"""A folder for the config of a repository that has changed, until it is accepted."""
_FIRST_BYTES: Final = 1 << 16
"""What is asked of a shard to see its header: most are shorter."""
PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """How far the shards are that this run needs. `name` is the file in work."""

    name: str
    bytes_done: int
    bytes_total: int


Progress = Callable[[DownloadProgress], None]


@contextmanager
def opened(
    repository: Repository,
    source: HubId,
    folder: Path,
    *,
    delete_shards: bool = False,
    progress: Progress | None = None,
    pauses_s: Sequence[float] = PAUSES_S,
) -> Iterator[RemoteCheckpoint]:
    """The checkpoint of a repository; its files come into `folder`, where nobody else may write meanwhile. Raises what
    Checkpoint.open raises, Busy, NoSpace, and what the repository raises."""
    with only_writer(folder):
        for draft in (*folder.glob(f".{LISTING_FILE}.*"), *folder.glob("..*.safetensors.header.*")):
            draft.unlink()  # a kill left it
        for beside in folder.glob(f"{_NEW}*"):
            shutil.rmtree(beside)
        listing = _agreed_listing(repository, source, folder, pauses_s)
        yield RemoteCheckpoint(repository, listing, folder, delete_shards, progress or _silent, pauses_s)


class RemoteCheckpoint:
    """A `checkpoint` to split, and the supply that the split needs."""

    def __init__(
        self,
        repository: Repository,
        listing: Listing,
        folder: Path,
        delete_shards: bool,
        progress: Progress,
        pauses_s: Sequence[float],
    ) -> None:
        self.listing = listing
        self._repository, self._folder, self._pauses_s = repository, folder, pauses_s
        self._delete, self._progress = delete_shards, progress
        self._expected = self._prepare()
        self._shards = self._find_shards()
        self.checkpoint = self._open()
        self._steps: dict[str, Step] = {}
        self._last: Mapping[str, frozenset[int]] = {}
        self._done: dict[int, int] = {}

    # --- the supply of a split ----------------------------------------------------------------------------------------

    def schedule(self, out: Path, sizes: Mapping[str, int], refs: Mapping[str, tuple[TensorRef, ...]]) -> Sequence[str]:
        """Each file as soon as its last shard is there. Raises NoSpace."""
        written = {path for path, size in sizes.items() if _has_size(out / path, size)}
        shards = [self._folder / shard.name for shard in self._shards]
        steps = in_order_of_shards(sizes, refs, self.checkpoint.tensors, shards, written)
        self._check_space(out, steps)
        self._steps = {step.path: step for step in steps}
        self._last = last_uses(steps)
        self._done = {n: bytes_here(self._folder, self._shards[n]) for n in sorted(missing_shards(steps))}
        return tuple(self._steps)

    def before(self, path: str) -> None:
        """Brings the shards that this file is made of."""
        for number in sorted(self._steps[path].shards):
            shard = self._shards[number]

            def heard(size_bytes: int, number: int = number, name: str = shard.name) -> None:
                self._done[number] = size_bytes
                total = sum(self._shards[each].size_bytes for each in self._done)
                self._progress(DownloadProgress(name, sum(self._done.values()), total))

            if not is_here(self._folder, shard):
                self._fetch(shard, heard)
                self._compare_header(shard)

    def after(self, path: str) -> None:
        """Deletes the shards that nothing needs any more, if asked."""
        if self._delete:
            for number in self._last.get(path, ()):
                remove(self._folder, self._shards[number])

    def bytes_here(self) -> int:
        """What its shards take on this disk."""
        return sum(bytes_here(self._folder, shard) for shard in self._shards)

    # --- opening ------------------------------------------------------------------------------------------------------

    def _prepare(self) -> dict[str, list[str]]:
        """Brings everything but the shards, and returns what the index says: no entry where there is no index."""
        _bring_config(self._repository, self.listing, self._folder, self._pauses_s)
        for file in filter(None, map(self.listing.file, BESIDE)):
            self._fetch_small(file)
        index = self.listing.file(INDEX_FILE)
        if self.listing.file(SINGLE_FILE) is not None or index is None:
            return {}
        self._fetch_small(index)
        return read_index(self._folder / INDEX_FILE)

    def _find_shards(self) -> tuple[RemoteFile, ...]:
        """By name: so their tensors follow each other."""
        shards = {name: self.listing.file(name) for name in self._expected or (SINGLE_FILE,)}
        absent = next((name for name, shard in shards.items() if shard is None), None)
        if absent is not None:
            raise CheckpointCorrupt(
                f"{self.listing.source} has no {absent}, and {INDEX_FILE} needs it for {self._expected[absent][0]}",
                hint="Its upload may not be complete: ask its owner, or name another revision (owner/name@revision).",
            )
        return tuple(shard for _, shard in sorted(shards.items()) if shard is not None)

    def _open(self) -> Checkpoint:
        config_raw = (self._folder / CONFIG_FILE).read_bytes()
        identity = hashlib.sha256(config_raw)
        tensors: dict[str, StoredTensor] = {}
        for shard in self._shards:
            found = parse_header(self._folder / shard.name, self._header(shard), shard.size_bytes)
            expected = set(self._expected.get(shard.name, found))
            if expected != found.keys():
                odd = min(expected ^ found.keys())
                raise CheckpointCorrupt(f"{shard.name} and {INDEX_FILE} do not agree about tensor {odd!r}")
            tensors.update(found)
            identity.update(f"{shard.name} {shard.size_bytes} {shard.sha256 or shard.git_sha1} ".encode())
        return Checkpoint(self._folder, config_raw, tensors, identity.hexdigest())

    def _header(self, shard: RemoteFile) -> bytes:
        """The raw header of a shard, which stays here when the shard goes."""
        kept = header_file(self._folder, shard)
        if kept.is_file():
            return kept.read_bytes()
        raw = (
            read_header(self._folder / shard.name)[0]
            if is_here(self._folder, shard)
            else _remote_header(self._repository, self.listing.commit, shard, self._pauses_s)
        )
        durable.replace(kept, raw)
        return raw

    def _compare_header(self, shard: RemoteFile) -> None:
        """What was planned by the header must hold for the file that came."""
        if read_header(self._folder / shard.name)[0] != self._header(shard):
            header_file(self._folder, shard).unlink()
            raise CheckpointCorrupt(f"{shard.name}: its header came in two versions", hint="Start it again.")

    def _fetch_small(self, file: RemoteFile) -> None:
        _fetch_small(self._repository, self.listing, file, self._folder, self._pauses_s)

    def _fetch(self, file: RemoteFile, heard: Callable[[int], None] | None = None) -> None:
        fetch(self._repository, self.listing.commit, file, self._folder, heard, self._pauses_s)

    # --- room ---------------------------------------------------------------------------------------------------------

    def _check_space(self, out: Path, steps: Sequence[Step]) -> None:
        sizes = [shard.size_bytes for shard in self._shards]
        here = [bytes_here(self._folder, shard) for shard in self._shards]
        missing = sum(sizes[n] - here[n] for n in missing_shards(steps))
        at_a_time = most_added(steps, sizes, here)
        writes = sum(step.size_bytes for step in steps if not step.written)
        hint = "Free some, or choose folders on other disks with --out and --download-to."
        if not self._delete and at_a_time < missing:
            hint += f" With --delete-shards the download needs {size_text(at_a_time)} at a time."
        check_space(((self._folder, at_a_time if self._delete else missing), (out, writes)), hint)


def check_space(needs: Sequence[tuple[Path, int]], hint: str) -> None:
    """Raises NoSpace unless the disks of these folders have room for these bytes; a disk of two needs both."""
    by_disk: dict[int, list[tuple[Path, int]]] = {}
    for folder, size_bytes in needs:
        by_disk.setdefault(_existing(folder).stat().st_dev, []).append((folder, size_bytes))
    for wanted in by_disk.values():
        free = shutil.disk_usage(_existing(wanted[0][0])).free
        if sum(size_bytes for _, size_bytes in wanted) > free:
            parts = " and ".join(f"{size_text(size_bytes)} in {folder}" for folder, size_bytes in wanted)
            raise NoSpace(f"{parts} are needed, and {size_text(free)} are free there", hint=hint)


def size_text(size_bytes: int) -> str:
    """94.1 GB, or 3.2 MB."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.1f} MB"


def header_file(folder: Path, shard: RemoteFile) -> Path:
    """Where the header of a shard is kept."""
    return folder / f".{shard.name}.header"


def _bring_config(repository: Repository, listing: Listing, folder: Path, pauses_s: Sequence[float]) -> None:
    """Brings the config, and refuses what cannot be split before anything large comes."""
    config = listing.file(CONFIG_FILE)
    if config is None:
        raise UsageError(
            f"{listing.source} has no {CONFIG_FILE}", hint="Name a repository in the layout of transformers."
        )
    if listing.file(SINGLE_FILE) is None and listing.file(INDEX_FILE) is None:
        raise _no_weights(listing)
    _fetch_small(repository, listing, config, folder, pauses_s)
    plain = Checkpoint(folder, (folder / CONFIG_FILE).read_bytes(), {}, "").config
    family_of(plain).layout(plain)


def _fetch_small(
    repository: Repository, listing: Listing, file: RemoteFile, folder: Path, pauses_s: Sequence[float]
) -> None:
    if file.size_bytes > MAX_JSON_BYTES:
        raise CheckpointCorrupt(f"{listing.source}: {file.name} is larger than {MAX_JSON_BYTES} bytes")
    fetch(repository, listing.commit, file, folder, pauses_s=pauses_s)


def _agreed_listing(repository: Repository, source: HubId, folder: Path, pauses_s: Sequence[float]) -> Listing:
    """What the repository lists now; what is here of files that it has changed since is removed, once its new config is
    one that can be split. Where nobody answers, what it listed before: what is here already can be split."""
    before = _saved_listing(folder)
    if before is not None and before.source != source:
        raise UsageError(f"{folder} holds what came of {before.source}, not of {source}", hint=_ANOTHER_FOLDER)
    try:
        listing = repository.listing()
    except UnreachableError:
        if before is None:
            raise
        return before
    if before is None:
        _refuse_foreign(folder, listing)
    if before is not None and before != listing:
        with TemporaryDirectory(dir=folder, prefix=_NEW) as beside:
            _bring_config(repository, listing, Path(beside), pauses_s)
        for file in before.files:
            if file not in listing.files:
                remove(folder, file)
                header_file(folder, file).unlink(missing_ok=True)
    if before != listing:
        durable.replace(folder / LISTING_FILE, msgspec.json.encode(listing))
    return listing


def _refuse_foreign(folder: Path, listing: Listing) -> None:
    """Raises UsageError for a file that we did not bring: it was never compared with a checksum, and is not ours to
    delete."""
    for file in listing.files:
        if (folder / file.name).exists():
            raise UsageError(f"{folder} holds a {file.name} that Sawyer did not download", hint=_ANOTHER_FOLDER)


def _saved_listing(folder: Path) -> Listing | None:
    try:
        return msgspec.json.decode((folder / LISTING_FILE).read_bytes(), type=Listing)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _no_weights(listing: Listing) -> UnsupportedModel:
    pickles = [file.name for file in listing.files if file.name.endswith(PICKLES)]
    if pickles:
        return UnsupportedModel(
            f"{listing.source} holds its weights as pickle files only ({pickles[0]}), which can run code when they are "
            "opened: Sawyer never reads them",
            hint="Name a revision or another repository that has .safetensors files (owner/name@revision).",
        )
    return UnsupportedModel(
        f"no weights in {listing.source}: neither {SINGLE_FILE} nor {INDEX_FILE} is there",
        hint="Only safetensors checkpoints can be split: name a repository that has one.",
    )


def _remote_header(repository: Repository, commit: str, shard: RemoteFile, pauses_s: Sequence[float]) -> bytes:
    """The raw header of a shard that is not here; its first 8 bytes say how long it is."""

    def read(start: int, end: int) -> bytes:
        return b"".join(chunks(repository, commit, shard.name, start, end, pauses_s))

    begin = read(0, min(_FIRST_BYTES, shard.size_bytes))
    if len(begin) < 8:
        raise CheckpointCorrupt(f"{shard.name} is too short for a safetensors file ({shard.size_bytes} bytes)")
    (length,) = struct.unpack_from("<Q", begin)
    if length > min(MAX_HEADER_BYTES, shard.size_bytes - 8):
        raise CheckpointCorrupt(f"{shard.name}: header of {length} bytes in a file of {shard.size_bytes}")
    return (begin + read(len(begin), 8 + length))[8 : 8 + length]


def _has_size(file: Path, size_bytes: int) -> bool:
    return file.is_file() and file.stat().st_size == size_bytes


def _existing(folder: Path) -> Path:
    """The folder, or the first above it that exists."""
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())


def _silent(_: DownloadProgress) -> None:
    """Nobody watches."""
