"""Models into JetStream's object store: published, cut short, published twice. nats-py's own object store reads what
ours made."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest

from sawyer.bus.objects import Bucket
from sawyer.bus.publishing import publish_files
from sawyer.errors import (
    ArtifactCorrupt,
    Busy,
    NoSpace,
    NoStore,
    RefusedError,
    SawyerError,
    UnreachableError,
)
from sawyer.identity.keys import Key
from sawyer.model.artifacts import Artifacts
from sawyer.model.cache import PUBLISHED_FILE
from sawyer.schemas.models import MANIFEST_FILE

from .stores import Store, expert, server_with


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


@pytest.mark.parametrize("what", ["an expert", "manifest", "statement of a stranger", "no statement"])
async def test_sealed_bucket_that_holds_something_else_is_said_to_be_wrong(store: Store, what: str) -> None:
    path, content = {
        "an expert": (expert(store), b"mine"),
        "manifest": (MANIFEST_FILE, b"{}"),
        "statement of a stranger": (PUBLISHED_FILE, store.statement(Key.generate("O"))),
        "no statement": (PUBLISHED_FILE, b"\xff"),
    }[what]
    async with store.by_hand(**{path: content}) as bucket:
        await bucket.seal()
        with pytest.raises(RefusedError, match=f"{path} is not in it") as refused:
            await store.publish()
    assert "--from-network --all" in refused.value.hint


async def test_sealed_bucket_that_an_earlier_key_of_the_operator_signed_is_as_good(store: Store) -> None:
    earlier = Key.generate("O")
    async with store.by_hand(**{PUBLISHED_FILE: store.statement(earlier)}) as by_hand, store.bucket() as bucket:
        await by_hand.seal()
        assert not await publish_files(bucket, store.artifacts, store.statement(), operators={earlier.id})


async def _lose_a_chunk(bucket: Bucket) -> str:
    """The name of an object that has one chunk less now."""
    stored = next(iter((await bucket.objects()).values()))
    await bucket._purge(f"{bucket._chunks}{stored.nuid}")
    return stored.name


async def test_object_without_its_chunks_is_sent_again_before_the_bucket_is_sealed(store: Store) -> None:
    async with store.by_hand(), store.bucket() as bucket:
        lost = await _lose_a_chunk(bucket)
        assert lost not in await bucket.objects()
        assert await store.publish()
    model = await store.open()
    await model.bring(store.paths)
    model.artifacts.verify()


async def test_sealed_bucket_with_a_hole_is_said_to_be_wrong(store: Store) -> None:
    async with store.by_hand() as by_hand, store.bucket() as bucket:
        lost = await _lose_a_chunk(bucket)
        await by_hand.seal()
        with pytest.raises(RefusedError, match=f"{lost} is not in it"):
            await store.publish()


async def test_two_who_publish_at_once_do_not_disturb_each_other(store: Store, tmp_path: Path) -> None:
    """On two machines: the lock of a folder does not keep them apart."""
    second = Store(
        store.url, Artifacts.open(Path(shutil.copytree(store.artifacts.folder, tmp_path / "other"))), tmp_path
    )
    async with store.bucket() as bucket, second.bucket() as other:
        await bucket.create()
        async with bucket.alone():
            with pytest.raises(Busy, match="another process is publishing"):
                await publish_files(other, second.artifacts, store.statement())
        assert await publish_files(other, second.artifacts, store.statement())
        assert not await store.publish()
    model = await store.open()
    await model.bring(store.paths)
    model.artifacts.verify()


async def test_publisher_that_was_killed_keeps_nobody_out(store: Store) -> None:
    async with store.bucket() as bucket:
        await bucket.create()
        with contextlib.suppress(SystemExit):
            async with bucket.alone():
                raise SystemExit  # its name stays in the bucket, and nobody answers for it
        assert bucket._writer in await bucket._subjects(f"{bucket._chunks}>")
        assert await store.publish()
        assert bucket._writer not in await bucket._subjects(f"{bucket._chunks}>")


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
