"""A NATS server with an operator's model in its object store, as its tests need it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import nats
from nats.js.object_store import ObjectStore

from sawyer.bus.connection import NatsBus
from sawyer.bus.objects import Bucket
from sawyer.bus.publishing import publish_files
from sawyer.bus.pulling import PulledModel, Wanted
from sawyer.bus.server import _wait_until_ready, binary
from sawyer.cli.founding import _published
from sawyer.contexts import NatsTarget
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.ids import NetworkId
from sawyer.model.artifacts import Artifacts
from sawyer.model.cache import PUBLISHED_FILE, ModelCache
from sawyer.schemas.models import MANIFEST_FILE

NETWORK = NetworkId("sawyer.example/0011aabb")
LARGE = 10**9


class Store:
    """A server, an operator, and the demo model's files in a folder of this test's own."""

    def __init__(self, url: str, artifacts: Artifacts, folder: Path) -> None:
        self.url = url
        self.artifacts = artifacts
        self.operator = Key.generate("O")
        self.cache = ModelCache(folder / "cache", LARGE)
        operators = frozenset({self.operator.id})
        self.wanted = Wanted(NETWORK, artifacts.manifest.model, artifacts.digest, operators)
        self.paths = [file.path for file in artifacts.manifest.files]

    @property
    def target(self) -> NatsTarget:
        return NatsTarget(url=self.url)

    def statement(self, key: Key | None = None, **changes: str) -> bytes:
        body = _published(NETWORK, self.artifacts.manifest).changed(**changes)
        return sign(body, "model.published.v1", "operator", key or self.operator).canonical()

    @contextlib.asynccontextmanager
    async def bucket(self) -> AsyncIterator[Bucket]:
        bus = await NatsBus.connect(self.url, name="test")
        try:
            yield Bucket(bus, self.wanted.bucket)
        finally:
            await bus.close()

    async def publish(self) -> bool:
        async with self.bucket() as bucket:
            return await publish_files(bucket, self.artifacts, self.statement())

    async def open(self, **changes: object) -> PulledModel:
        return await PulledModel.open(self.target, replace(self.wanted, **changes), self.cache)

    @contextlib.asynccontextmanager
    async def by_hand(self, **instead: bytes | None) -> AsyncIterator[ObjectStore]:
        """The bucket as nats-py makes it, with everything in it; `instead` by path, None for nothing."""
        client = await nats.connect(self.url)
        try:
            bucket = await client.jetstream().create_object_store(self.wanted.bucket)
            files = {path: (self.artifacts.folder / path).read_bytes() for path in self.paths}
            files |= {MANIFEST_FILE: self.artifacts.manifest.canonical(), PUBLISHED_FILE: self.statement()}
            for name, content in (files | instead).items():
                if content is not None:
                    await bucket.put(name, content)
            yield bucket
        finally:
            await client.close()


def flipped(statement: bytes, after: bytes) -> bytes:
    """With another character behind these."""
    at = statement.index(after) + len(after)
    return statement[:at] + (b"A" if statement[at : at + 1] != b"A" else b"B") + statement[at + 1 :]


def expert(store: Store) -> str:
    return next(path for path in store.paths if path.startswith("experts/"))


@contextlib.contextmanager
def server_with(folder: Path, settings: str) -> Iterator[str]:
    """The address of a server with other settings than ours."""
    config = folder / "other.conf"
    config.write_text(f'listen: "127.0.0.1:-1"\nports_file_dir: "{folder}"\n{settings}')
    (folder / "nats.log").touch()
    process = subprocess.Popen([str(binary()), "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        yield _wait_until_ready(process, folder)
    finally:
        process.kill()
        process.wait()
