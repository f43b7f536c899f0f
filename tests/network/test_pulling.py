"""Models out of JetStream's object store: pulled, attacked, cut off. nats-py's own object store builds what hostile
hands would."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from sawyer.bus import objects
from sawyer.bus.objects import CHUNK_BYTES, Bucket
from sawyer.bus.server import LocalServer
from sawyer.errors import (
    ArtifactCorrupt,
    BadSignature,
    NoSpace,
    NoStore,
    UnreachableError,
    WrongManifest,
)
from sawyer.identity.keys import Key
from sawyer.model.artifacts import Artifacts
from sawyer.model.cache import PUBLISHED_FILE
from sawyer.model.layout import expert_file
from sawyer.node.reading import ExpertReader
from sawyer.schemas.models import MANIFEST_FILE

from .stores import Store, expert, flipped, server_with


async def test_model_that_is_published_is_pulled_whole_and_right(store: Store) -> None:
    assert await store.publish()
    model = await store.open()
    await model.bring(store.paths)
    model.artifacts.verify()
    assert model.artifacts.digest == store.artifacts.digest


async def test_node_pulls_only_what_it_asks_for_and_later_without_a_network(
    store: Store, store_server: LocalServer
) -> None:
    await store.publish()
    model = await store.open()
    path = expert(store)
    await model.bring([path])
    store_server.stop()
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


@pytest.mark.parametrize(
    "what",
    [
        "stranger",
        "other network",
        "other model",
        "other digest",
        "cut",
        "no signature",
        "one bit of the signature",
    ],
)
async def test_publication_that_the_operator_did_not_sign_is_refused(store: Store, what: str) -> None:
    statement = {
        "stranger": store.statement(Key.generate("O")),
        "other network": store.statement(network="sawyer.example/ffffffff"),
        "other model": store.statement(model="other"),
        "other digest": store.statement(manifest="ab" * 32),
        "cut": store.statement()[:-1],
        "no signature": re.sub(rb'"sig":"[^"]*"', b'"sig":""', store.statement()),
        "one bit of the signature": flipped(store.statement(), b'"sig":"'),
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


async def test_server_that_restarts_in_the_middle_costs_nothing(
    store: Store, store_server: LocalServer, tmp_path: Path
) -> None:
    await store.publish()
    model = await store.open()
    listen = store_server.url.removeprefix("nats://")
    stopped = []

    def restart(_: object) -> None:
        if not stopped:
            stopped.append(store_server.stop())
            store_server.process = LocalServer.start(tmp_path / "store", listen=listen).process

    model.progress = restart
    await model.bring(store.paths)
    assert stopped
    model.artifacts.verify()


async def test_server_that_goes_away_is_unreachable_and_what_came_stays(
    store: Store, store_server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "STALL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(objects, "PAUSES_S", (0.1,))
    await store.publish()
    model = await store.open()
    model.progress = lambda step: store_server.stop() if step.files_done == 2 else None
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


async def test_server_without_jetstream_is_named(demo_q4: Artifacts, tmp_path: Path) -> None:
    with server_with(tmp_path, "") as url:
        store = Store(url, demo_q4, tmp_path)
        for action in (store.publish, store.open):
            with pytest.raises(NoStore, match="no JetStream"):
                await action()


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
