"""Splitting from a hub over real HTTP: the bytes of a local split, shard by shard, stopped and continued."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_server import REPO, Fault, HubServer, serving, sharded

from sawyer.errors import (
    Busy,
    CheckpointCorrupt,
    NoSpace,
    NotAuthorised,
    SawyerError,
    UnreachableError,
    UnsupportedModel,
    UsageError,
)
from sawyer.ids import ModelId
from sawyer.model.checkpoint import Checkpoint
from sawyer.model.downloads import HubId
from sawyer.model.hub import Hub
from sawyer.model.remote import DownloadProgress, check_space, opened
from sawyer.model.split import SplitProgress, split
from sawyer.schemas.models import Manifest

GROUPED = Path(__file__).parents[1] / "engine" / "golden" / "grouped"
SHARDS = 5
ID = HubId(REPO)
TINY = ModelId("tiny")


class Stop(Exception):
    """What a test's progress callback raises: the power cut."""


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    beside = {"generation_config.json": b"{}", "README.md": b"hello", "pytorch_model.bin": b"pickled"}
    return sharded(GROUPED, SHARDS) | beside


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[HubServer]:
    with serving(dict(files)) as running:
        yield running


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """What a split of the same checkpoint on this machine gives."""
    return split(GROUPED, tmp_path_factory.mktemp("whole") / "out", model=TINY)


@dataclass
class Work:
    """A split from the hub in folders of this test."""

    server: HubServer
    folder: Path
    out: Path
    downloads: list[DownloadProgress] = field(default_factory=list)

    def run(self, *, delete: bool = False, progress: Callable[[SplitProgress], None] | None = None) -> Manifest:
        hub = Hub(ID, self.server.url)
        with opened(
            hub, ID, self.folder, delete_shards=delete, progress=self.downloads.append, pauses_s=(0.0, 0.0)
        ) as remote:
            return split(remote.checkpoint, self.out, model=TINY, progress=progress, supply=remote)

    def shards(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*.safetensors"))


@pytest.fixture
def work(server: HubServer, tmp_path: Path) -> Work:
    return Work(server, tmp_path / "downloads", tmp_path / "out")


def shard_names(files: dict[str, bytes]) -> list[str]:
    return sorted(name for name in files if name.endswith(".safetensors"))


# --- what comes -------------------------------------------------------------------------------------------------------


def test_split_from_a_hub_has_the_files_of_a_local_one(work: Work, files: dict[str, bytes], whole: Manifest) -> None:
    assert work.run().files == whole.files
    for name in shard_names(files):
        assert (work.folder / name).read_bytes() == files[name]
    assert Checkpoint.open(work.folder).tensors.keys() == Checkpoint.open(GROUPED).tensors.keys()
    assert (work.folder / "generation_config.json").is_file()
    total = sum(len(files[name]) for name in shard_names(files))
    assert (work.downloads[-1].bytes_done, work.downloads[-1].bytes_total) == (total, total)
    assert [step.bytes_done for step in work.downloads] == sorted(step.bytes_done for step in work.downloads)


def test_single_file_comes_where_there_is_no_index(work: Work, whole: Manifest) -> None:
    work.server.files = {path.name: path.read_bytes() for path in GROUPED.iterdir() if path.suffix != ".npz"}
    assert work.run().files == whole.files


def test_pickles_and_what_is_not_needed_are_never_asked_for(work: Work) -> None:
    work.run()
    asked = " ".join(each.path for each in work.server.asked)
    assert "pytorch_model.bin" not in asked
    assert "README" not in asked


def test_drafts_that_a_kill_left_are_removed_and_nothing_else_is(work: Work) -> None:
    work.folder.mkdir()
    drafts = ["..hub.json.a1b2c3d4", "..model-00001-of-00005.safetensors.header.a1b2c3d4"]
    for name in (*drafts, "..mine", ".mine", "mine.safetensors"):
        (work.folder / name).touch()
    work.run()
    here = {path.name for path in work.folder.iterdir()}
    assert here >= {"..mine", ".mine", "mine.safetensors"}
    assert here.isdisjoint(drafts)


def test_second_format_downloads_nothing(work: Work) -> None:
    work.run()
    work.server.asked.clear()
    work.out = work.out.with_name("again")
    work.run()
    assert [each.path.split("?")[0] for each in work.server.asked] == [f"/api/models/{REPO}/revision/main"]


# --- deleting ---------------------------------------------------------------------------------------------------------


def test_shards_go_as_soon_as_they_are_split(work: Work, whole: Manifest) -> None:
    most = 0

    def look(_: SplitProgress) -> None:
        nonlocal most
        most = max(most, len(work.shards()))

    assert work.run(delete=True, progress=look).files == whole.files
    assert 1 <= most <= 2
    assert work.shards() == []


@pytest.mark.parametrize("stop_after", [4, 12, 20, 33])
def test_stopped_split_goes_on_without_the_deleted_shards(
    work: Work, files: dict[str, bytes], whole: Manifest, stop_after: int
) -> None:
    calls = 0

    def cut(_: SplitProgress) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_after:
            raise Stop

    with pytest.raises(Stop):
        work.run(delete=True, progress=cut)
    assert work.run(delete=True).files == whole.files
    for name in shard_names(files):
        wanted = [each for each in work.server.asked_for(name) if each.path.startswith("/stored/")]
        assert len(wanted) == 2, "one for its header and one for the file"
    assert work.shards() == []


def test_finished_file_that_changed_brings_its_shards_back(work: Work, whole: Manifest) -> None:
    def cut(step: SplitProgress) -> None:
        if step.files_done == step.files_total - 1:
            raise Stop

    with pytest.raises(Stop):
        work.run(delete=True, progress=cut)
    norm = work.out / "trunk" / "L0.f32.bin"
    norm.write_bytes(bytes(norm.stat().st_size))
    assert work.run(delete=True).files == whole.files
    assert work.shards() == []


# --- lines that break -------------------------------------------------------------------------------------------------


def test_broken_lines_are_taken_up_where_they_broke(work: Work, files: dict[str, bytes], whole: Manifest) -> None:
    for name in shard_names(files):
        work.server.faults[name] = [Fault(cut=100), Fault(cut=9_000), Fault(status=503), Fault(cut=30_000)]
    work.server.faults["tokenizer.json"] = [Fault(cut=10)]
    assert work.run().files == whole.files
    for name in shard_names(files):
        assert work.server.sent[name] < len(files[name]) + 2 * (1 << 16)


def test_hub_that_went_away_leaves_what_came_and_goes_on(work: Work, files: dict[str, bytes], whole: Manifest) -> None:
    third = shard_names(files)[2]
    work.server.faults[third] = [Fault(), Fault(cut=20_000)]
    work.server.always[third] = Fault(status=500)
    with pytest.raises(UnreachableError, match="has trouble"):
        work.run()
    assert (work.folder / f".{third}.part").stat().st_size == 20_000
    work.server.always.clear()
    work.server.asked.clear()
    work.downloads.clear()
    assert work.run().files == whole.files
    (again,) = [each for each in work.server.asked_for(third) if each.path.startswith("/stored/")]
    assert again.headers["range"] == f"bytes=20000-{len(files[third]) - 1}"
    assert work.downloads[0].bytes_done >= 20_000


def test_what_is_here_is_split_where_nobody_answers(work: Work, whole: Manifest) -> None:
    def cut(step: SplitProgress) -> None:
        if step.files_done == step.files_total - 1:
            raise Stop

    with pytest.raises(Stop):
        work.run(progress=cut)
    work.server.api_status = 503
    assert work.run().files == whole.files


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        (Fault(flip=40_000), CheckpointCorrupt, "expected SHA-256"),
        (Fault(short=True, cut=30_000), CheckpointCorrupt, "less of"),
        (Fault(cut=0), UnreachableError, "cannot reach"),
        (Fault(status=403), NotAuthorised, "403"),
    ],
)
def test_shard_that_cannot_be_had_is_named(
    work: Work, files: dict[str, bytes], fault: Fault, kind: type[SawyerError], says: str
) -> None:
    name = shard_names(files)[1]
    work.server.faults[name] = [Fault()]
    work.server.always[name] = fault
    with pytest.raises(kind, match=says) as caught:
        work.run()
    assert name in caught.value.message or kind is UnreachableError
    assert caught.value.hint
    assert name not in work.shards()


