"""A split in parts: in any order, on several machines, from a hub, and nothing trusted without a digest."""

from __future__ import annotations

import hashlib
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import REPO, serving, sharded

from sawyer.errors import UsageError
from sawyer.ids import ModelId
from sawyer.model.downloads import HubId
from sawyer.model.hub import Hub
from sawyer.model.layout import NORM_FILE
from sawyer.model.parts import Unfinished, parse_layers, ranges
from sawyer.model.remote import opened
from sawyer.model.split import split, split_layers
from sawyer.model.writing import JOURNAL_FILE, Journal
from sawyer.schemas.models import MANIFEST_FILE, FileDigest, Manifest

GROUPED = Path(__file__).parents[1] / "engine" / "golden" / "grouped"
TINY = ModelId("tiny")
LAYER_0, LAYER_1 = range(1), range(1, 2)
Part = Callable[[Path, range], Manifest | Unfinished]


@pytest.fixture
def source(tiny: Any) -> Path:
    return tiny.write()


@pytest.fixture
def whole(source: Path, tmp_path: Path) -> bytes:
    """The manifest of a split in one run."""
    return split(source, tmp_path / "whole", model=TINY).canonical()


@pytest.fixture
def part(source: Path) -> Part:
    return lambda out, layers: split_layers(source, out, layers, model=TINY)


def weights_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.bin")}


def merge(other: Path, folder: Path) -> None:
    """As `cp -a other/. folder`."""
    shutil.copytree(other, folder, dirs_exist_ok=True)


# --- layers one after the other ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(LAYER_0, LAYER_1), (LAYER_1, LAYER_0)])
def test_parts_in_any_order_give_the_manifest_of_a_whole_split(
    part: Part, tmp_path: Path, whole: bytes, order: tuple[range, range]
) -> None:
    out = tmp_path / "out"
    first = part(out, order[0])
    assert isinstance(first, Unfinished)
    assert first.missing == tuple(order[1])
    assert not (out / MANIFEST_FILE).exists()
    before = {path: (out / path).stat().st_mtime_ns for path in weights_in(out)}
    last = part(out, order[1])
    assert isinstance(last, Manifest)
    assert last.canonical() == whole == (out / MANIFEST_FILE).read_bytes()
    assert {path: (out / path).stat().st_mtime_ns for path in before} == before
    assert list(out.glob(f"{JOURNAL_FILE}*")) == []


def test_each_layer_has_its_own_files_and_what_stands_before_or_after_the_layers(part: Part, tmp_path: Path) -> None:
    part(tmp_path / "a", LAYER_0)
    part(tmp_path / "b", LAYER_1)
    experts = [{f"experts/L{layer}/E{expert}.q4.bin" for expert in range(3)} for layer in range(2)]
    assert weights_in(tmp_path / "a") == experts[0] | {"trunk/embed.f32.bin", "trunk/L0.f32.bin"}
    assert weights_in(tmp_path / "b") == experts[1] | {"trunk/L1.f32.bin", NORM_FILE, "trunk/head.f32.bin"}


def test_run_without_layers_completes_what_a_part_began(part: Part, source: Path, tmp_path: Path, whole: bytes) -> None:
    part(tmp_path / "out", LAYER_1)
    assert split(source, tmp_path / "out", model=TINY).canonical() == whole


def test_same_part_again_says_the_same(part: Part, tmp_path: Path) -> None:
    assert part(tmp_path / "out", LAYER_0) == part(tmp_path / "out", LAYER_0)


# --- several machines -------------------------------------------------------------------------------------------------


def test_folder_of_another_machine_copied_into_this_one_completes_it(part: Part, tmp_path: Path, whole: bytes) -> None:
    part(tmp_path / "here", LAYER_0)
    part(tmp_path / "there", LAYER_1)
    merge(tmp_path / "there", tmp_path / "here")
    done = part(tmp_path / "here", LAYER_0)
    assert isinstance(done, Manifest)
    assert done.canonical() == whole


def test_files_that_come_without_a_journal_count_for_nothing(part: Part, tmp_path: Path) -> None:
    part(tmp_path / "here", LAYER_0)
    part(tmp_path / "there", LAYER_1)
    (tmp_path / "there" / f"{JOURNAL_FILE}.1").unlink()
    merge(tmp_path / "there", tmp_path / "here")
    done = part(tmp_path / "here", LAYER_0)
    assert isinstance(done, Unfinished)
    assert (done.missing, done.strange) == ((1,), ())


