"""A split model into the network's store: every file, the manifest, the operator's signed publication, in this order;
then the bucket is sealed. Owns that order, and going on after a kill; not the entry in the book, which comes after.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sawyer.bus.objects import CHUNK_BYTES, Bucket, Stored
from sawyer.bus.several import each_of
from sawyer.errors import ArtifactCorrupt, BadSignature, NotCanonical, RefusedError
from sawyer.identity.envelope import check_signed
from sawyer.model.artifacts import Artifacts
from sawyer.model.cache import PUBLISHED_FILE
from sawyer.model.writing import only_writer
from sawyer.schemas.base import parse_as
from sawyer.schemas.events import KIND_OF, ModelPublished
from sawyer.schemas.models import MANIFEST_FILE, FileDigest
from sawyer.schemas.signed import Signed

SignedPublication = Signed[ModelPublished]
MAX_PUBLISHED_BYTES: Final = 64 * 1024
_ROUNDS: Final = 3
"""How often what is not there, although it was sent, is sent again."""


@dataclass(frozen=True)
class PublishProgress:
    """How far it is: of all files, those that were there already included."""

    bytes_done: int
    bytes_total: int


Heard = Callable[[PublishProgress], None]


async def publish_files(
    bucket: Bucket,
    artifacts: Artifacts,
    statement: bytes,
    heard: Heard | None = None,
    operators: Collection[str] = (),
) -> bool:
    """Returns when the store holds all of it and takes no change any more; False if it did before. `statement` is the
    signed publication, canonical; `operators` are the keys whose signature under the same is as good. Raises
    ArtifactCorrupt for a local file that is not as the manifest says, Busy if another process publishes it,
    RefusedError for a sealed bucket that holds something else or lacks something, NoStore, NoSpace, UnreachableError.
    """
    with only_writer(artifacts.folder):
        state = await bucket.state()
        if state is not None and state.sealed:
            await _check_sealed(bucket, artifacts, statement, operators)
            return False
        await bucket.create()
        async with bucket.alone():
            stored = await bucket.objects()
            await bucket.sweep(stored.values())
            for _ in range(_ROUNDS):
                missing = _missing(stored, artifacts)
                await _put_files(bucket, artifacts, missing, heard)
                for name, content in ((MANIFEST_FILE, artifacts.manifest.canonical()), (PUBLISHED_FILE, statement)):
                    await bucket.put(name, _chunks(content))
                stored = await bucket.objects()
                if not _lacking(stored, artifacts):
                    await bucket.leave()
                    await bucket.seal()
                    return True
    raise RefusedError(
        f"bucket {bucket.name} does not keep {_lacking(stored, artifacts)}, which was sent {_ROUNDS} times",
        hint="Somebody else changes it: see who may write $O.> on the NATS server. It is not sealed.",
    )


def _missing(stored: Mapping[str, Stored], artifacts: Artifacts) -> list[FileDigest]:
    return [file for file in artifacts.manifest.files if not _is_there(stored, file)]


def _lacking(stored: Mapping[str, Stored], artifacts: Artifacts) -> str:
    """The first name that is not there as it is here; "" if all are."""
    missing = [file.path for file in _missing(stored, artifacts)]
    return next(iter((*missing, *sorted({MANIFEST_FILE, PUBLISHED_FILE} - stored.keys()))), "")


async def _check_sealed(bucket: Bucket, artifacts: Artifacts, statement: bytes, operators: Collection[str]) -> None:
    lacking = _lacking(await bucket.objects(), artifacts)
    manifest = artifacts.manifest.canonical()
    if not lacking and await bucket.read(MANIFEST_FILE, len(manifest)) != manifest:
        lacking = MANIFEST_FILE
    if not lacking and not _says_the_same(await bucket.read(PUBLISHED_FILE, MAX_PUBLISHED_BYTES), statement, operators):
        lacking = PUBLISHED_FILE
    if lacking:
        raise RefusedError(
            f"bucket {bucket.name} is sealed, and {lacking} is not in it as it is here",
            hint="Delete it (sawyer models rm MODEL --from-network --all), then publish again.",
        )


def _says_the_same(found: bytes | None, statement: bytes, operators: Collection[str]) -> bool:
    """Whether it is this statement, or the same one under another key that was the operator's."""
    if found == statement or found is None:
        return found == statement
    try:
        theirs, ours = (parse_as(SignedPublication, each) for each in (found, statement))
        check_signed(theirs, KIND_OF[ModelPublished])
    except (NotCanonical, BadSignature):
        return False
    return (theirs.body, theirs.signature.by) == (ours.body, ours.signature.by) and theirs.signature.key_id in operators


def _is_there(stored: Mapping[str, Stored], file: FileDigest) -> bool:
    found = stored.get(file.path)
    return found is not None and (found.size, found.sha256) == (file.size_bytes, file.sha256)


async def _put_files(bucket: Bucket, artifacts: Artifacts, missing: Sequence[FileDigest], heard: Heard | None) -> None:
    total = sum(file.size_bytes for file in artifacts.manifest.files)
    done = total - sum(file.size_bytes for file in missing)

    def sent(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        if heard is not None:
            heard(PublishProgress(done, total))

    async def put(file: FileDigest) -> None:
        await bucket.put(file.path, _content(artifacts, file, sent))

    sent(0)
    await each_of(missing, put)


async def _content(artifacts: Artifacts, file: FileDigest, sent: Callable[[int], None]) -> AsyncIterator[bytes]:
    """The bytes of a file; raises ArtifactCorrupt at its end unless they were what the manifest says."""
    path, digest, size = artifacts.folder / file.path, hashlib.sha256(), 0
    try:
        with path.open("rb") as stream:
            while chunk := await asyncio.to_thread(stream.read, CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                if size > file.size_bytes:
                    break
                yield chunk
                sent(len(chunk))
    except OSError as error:
        raise ArtifactCorrupt(f"{path}: cannot be read: {error.strerror}") from error
    if (size, digest.hexdigest()) != (file.size_bytes, file.sha256):
        raise ArtifactCorrupt(
            f"{path}: expected {file.size_bytes} bytes with SHA-256 {file.sha256}, got {size} with "
            f"{digest.hexdigest()}",
            hint="Split the model again; what was published of it is not in the book, and nobody can take it.",
        )


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), CHUNK_BYTES):
        yield content[start : start + CHUNK_BYTES]
