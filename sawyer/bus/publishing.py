"""A split model into the network's store: every file, the manifest, the operator's signed publication, in this order;
then the bucket is sealed. Owns that order, and going on after a kill; not the entry in the book, which comes after.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sawyer.bus.objects import CHUNK_BYTES, Bucket, Stored
from sawyer.errors import ArtifactCorrupt, RefusedError
from sawyer.model.artifacts import Artifacts
from sawyer.model.cache import PUBLISHED_FILE
from sawyer.model.writing import only_writer
from sawyer.schemas.models import MANIFEST_FILE, FileDigest

FILES_AT_ONCE: Final = 4


@dataclass(frozen=True)
class PublishProgress:
    """How far it is: of all files, those that were there already included."""

    bytes_done: int
    bytes_total: int


Heard = Callable[[PublishProgress], None]


async def publish_files(bucket: Bucket, artifacts: Artifacts, statement: bytes, heard: Heard | None = None) -> bool:
    """Returns when the store holds all of it and takes no change any more; False if it did before. `statement` is the
    signed publication, canonical. Raises ArtifactCorrupt for a local file that is not as the manifest says, Busy if
    another process publishes it from here, RefusedError for a sealed bucket that holds something else, NoStore,
    NoSpace, UnreachableError."""
    with only_writer(artifacts.folder):
        state = await bucket.state()
        stored = await bucket.objects() if state is not None else {}
        missing = [file for file in artifacts.manifest.files if not _is_there(stored, file)]
        if state is not None and state.sealed:
            if missing or not {MANIFEST_FILE, PUBLISHED_FILE} <= stored.keys():
                lacking = missing[0].path if missing else MANIFEST_FILE
                raise RefusedError(
                    f"bucket {bucket.name} is sealed, and {lacking} is not in it as it is here",
                    hint="Somebody else sealed it. Delete it (sawyer models rm MODEL --from-network), publish again.",
                )
            return False
        await bucket.create()
        await bucket.sweep(stored.values())
        await _put_files(bucket, artifacts, missing, heard)
        for name, content in ((MANIFEST_FILE, artifacts.manifest.canonical()), (PUBLISHED_FILE, statement)):
            await bucket.put(name, _chunks(content))
        await bucket.seal()
    return True


def _is_there(stored: Mapping[str, Stored], file: FileDigest) -> bool:
    found = stored.get(file.path)
    return found is not None and (found.size, found.sha256) == (file.size_bytes, file.sha256)


async def _put_files(bucket: Bucket, artifacts: Artifacts, missing: Sequence[FileDigest], heard: Heard | None) -> None:
    total = sum(file.size_bytes for file in artifacts.manifest.files)
    done = total - sum(file.size_bytes for file in missing)
    queue = iter(missing)

    def sent(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        if heard is not None:
            heard(PublishProgress(done, total))

    async def work() -> None:
        for file in queue:
            await bucket.put(file.path, _content(artifacts, file, sent))

    sent(0)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(FILES_AT_ONCE, len(missing))):
                group.create_task(work())
    except* Exception as several:
        found = [each for each in several.exceptions if not isinstance(each, BaseExceptionGroup)]
        raise found[0] from several


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