# --- what is refused before anything large comes ----------------------------------------------------------------------


def without_weights(server: HubServer, *more: str) -> None:
    server.files = {name: raw for name, raw in server.files.items() if "safetensors" not in name}
    server.files = {name: raw for name, raw in server.files.items() if name != "pytorch_model.bin"}
    server.files.update(dict.fromkeys(more, b"x"))


def change_config(server: HubServer, **fields: Any) -> None:
    server.files["config.json"] = json.dumps(json.loads(server.files["config.json"]) | fields).encode()


def huge_header(server: HubServer) -> None:
    name = shard_names(server.files)[0]
    server.files[name] = struct.pack("<Q", 1 << 60) + server.files[name][8:]


def absent_shard(server: HubServer) -> None:
    del server.files[shard_names(server.files)[2]]


def index_that_leaves(server: HubServer) -> None:
    server.files["model.safetensors.index.json"] = b'{"weight_map": {"a": "../../etc/a.safetensors"}}'


REFUSED: list[tuple[Callable[[HubServer], None], type[SawyerError], str]] = [
    (lambda server: without_weights(server, "pytorch_model.bin"), UnsupportedModel, "as pickle files only"),
    (lambda server: without_weights(server, "model.pt"), UnsupportedModel, "as pickle files only"),
    (without_weights, UnsupportedModel, "no weights in"),
    (lambda server: server.files.pop("config.json") and None, UsageError, r"has no config\.json"),
    (lambda server: change_config(server, model_type="gpt2"), UnsupportedModel, "family 'gpt2' is not known"),
    (lambda server: change_config(server, hidden_act="gelu"), UnsupportedModel, "hidden_act"),
    (huge_header, CheckpointCorrupt, "header of 1152921504606846976 bytes"),
    (absent_shard, CheckpointCorrupt, r"has no model-00003-of-00005\.safetensors"),
    (index_that_leaves, CheckpointCorrupt, "not a safetensors file of this folder"),
]


