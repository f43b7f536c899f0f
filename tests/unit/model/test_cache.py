"""The cache of pulled models: its limit, what gives way, what is damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sawyer.errors import NoSpace, UsageError
from sawyer.model.cache import PUBLISHED_FILE, ModelCache, named_last_ns, named_now

MODEL = "austen-14fa14fa14fa14fa"


def kept(cache: ModelCache, *names: str, size_bytes: int = 100) -> list[Path]:
    """Weights of one model, the first of which was not used longest."""
    files = [cache.folder / MODEL / "L0" / name for name in names]
    for age, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(size_bytes))
        os.utime(file, ns=(age + 1, age + 1))
    return files


def test_file_that_was_not_used_longest_gives_way(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, 300)
    old, newer, newest = kept(cache, "a.bin", "b.bin", "c.bin")
    with cache.room({newer}) as room:
        room.take(tmp_path / "d.bin", 100)
        assert (old.exists(), newer.exists(), newest.exists()) == (False, True, True)
        room.take(tmp_path / "e.bin", 100)
        assert (newer.exists(), newest.exists()) == (True, False), "the older of the two is wanted"
        with pytest.raises(NoSpace, match="cache of models is full"):
            room.take(tmp_path / "f.bin", 101)


def test_file_that_is_replaced_does_not_count_twice(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, 300)
    files = kept(cache, "a.bin", "b.bin", "c.bin")
    with cache.room(set(files)) as room:
        room.take(files[1], 100)
    assert all(file.exists() for file in files)


def test_file_that_is_larger_than_the_one_it_replaces_makes_others_give_way(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, 300)
    files = kept(cache, "a.bin", "b.bin", "c.bin")
    with cache.room({files[1]}) as room:
        room.take(files[1], 150)
    assert [file.exists() for file in files] == [False, True, True]


def test_two_pulls_at_once_share_the_limit(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, 300)
    with cache.room(()) as first, cache.room(()) as second:
        first.take(tmp_path / "a.bin", 200)
        with pytest.raises(NoSpace):
            second.take(tmp_path / "b.bin", 101)
        second.take(tmp_path / "b.bin", 100)
    with cache.room(()) as later:
        later.take(tmp_path / "c.bin", 300)


@pytest.mark.parametrize("manifest", [None, "", "{}", '{"v":1}'])
def test_pulled_model_without_a_usable_manifest_is_damaged_and_can_be_removed(
    tmp_path: Path, manifest: str | None
) -> None:
    cache = ModelCache(tmp_path, 300)
    kept(cache, "a.bin")
    if manifest is not None:
        (tmp_path / MODEL / "manifest.json").write_text(manifest)
    assert cache.damaged() == [("austen", tmp_path / MODEL)]
    assert cache.remove(tmp_path / MODEL) == 100 + len(manifest or "")
    assert cache.damaged() == []


@pytest.mark.parametrize("name", ["austen", "austen-14fa", "notes"])
def test_folder_that_is_no_pulled_model_is_never_removed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    cache = ModelCache(tmp_path, 300)
    assert cache.damaged() == []
    with pytest.raises(UsageError, match="no pulled model"):
        cache.remove(tmp_path / name)
    with pytest.raises(UsageError, match="no pulled model"):
        cache.remove(tmp_path.parent / MODEL)


def test_model_that_the_network_named_last_is_known(tmp_path: Path) -> None:
    assert named_last_ns(tmp_path) == 0
    (tmp_path / PUBLISHED_FILE).touch()
    os.utime(tmp_path / PUBLISHED_FILE, ns=(5, 5))
    assert named_last_ns(tmp_path) == 5
    named_now(tmp_path)
    assert named_last_ns(tmp_path) > 5
