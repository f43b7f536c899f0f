"""Files of experts: what is wrong is brought once more, and if it stays wrong, that expert alone is not served."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from sawyer.engine.experts import ExpertPool
from sawyer.errors import ArtifactCorrupt, SawyerError, UnreachableError
from sawyer.model.artifacts import Artifacts
from sawyer.model.layout import expert_file
from sawyer.node import reading
from sawyer.node.reading import ExpertReader
from sawyer.schemas.models import Format

PATIENCE_S = 10.0
PAIR, PATH = (0, 2), expert_file(0, 2, "q4")


class Source:
    """Model files that come from somewhere: `bring` copies them from a whole model, or fails, or is held back."""

    def __init__(self, folder: Path, whole: Artifacts) -> None:
        shutil.copytree(whole.folder, folder)
        self.artifacts = Artifacts.open(folder)
        self.whole = whole
        self.brought: list[str] = []
        self.error: SawyerError | OSError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    def corrupt(self, path: str = PATH) -> None:
        file = self.artifacts.folder / path
        raw = bytearray(file.read_bytes())
        raw[5000] ^= 1
        file.write_bytes(raw)

    async def bring(self, paths: Iterable[str], *, suspect: bool = False) -> None:
        assert suspect, "it was read, and found wrong"
        await self.gate.wait()
        for path in paths:
            self.brought.append(path)
            if self.error is not None:
                raise self.error
            shutil.copy(self.whole.folder / path, self.artifacts.folder / path)


@pytest.fixture
async def source(demo: Callable[[Format], Artifacts], tmp_path: Path) -> Source:
    return Source(tmp_path / "model", demo("q4"))


async def read(reader: ExpertReader) -> object:
    return await asyncio.wait_for(asyncio.to_thread(reader.read, *PAIR), PATIENCE_S)


async def test_whole_file_is_read_and_nothing_is_brought(source: Source) -> None:
    await read(ExpertReader(source))
    assert source.brought == []


@pytest.mark.parametrize("absent", [False, True])
async def test_wrong_or_missing_file_is_brought_once_and_then_served_exactly(source: Source, absent: bool) -> None:
    rows = np.ones((2, 192), np.float32)
    expected = ExpertPool(source.whole, [PAIR], device="cpu").run(*PAIR, rows)
    source.corrupt()
    if absent:
        (source.artifacts.folder / PATH).unlink()
    reader = ExpertReader(source)
    pool = await asyncio.to_thread(ExpertPool, source.artifacts, [PAIR], device="cpu", read=reader.read)
    assert source.brought == [PATH]
    assert np.array_equal(pool.run(*PAIR, rows), expected)
    assert reader.broken == frozenset()


async def test_file_that_stays_wrong_is_a_typed_error_that_names_it_and_not_this_machine(source: Source) -> None:
    source.error = ArtifactCorrupt(f"{source.artifacts.folder}/{PATH}: expected SHA-256 a, got b")
    source.corrupt()
    reader = ExpertReader(source)
    for _ in range(2):
        with pytest.raises(ArtifactCorrupt) as caught:
            await read(reader)
        assert caught.value.message == f"{PATH}: expected SHA-256 a, got b"
    assert source.brought == [PATH], "once, not for every request"
    assert reader.broken == {PAIR}


async def test_source_that_cannot_be_reached_is_said_with_the_name_of_the_file(source: Source) -> None:
    source.error = UnreachableError("nobody has it")
    source.corrupt()
    with pytest.raises(ArtifactCorrupt, match=rf"{PATH}: wrong bytes here, and no other copy: nobody has it"):
        await read(ExpertReader(source))


async def test_request_waits_for_a_file_within_bounds_and_it_is_served_when_it_came(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MEND_EVERY_S", 0.0)
    source.gate.clear()
    source.corrupt()
    reader = ExpertReader(source)
    reader.patience_s = 0.01
    with pytest.raises(ArtifactCorrupt, match="still on the way"):
        await read(reader)
    assert reader.broken == {PAIR}
    source.gate.set()
    await until_served(reader)
    await read(reader)


async def until_served(reader: ExpertReader) -> None:
    """Mends until nothing is broken. Raises what ended the mending."""
    mending = asyncio.create_task(reader.mend())
    async with asyncio.timeout(PATIENCE_S):
        while reader.broken and not mending.done():  # noqa: ASYNC110  (one turn of the loop after another)
            await asyncio.sleep(0)
    mending.cancel()
    await asyncio.wait({mending})
    assert mending.cancelled(), mending.exception()


async def test_disk_that_takes_no_copy_fails_one_expert_and_mending_goes_on(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MEND_EVERY_S", 0.0)
    source.error = OSError(28, "No space left on device")
    source.corrupt()
    reader = ExpertReader(source)
    with pytest.raises(ArtifactCorrupt, match=f"{PATH}: .* cannot be kept: No space left on device"):
        await read(reader)
    tried, bring = list[str](), source.bring

    async def freed_later(paths: Iterable[str], *, suspect: bool = False) -> None:
        tried.extend(paths)
        if len(tried) == 3:
            source.error = None
        await bring(paths, suspect=suspect)

    monkeypatch.setattr(source, "bring", freed_later)
    await until_served(reader)
    assert len(tried) == 3
    await read(reader)


async def test_broken_expert_does_not_hold_the_bytes_of_its_file(source: Source) -> None:
    source.error = ArtifactCorrupt(f"{PATH}: expected SHA-256 a, got b")
    source.corrupt()
    reader, size_bytes = ExpertReader(source), (source.artifacts.folder / PATH).stat().st_size
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactCorrupt):
            await read(reader)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < size_bytes // 2
    finally:
        tracemalloc.stop()
    assert reader.broken == {PAIR}


@pytest.mark.parametrize("again", [True, False])
async def test_log_says_that_a_file_is_right_again_only_when_it_is(
    source: Source, again: bool, caplog: pytest.LogCaptureFixture
) -> None:
    source.error = None if again else ArtifactCorrupt("nobody has it")
    source.corrupt()
    with contextlib.suppress(ArtifactCorrupt):
        await read(ExpertReader(source))
    assert ["right now" in each for each in caplog.messages] == [again]


async def test_other_experts_go_on_while_one_is_broken(source: Source) -> None:
    reader = ExpertReader(source)
    pool = await asyncio.to_thread(
        ExpertPool, source.artifacts, [(0, 1), PAIR], device="cpu", limit_bytes=0, read=reader.read
    )
    source.error = ArtifactCorrupt(f"{PATH}: expected SHA-256 a, got b")
    source.corrupt()
    rows = np.ones((2, 192), np.float32)
    for _ in range(3):
        with pytest.raises(ArtifactCorrupt, match=PATH):
            await asyncio.to_thread(pool.run, *PAIR, rows)
        await asyncio.to_thread(pool.run, 0, 1, rows)
    assert pool.counts.loaded == 1