@pytest.mark.parametrize(("change", "kind", "says"), REFUSED)
def test_checkpoint_that_cannot_be_split_is_refused_before_a_shard_comes(
    work: Work, change: Callable[[HubServer], None], kind: type[SawyerError], says: str
) -> None:
    change(work.server)
    with pytest.raises(kind, match=says) as caught:
        work.run()
    assert caught.value.hint
    assert work.shards() == []
    assert work.downloads == []
    assert not work.out.exists()


def test_too_little_room_is_told_with_both_numbers_before_a_shard_comes(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sawyer.model.remote.shutil.disk_usage", lambda _: SimpleNamespace(free=150_000))
    with pytest.raises(NoSpace, match=r"0\.\d MB in .* and 0\.\d MB in .* are needed, and 0\.1 MB are free") as caught:
        work.run()
    assert "--delete-shards" in caught.value.hint
    assert work.downloads == []


def test_room_for_one_shard_at_a_time_is_enough_when_they_are_deleted(
    work: Work, whole: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = sum(file.size_bytes for file in whole.files) + 120_000
    monkeypatch.setattr("sawyer.model.remote.shutil.disk_usage", lambda _: SimpleNamespace(free=room))
    with pytest.raises(NoSpace):
        work.run()
    assert work.run(delete=True).files == whole.files


def test_room_on_a_disk_is_enough_for_one_of_two_folders_and_not_for_both(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    check_space([(tmp_path / "a", free // 3), (tmp_path / "b" / "c", free // 3)], "")
    with pytest.raises(NoSpace):
        check_space([(tmp_path / "a", free // 3), (tmp_path / "b", free)], "")


# --- repositories that change, and two at once ------------------------------------------------------------------------


def test_only_files_that_changed_come_again(work: Work, files: dict[str, bytes]) -> None:
    work.run()
    changed, *kept = shard_names(files)
    work.server.commit = "f" * 40
    raw = work.server.files[changed]
    work.server.files[changed] = raw[:-4] + struct.pack("<f", 0.5)
    work.server.asked.clear()
    work.out = work.out.with_name("again")
    work.run()
    assert (work.folder / changed).read_bytes() == work.server.files[changed]
    assert [name for name in kept if work.server.asked_for(name)] == []


def test_refused_config_of_a_repository_that_moved_leaves_the_old_download_usable(work: Work, whole: Manifest) -> None:
    work.run()
    kept = {path.name: path.read_bytes() for path in work.folder.iterdir()}
    work.server.commit = "f" * 40
    change_config(work.server, hidden_act="gelu")
    shard = shard_names(work.server.files)[0]
    work.server.files[shard] = work.server.files[shard][:-4] + struct.pack("<f", 0.5)
    with pytest.raises(UnsupportedModel, match="hidden_act"):
        work.run()
    assert {path.name: path.read_bytes() for path in work.folder.iterdir()} == kept
    assert split(work.folder, work.out.with_name("again"), model=TINY).files == whole.files


def test_two_downloads_into_one_folder_are_refused(work: Work) -> None:
    hub = Hub(ID, work.server.url)
    with opened(hub, ID, work.folder), pytest.raises(Busy, match="another process is writing"):
        work.run()


def test_folder_with_a_file_of_that_name_from_elsewhere_is_refused_and_left_as_it_is(work: Work) -> None:
    work.folder.mkdir()
    own = work.folder / "config.json"
    own.write_bytes(b"my own")
    with pytest.raises(UsageError, match=r"holds a config.json that Sawyer did not download"):
        work.run(delete=True)
    assert own.read_bytes() == b"my own"


def test_folder_of_another_repository_is_refused_and_left_as_it_is(work: Work) -> None:
    work.run()
    kept = sorted(work.folder.iterdir())
    other = HubId("other/model")
    with (
        pytest.raises(UsageError, match=f"holds what came of {REPO}, not of other/model"),
        opened(Hub(other, work.server.url), other, work.folder),
    ):
        pass
    assert sorted(work.folder.iterdir()) == kept


@pytest.mark.parametrize("name", ["/etc/hostname", "../config.json", "a/b.json", ".hidden", ""])
def test_saved_listing_that_names_files_elsewhere_counts_as_none(work: Work, name: str) -> None:
    work.run()
    listing = work.folder / ".hub.json"
    said = json.loads(listing.read_bytes())
    said["files"][0]["name"] = name
    listing.write_text(json.dumps(said))
    with pytest.raises(UsageError, match="that Sawyer did not download"):
        work.run()
