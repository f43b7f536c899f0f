"""A model from the network's store: what its operator signed is checked before anything is believed, and every file
against the manifest before it has its name. Owns that way; the bytes' own is bus.objects, their place model.cache.

The key of an operator is whatever the caller says it is: who speaks for a network is ledger.succession's to know.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from sawyer import durable
from sawyer.bus.connection import NatsBus
from sawyer.bus.objects import Bucket
from sawyer.bus.publishing import MAX_PUBLISHED_BYTES, SignedPublication
from sawyer.bus.several import each_of
from sawyer.contexts import NatsTarget
from sawyer.errors import (
    ArtifactCorrupt,
    BadSignature,
    NoStore,
    NotCanonical,
    VerificationError,
    WrongManifest,
)
from sawyer.identity.envelope import check_signed
from sawyer.model.artifacts import MAX_MANIFEST_BYTES, Artifacts
from sawyer.model.cache import PUBLISHED_FILE, ModelCache, Room, Verified, WrongBytes, named_now
from sawyer.schemas import subjects
from sawyer.schemas.base import parse_as
from sawyer.schemas.events import KIND_OF, ModelPublished
from sawyer.schemas.models import MANIFEST_FILE, FileDigest, Manifest
from sawyer.schemas.signed import Signed

OPERATOR: Final = "operator"
_AGAIN: Final = (
    "It was fetched twice and thrown away. Tell the network's operator, who has to publish it anew: "
    "sawyer models rm MODEL --from-network --all, then sawyer models publish MODEL."
)


@dataclass(frozen=True)
class Wanted:
    """Which weights, and whose word counts: the keys that are, or once were, the operator's."""

    network: str
    model: str
    manifest: str
    operators: frozenset[str]

    @property
    def bucket(self) -> str:
        return subjects.model_bucket(self.model, self.manifest)

    def check(self, published: bytes, manifest: bytes, where: str) -> Manifest:
        """The manifest, if an operator of this network signed it as this one. Raises VerificationError."""
        try:
            statement: Signed[ModelPublished] = parse_as(SignedPublication, published)
            found = Manifest.parse(manifest)
        except NotCanonical as error:
            raise ArtifactCorrupt(f"{where}: {error.message}", hint=_NOT_OFFERED) from error
        body, signer = statement.body, statement.signature
        if signer.key_id not in self.operators or signer.by != OPERATOR:
            raise BadSignature(
                f"{where} is signed by {signer.key_id} ({signer.by}), who is no operator of {self.network}",
                hint=_NOT_OFFERED,
            )
        check_signed(statement, KIND_OF[ModelPublished])
        got = (body.network, body.model, body.manifest, found.model, found.digest())
        expected = (self.network, self.model, self.manifest, self.model, self.manifest)
        if got != expected:
            raise WrongManifest(
                f"{where} is {body.model} {body.manifest[:16]} of {body.network} with the manifest of {found.model} "
                f"{found.digest()[:16]}, expected {self.model} {self.manifest[:16]} of {self.network}",
                hint=_NOT_OFFERED,
            )
        return found


_NOT_OFFERED: Final = "Nothing of it is used. Tell the network's operator, who can publish it again."


@dataclass(frozen=True)
class PullProgress:
    """How far it is, in files and bytes that come from the network."""

    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int


