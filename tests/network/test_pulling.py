"""Models through JetStream's object store: published, pulled, attacked, killed. nats-py's own object store builds what
hostile hands would, and reads what ours made."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import nats
import pytest
from nats.js.object_store import ObjectStore

from sawyer.bus import objects
from sawyer.bus.connection import NatsBus
from sawyer.bus.objects import CHUNK_BYTES, Bucket
from sawyer.bus.publishing import publish_files
from sawyer.bus.pulling import PulledModel, Wanted
from sawyer.bus.server import LocalServer, _wait_until_ready, binary
from sawyer.cli.founding import _published
from sawyer.contexts import NatsTarget
from sawyer.errors import (
    ArtifactCorrupt,
    BadSignature,
    NoSpace,
    NoStore,
    RefusedError,
    SawyerError,
    UnreachableError,
    WrongManifest,
)
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.ids import NetworkId
from sawyer.model.artifacts import Artifacts
from sawyer.model.cache import PUBLISHED_FILE, ModelCache
from sawyer.model.layout import expert_file
from sawyer.node.reading import ExpertReader
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


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    with LocalServer.start(tmp_path / "nats") as started:
        yield started


@pytest.fixture
def store(server: LocalServer, demo_q4: Artifacts, tmp_path: Path) -> Store:
    folder = Path(shutil.copytree(demo_q4.folder, tmp_path / "split"))
    return Store(server.url, Artifacts.open(folder), tmp_path)


def expert(store: Store) -> str:
    return next(path for path in store.paths if path.startswith("experts/"))


async def test_model_that_is_published_is_pulled_whole_and_right(store: Store) -> None:
    assert await store.publish()
    model = await store.open()
    await model.bring(store.paths)
    model.artifacts.verify()
    assert model.artifacts.digest == store.artifacts.digest


async def test_publishing_again_changes_nothing(store: Store) -> None:
    assert await store.publish()
    async with store.bucket() as bucket:
        before = await bucket.state()
        assert not await publish_files(bucket, store.artifacts, store.statement())
        assert await bucket.state() == before
        assert before is not None
        assert before.sealed


async def test_bucket_is_an_object_store_that_nats_py_reads_and_nobody_can_change(store: Store) -> None:
    await store.publish()
    client = await nats.connect(store.url)
    bucket = await client.jetstream().object_store(store.wanted.bucket)
    names = {each.name for each in await bucket.list()}
    found = await bucket.get(MANIFEST_FILE)
    with pytest.raises(nats.js.errors.Error):
        await bucket.put(MANIFEST_FILE, b"another")
    await client.close()
    assert found.data == store.artifacts.manifest.canonical()
    assert names == {*store.paths, MANIFEST_FILE, PUBLISHED_FILE}


async def test_node_pulls_only_what_it_asks_for_and_later_without_a_network(store: Store, server: LocalServer) -> None:
    await store.publish()
    model = await store.open()
    path = expert(store)
    await model.bring([path])
    server.stop()
    here = [file.path for file in model.artifacts.manifest.files if (model.artifacts.folder / file.path).is_file()]
    assert here == [path]
    again = await store.open()
    await again.bring([path])
    assert again.artifacts.read_expert(*map(int, (0, 0)))


async def test_file_here_with_wrong_bytes_is_replaced(store: Store) -> None:
    await store.publish()
    model = await store.open()
    path = expert(store)
    await model.bring([path])
    file = model.artifacts.folder / path
    right = file.read_bytes()
    file.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    await model.bring([path])
    assert file.read_bytes() == right


async def test_byte_that_rots_without_a_trace_is_replaced_when_it_was_read(store: Store) -> None:
    await store.publish()
    model = await store.open()
    path = expert_file(0, 0, "q4")
    await model.bring([path])
    file = model.artifacts.folder / path
    right, told = file.read_bytes(), file.stat()
    with file.open("r+b") as stream:
        stream.seek(5000)
        stream.write(bytes([right[5000] ^ 1]))
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))
    reader = ExpertReader(model)
    await asyncio.to_thread(reader.read, 0, 0)
    assert reader.broken == frozenset()
    assert file.read_bytes() == right


@pytest.mark.parametrize("how", ["wrong byte", "truncated", "longer", "absent", "empty"])
async def test_object_that_is_not_what_was_signed_is_refused_by_name(store: Store, how: str) -> None:
    path = expert(store)
    right = (store.artifacts.folder / path).read_bytes()
    wrong = {
        "wrong byte": right[:-1] + bytes([right[-1] ^ 1]), "truncated": right[:-1], "longer": right + bytes(3 << 20),
        "absent": None, "empty": b"",
    }[how]  # fmt: skip
    other = store.paths[-1]
    async with store.by_hand(**{path: wrong}):
        model = await store.open()
        with pytest.raises(ArtifactCorrupt, match=path) as refusal:
            await model.bring([path])
        await model.bring([other])
    assert store.wanted.bucket in refusal.value.message
    if how == "wrong byte":
        assert hashlib.sha256(wrong).hexdigest() in refusal.value.message
    assert not list(model.artifacts.folder.rglob(f"*{Path(path).name}*")), "something is left of it"


async def test_wrong_byte_is_fetched_once_more_and_then_taken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.publish()
    model = await store.open()
    get, asked = Bucket.get, []

    async def once_wrong(self: Bucket, stored: objects.Stored, size_bytes: int) -> AsyncIterator[list[bytes]]:
        asked.append(stored.name)
        async for page in get(self, stored, size_bytes):
            yield [bytes(page[0])[::-1], *page[1:]] if len(asked) == 1 else page

    monkeypatch.setattr(Bucket, "get", once_wrong)
    await model.bring([expert(store)])
    assert asked == [expert(store)] * 2


@pytest.mark.parametrize("what", ["stranger", "other network", "other model", "other digest", "no signature"])
async def test_publication_that_the_operator_did_not_sign_is_refused(store: Store, what: str) -> None:
    statement = {
        "stranger": store.statement(Key.generate("O")),
        "other network": store.statement(network="sawyer.example/ffffffff"),
        "other model": store.statement(model="other"),
        "other digest": store.statement(manifest="ab" * 32),
        "no signature": store.statement().replace(b'"sig":"', b'"sig":"AAAA', 1)[:-1],
    }[what]
    async with store.by_hand(**{PUBLISHED_FILE: statement}):
        with pytest.raises((BadSignature, WrongManifest, ArtifactCorrupt)):
            await store.open()
    assert not store.cache.folder.exists()


async def test_signature_under_other_words_is_refused(store: Store) -> None:
    statement = store.statement().replace(b'"top_k":2', b'"top_k":3')
    async with store.by_hand(**{PUBLISHED_FILE: statement}):
        with pytest.raises(BadSignature, match="does not verify"):
            await store.open()


async def test_manifest_of_another_model_is_refused(store: Store) -> None:
    manifest = store.artifacts.manifest.model_copy(update={"model": "other"})
    async with store.by_hand(**{MANIFEST_FILE: manifest.canonical()}):
        with pytest.raises(WrongManifest, match="other"):
            await store.open()


async def test_manifest_with_a_path_that_leaves_its_folder_is_refused(store: Store) -> None:
    path = expert(store)
    hostile = store.artifacts.manifest.canonical().replace(path.encode(), b"../../" + path.encode())
    wanted = {"manifest": hashlib.sha256(hostile).hexdigest()}
    store.wanted = replace(store.wanted, **wanted)
    async with store.by_hand(**{MANIFEST_FILE: hostile, PUBLISHED_FILE: store.statement(**wanted)}):
        with pytest.raises(ArtifactCorrupt, match="path"):
            await store.open()


async def test_model_that_was_never_published_is_said_not_to_be_there(store: Store) -> None:
    with pytest.raises(NoStore, match=store.wanted.bucket):
        await store.open()


async def test_publishing_that_was_cut_short_goes_on_and_sweeps_what_was_left(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, names = Bucket.put, []

    async def fails_soon(self: Bucket, name: str, content: AsyncIterator[bytes]) -> None:
        names.append(name)
        if len(names) > 8:
            raise UnreachableError("the line was cut")
        await put(self, name, content)

    monkeypatch.setattr(Bucket, "put", fails_soon)
    with pytest.raises(UnreachableError):
        await store.publish()
    monkeypatch.setattr(Bucket, "put", put)
    async with store.bucket() as bucket:
        here = await bucket.objects()
        await bucket._bus.request(f"{bucket._chunks}orphan", bytes(1000), 5.0)
        with pytest.raises(NoStore, match="did not come to its end"):
            await store.open()
        assert await store.publish()
        assert set() < set(here) <= set(names[:8])
        subjects = await bucket._subjects(f"{bucket._chunks}>")
    assert len(subjects) == len(store.paths) + 2, "chunks of nobody stay"


async def test_local_file_with_a_wrong_byte_is_not_published(store: Store) -> None:
    file = store.artifacts.folder / expert(store)
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(ArtifactCorrupt, match=expert(store)):
        await store.publish()
    async with store.bucket() as bucket:
        assert expert(store) not in await bucket.objects()
        state = await bucket.state()
    assert state is not None
    assert not state.sealed


async def test_sealed_bucket_of_somebody_else_is_said_to_be_wrong(store: Store) -> None:
    async with store.by_hand(**{expert(store): b"mine"}) as bucket:
        await bucket.seal()
        with pytest.raises(RefusedError, match=expert(store)):
            await store.publish()


async def test_server_that_restarts_in_the_middle_costs_nothing(
    store: Store, server: LocalServer, tmp_path: Path
) -> None:
    await store.publish()
    model = await store.open()
    listen = server.url.removeprefix("nats://")
    stopped = []

    def restart(_: object) -> None:
        if not stopped:
            stopped.append(server.stop())
            server.process = LocalServer.start(tmp_path / "nats", listen=listen).process

    model.progress = restart
    await model.bring(store.paths)
    assert stopped
    model.artifacts.verify()


async def test_server_that_goes_away_is_unreachable_and_what_came_stays(
    store: Store, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "STALL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(objects, "PAUSES_S", (0.1,))
    await store.publish()
    model = await store.open()
    model.progress = lambda step: server.stop() if step.files_done == 2 else None
    with pytest.raises(UnreachableError):
        await model.bring(store.paths)
    assert not list(model.artifacts.folder.rglob("*.part"))
    assert sum((model.artifacts.folder / path).is_file() for path in store.paths) >= 2


async def test_two_pulls_at_once_both_end_right(store: Store) -> None:
    await store.publish()
    models = [await store.open() for _ in range(2)]
    await asyncio.gather(*(model.bring(store.paths) for model in models))
    for model in models:
        model.artifacts.verify()
    assert not list(store.cache.folder.rglob("*.part"))


async def test_model_over_the_limit_is_refused_before_a_byte_moves(store: Store) -> None:
    await store.publish()
    store.cache.limit_bytes = 100_000
    model = await store.open()
    with pytest.raises(NoSpace, match="at most 100,000 bytes"):
        await model.bring(store.paths)
    assert store.cache.size_bytes() == 0


async def test_file_that_was_not_used_longest_gives_way_when_the_cache_is_full(store: Store) -> None:
    await store.publish()
    model = await store.open()
    experts = [file for file in model.artifacts.manifest.files if file.path.startswith("experts/")]
    store.cache.limit_bytes = 3 * experts[0].size_bytes
    for file in (*experts[:3], experts[0], experts[3]):
        await model.bring([file.path])
    here = {file.path for file in experts if (model.artifacts.folder / file.path).is_file()}
    assert here == {experts[0].path, experts[2].path, experts[3].path}
    await model.bring([experts[1].path])
    assert store.cache.size_bytes() <= store.cache.limit_bytes


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


async def test_server_without_jetstream_is_named(demo_q4: Artifacts, tmp_path: Path) -> None:
    with server_with(tmp_path, "") as url:
        store = Store(url, demo_q4, tmp_path)
        for action in (store.publish, store.open):
            with pytest.raises(NoStore, match="no JetStream"):
                await action()


async def test_jetstream_without_room_is_named(demo_q4: Artifacts, tmp_path: Path) -> None:
    small = f'max_payload: 8MB\njetstream {{ store_dir: "{tmp_path}/js", max_file_store: 1MB }}\n'
    with server_with(tmp_path, small) as url, pytest.raises(NoSpace, match="no room left"):
        await Store(url, demo_q4, tmp_path).publish()


async def test_bucket_that_is_destroyed_is_gone(store: Store) -> None:
    await store.publish()
    async with store.bucket() as bucket:
        assert await bucket.destroy()
        assert not await bucket.destroy()
        assert await bucket.state() is None
        with pytest.raises(SawyerError):
            await bucket.seal()


async def test_object_larger_than_a_page_comes_in_order(store: Store) -> None:
    content = b"".join(bytes([number]) * CHUNK_BYTES for number in range(20)) + b"end"

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(content), CHUNK_BYTES):
            yield content[start : start + CHUNK_BYTES]

    async with store.bucket() as bucket:
        await bucket.create()
        await bucket.put("large", chunks())
        stored = await bucket.find("large")
        assert stored is not None
        pages = [page async for page in bucket.get(stored, len(content))]
    assert b"".join(chunk for page in pages for chunk in page) == content
    assert len(pages) > 1
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