def test_files_of_another_format_count_for_nothing_and_their_journal_is_named(
    part: Part, source: Path, tmp_path: Path
) -> None:
    part(tmp_path / "here", LAYER_0)
    split_layers(source, tmp_path / "there", LAYER_1, model=TINY, format="q8")
    merge(tmp_path / "there", tmp_path / "here")
    done = part(tmp_path / "here", LAYER_0)
    assert isinstance(done, Unfinished)
    assert (done.missing, done.strange) == ((1,), (f"{JOURNAL_FILE}.1",))


def test_copied_file_with_a_wrong_byte_is_missing_and_made_anew(part: Part, tmp_path: Path, whole: bytes) -> None:
    part(tmp_path / "here", LAYER_0)
    part(tmp_path / "there", LAYER_1)
    wrong = tmp_path / "there" / "experts" / "L1" / "E2.q4.bin"
    wrong.write_bytes(wrong.read_bytes()[:-1] + b"!")
    merge(tmp_path / "there", tmp_path / "here")
    done = part(tmp_path / "here", LAYER_0)
    assert isinstance(done, Unfinished)
    assert done.missing == (1,)
    last = part(tmp_path / "here", LAYER_1)
    assert isinstance(last, Manifest)
    assert last.canonical() == whole


def test_line_of_the_journal_is_on_disk_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A downloaded shard is deleted after that, and could not be had again without a network."""
    journal, synced = Journal(tmp_path, "job"), []
    monkeypatch.setattr(
        "sawyer.model.writing.os.fsync", lambda _: synced.append((tmp_path / JOURNAL_FILE).read_bytes())
    )
    journal.append(FileDigest(path="a.bin", size_bytes=1, sha256="0" * 64))
    assert b"a.bin" in synced[0]


# --- a hub ------------------------------------------------------------------------------------------------------------


def test_part_from_a_hub_downloads_only_the_shards_of_its_layers(tmp_path: Path) -> None:
    hub_id = HubId(REPO)
    with serving(sharded(GROUPED, 5)) as server:

        def part(layers: range) -> tuple[Manifest | Unfinished, set[str]]:
            with opened(Hub(hub_id, server.url), hub_id, tmp_path / "down", delete_shards=True) as remote:
                needed = {
                    stored.file.name
                    for name, stored in remote.checkpoint.tensors.items()
                    if any(f".layers.{layer}." in name for layer in layers)
                }
                done = split_layers(remote.checkpoint, tmp_path / "out", layers, model=TINY, supply=remote)
            ends = ("model.embed_tokens", "model.norm", "lm_head")
            others = {s.file.name for name, s in remote.checkpoint.tensors.items() if name.startswith(ends)}
            wanted = {
                each.path.rpartition("/")[2].partition("?")[0]
                for each in server.asked
                if each.path.startswith("/stored/") and not each.headers["range"].startswith("bytes=0-65535")
            }
            server.asked.clear()
            assert wanted <= needed | others
            return done, wanted

        layout = split(GROUPED, tmp_path / "whole", model=TINY)
        last = layout.layout.layers - 1
        first, early = part(range(last))
        assert isinstance(first, Unfinished)
        assert early
        done, _ = part(range(last, last + 1))
        assert isinstance(done, Manifest)
        assert done.files == layout.files


# --- what makes no sense ----------------------------------------------------------------------------------------------


def test_layers_are_read_as_a_range_or_one_number() -> None:
    assert (parse_layers("0-15"), parse_layers("3"), parse_layers("7-7")) == (range(16), range(3, 4), range(7, 8))
    assert ranges([5, 0, 1, 2, 9]) == ["0-2", "5", "9"]


@pytest.mark.parametrize("text", ["3-1", "a", "1-", "-1", "1,2", "*", "1 - 2", "٣", "0-9999999"])
def test_text_that_is_no_range_of_layers_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--layers") as caught:
        parse_layers(text)
    assert "0-15" in caught.value.hint


@pytest.mark.parametrize(("layers", "lacking"), [(range(5), 2), (range(2, 3), 2), (range(7, 9), 7)])
def test_layers_beyond_the_model_are_refused_with_those_it_has(
    part: Part, tmp_path: Path, layers: range, lacking: int
) -> None:
    with pytest.raises(UsageError, match=f"no layer {lacking}") as caught:
        part(tmp_path / "out", layers)
    assert "0-1" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_finished_file_is_compared_piece_by_piece(tmp_path: Path) -> None:
    size_bytes = 1 << 26
    with (tmp_path / "a.bin").open("wb") as stream:
        stream.truncate(size_bytes)
    digest = FileDigest(path="a.bin", size_bytes=size_bytes, sha256=hashlib.sha256(bytes(size_bytes)).hexdigest())
    Journal(tmp_path, "job").append(digest)
    tracemalloc.start()
    assert Journal(tmp_path, "job").kept("a.bin") == digest
    most_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most_bytes < size_bytes / 8