class PulledModel:
    """A model whose files are in the cache as far as they were brought. Connects only while it brings some."""

    def __init__(self, target: NatsTarget, wanted: Wanted, cache: ModelCache, artifacts: Artifacts) -> None:
        self.artifacts = artifacts
        self.progress: Callable[[PullProgress], None] | None = None
        self._target = target
        self._wanted = wanted
        self._cache = cache
        self._files = {each.path: each for each in artifacts.manifest.files}
        self._verified = Verified(artifacts.folder)

    @classmethod
    def kept(cls, target: NatsTarget, wanted: Wanted, cache: ModelCache) -> PulledModel | None:
        """What is in the cache of it, signature and manifest checked; None if that is not there, or not right."""
        folder = cache.model(wanted.model, wanted.manifest)
        try:
            wanted.check((folder / PUBLISHED_FILE).read_bytes(), (folder / MANIFEST_FILE).read_bytes(), str(folder))
            return cls(target, wanted, cache, Artifacts.open(folder))
        except (OSError, VerificationError, WrongManifest):
            return None

    @classmethod
    async def open(cls, target: NatsTarget, wanted: Wanted, cache: ModelCache) -> PulledModel:
        """What is in the cache of it, else what the network's store has. Raises NoStore if it is not offered,
        VerificationError or WrongManifest if what is offered is not what the operator signed, UnreachableError."""
        kept = await asyncio.to_thread(cls.kept, target, wanted, cache)
        if kept is not None:
            named_now(kept.artifacts.folder)
            return kept
        async with _bucket(target, wanted) as bucket:
            published = await _small(bucket, PUBLISHED_FILE, MAX_PUBLISHED_BYTES)
            manifest = await _small(bucket, MANIFEST_FILE, MAX_MANIFEST_BYTES)
        folder = cache.model(wanted.model, wanted.manifest)
        checked = wanted.check(published, manifest, f"bucket {wanted.bucket}")
        artifacts = Artifacts(folder, checked)
        durable.replace(folder / PUBLISHED_FILE, published)
        durable.replace(folder / MANIFEST_FILE, manifest)
        return cls(target, wanted, cache, artifacts)

    async def bring(self, paths: Iterable[str], *, suspect: bool = False) -> None:
        """Returns when these files are here and whole; one that is here with wrong bytes is replaced (`suspect`: also
        one that was right when it was looked at last, and has not changed for the system). Raises ArtifactCorrupt,
        which names file, bucket and digests, NoSpace before anything is fetched, NoStore, UnreachableError."""
        wanted = [self._files[path] for path in dict.fromkeys(paths)]
        if suspect:
            for each in wanted:
                self._verified.forget(each)
        missing = await asyncio.to_thread(lambda: [each for each in wanted if not self._verified.is_right(each)])
        if not missing:
            return
        await asyncio.to_thread(self._cache.check_fits, wanted, missing)
        await asyncio.to_thread(self._cache.sweep)
        keep = {self.artifacts.folder / each.path for each in wanted}
        counter = _Counter(missing, self.progress)
        with contextlib.ExitStack() as rooms:
            room = await asyncio.to_thread(rooms.enter_context, self._cache.room(keep))

            async def fetch(file: FileDigest) -> None:
                await self._fetch(bucket, file, room, counter)

            async with _bucket(self._target, self._wanted) as bucket:
                await each_of(missing, fetch)

    async def _fetch(self, bucket: Bucket, file: FileDigest, room: Room, counter: _Counter) -> None:
        problem: ArtifactCorrupt | None = None
        await asyncio.to_thread(room.take, self.artifacts.folder / file.path, file.size_bytes)
        for _ in range(2):
            came = _Came(counter)
            try:
                await self._receive(bucket, file, came)
                counter.finished()
                return
            except WrongBytes as error:
                came.count_for_nothing()
                problem = error
        assert problem is not None
        raise ArtifactCorrupt(f"bucket {bucket.name}: {problem.message}", hint=_AGAIN) from problem

    async def _receive(self, bucket: Bucket, file: FileDigest, came: _Came) -> None:
        stored = await bucket.find(file.path)
        if stored is None:
            raise WrongBytes(f"{file.path} is not in the bucket")
        with self._cache.receiving(self.artifacts.folder, file) as taking:

            def write(page: Sequence[bytes]) -> None:
                for chunk in page:
                    taking.write(chunk)

            async for page in bucket.get(stored, file.size_bytes):
                await asyncio.to_thread(write, page)
                came.add(sum(map(len, page)))
        if taking.told is not None:
            self._verified.remember(file, taking.told)


class _Counter:
    def __init__(self, missing: Sequence[FileDigest], progress: Callable[[PullProgress], None] | None) -> None:
        self._files_done, self._files_total = 0, len(missing)
        self._bytes_total = sum(each.size_bytes for each in missing)
        self._progress = progress
        self.bytes_done = 0

    def add(self, size_bytes: int) -> None:
        self.bytes_done += size_bytes
        self._tell()

    def finished(self) -> None:
        self._files_done += 1
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            done = min(self.bytes_done, self._bytes_total)
            self._progress(PullProgress(self._files_done, self._files_total, done, self._bytes_total))


class _Came:
    """What came of one file."""

    def __init__(self, counter: _Counter) -> None:
        self._counter = counter
        self._bytes = 0

    def add(self, size_bytes: int) -> None:
        self._bytes += size_bytes
        self._counter.add(size_bytes)

    def count_for_nothing(self) -> None:
        self._counter.bytes_done -= self._bytes


@contextlib.asynccontextmanager
async def _bucket(target: NatsTarget, wanted: Wanted) -> AsyncIterator[Bucket]:
    """The bucket of these weights, over a connection of its own: its bytes must not stand before heartbeats."""
    bus = await NatsBus.connect(target, name=f"pull {wanted.model}")
    try:
        yield Bucket(bus, wanted.bucket)
    finally:
        await bus.close()


async def _small(bucket: Bucket, name: str, limit_bytes: int) -> bytes:
    """All of a small object. Raises NoStore if there is none, ArtifactCorrupt if it is not small."""
    found = await bucket.read(name, limit_bytes)
    if found is None:
        raise NoStore(
            f"bucket {bucket.name} has no {name}: its publishing did not come to its end",
            hint="Its operator goes on with `sawyer models publish MODEL`.",
        )
    if len(found) > limit_bytes:
        raise ArtifactCorrupt(f"bucket {bucket.name}: {name} is over {limit_bytes} bytes", hint=_NOT_OFFERED)
    return found
