"""One file's way: whole or not at all under its name, continued where it stopped, and checked."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hub_server import COMMIT, git_id

from sawyer.errors import CheckpointCorrupt, NoSpace, NotAuthorised, UnreachableError
from sawyer.model.downloads import HubId, Listing, RemoteFile, bytes_here, fetch, is_here, part_of, remove

RAW = bytes(range(251)) * 80
SHARD = RemoteFile("a.safetensors", len(RAW), hashlib.sha256(RAW).hexdigest(), git_id(b"the pointer"))
SMALL = RemoteFile("a.json", len(RAW), "", git_id(RAW))
SOON = (0.0, 0.0, 0.0)


@dataclass
class Given:
    """A repository with one file. Each answer ends after so many bytes of `cuts`, with an error; then all comes."""

    raw: bytes = RAW
    cuts: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    error: Exception | None = None

    def listing(self) -> Listing:
        return Listing(HubId("a/b"), COMMIT, (SHARD,))

    def stream(self, commit: str, name: str, start: int, end: int) -> Generator[bytes, None, None]:
        self.asked.append(start)
        stop = start + self.cuts.pop(0) if self.cuts else len(self.raw)
        for at in range(start, min(stop, len(self.raw)), 1000):
            yield self.raw[at : min(at + 1000, stop)]
        if self.error is not None:
            raise self.error
        if stop < len(self.raw):
            raise UnreachableError("the line broke")


@pytest.mark.parametrize("file", [SHARD, SMALL])
def test_file_comes_whole_and_is_not_asked_for_again(tmp_path: Path, file: RemoteFile) -> None:
    given = Given()
    heard: list[int] = []
    for _ in range(2):
        assert fetch(given, COMMIT, file, tmp_path, heard.append, SOON).read_bytes() == RAW
    assert given.asked == [0]
    assert (heard[0], heard[-1], heard) == (0, len(RAW), sorted(heard))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_line_that_breaks_is_taken_up_where_it_broke(tmp_path: Path) -> None:
    given = Given(cuts=[3_500, 100, 0, 0, 4_000])
    assert fetch(given, COMMIT, SHARD, tmp_path, pauses_s=SOON).read_bytes() == RAW
    assert given.asked == [0, 3_500, 3_600, 3_600, 3_600, 7_600]


def test_file_that_stays_away_is_given_up_and_goes_on_later(tmp_path: Path) -> None:
    given = Given(cuts=[3_500, 0, 0, 0, 0])
    with pytest.raises(UnreachableError, match="the line broke"):
        fetch(given, COMMIT, SHARD, tmp_path, pauses_s=SOON)
    assert (is_here(tmp_path, SHARD), bytes_here(tmp_path, SHARD)) == (False, 3_500)
    heard: list[int] = []
    assert fetch(given, COMMIT, SHARD, tmp_path, heard.append, SOON).read_bytes() == RAW
    assert (given.asked[-1], heard[0]) == (3_500, 3_500)


def test_refusal_is_not_tried_again(tmp_path: Path) -> None:
    given = Given(error=NotAuthorised("no"), cuts=[0])
    with pytest.raises(NotAuthorised):
        fetch(given, COMMIT, SHARD, tmp_path, pauses_s=SOON)
    assert given.asked == [0]


@pytest.mark.parametrize("file", [SHARD, SMALL])
def test_wrong_byte_is_refused_and_nothing_of_it_stays(tmp_path: Path, file: RemoteFile) -> None:
    given = Given(RAW[:-1] + b"!")
    with pytest.raises(CheckpointCorrupt, match=rf"{file.name}: expected .* got") as caught:
        fetch(given, COMMIT, file, tmp_path, pauses_s=SOON)
    assert "thrown away" in caught.value.hint
    assert (given.asked, list(tmp_path.iterdir())) == ([0], [])


def test_wrong_beginning_of_an_earlier_try_is_fetched_anew(tmp_path: Path) -> None:
    part_of(tmp_path, SHARD).write_bytes(bytes(5_000))
    given = Given()
    assert fetch(given, COMMIT, SHARD, tmp_path, pauses_s=SOON).read_bytes() == RAW
    assert given.asked == [5_000, 0]


@pytest.mark.parametrize("size", [len(RAW), len(RAW) + 1])
def test_beginning_as_long_as_the_file_or_longer_is_checked_before_it_gets_the_name(tmp_path: Path, size: int) -> None:
    part_of(tmp_path, SHARD).write_bytes(bytes(size))
    assert fetch(Given(), COMMIT, SHARD, tmp_path, pauses_s=SOON).read_bytes() == RAW


def test_more_than_was_asked_for_is_not_written(tmp_path: Path) -> None:
    assert fetch(Given(RAW + bytes(9_000)), COMMIT, SHARD, tmp_path, pauses_s=SOON).read_bytes() == RAW


def test_repository_that_ends_too_early_without_an_error_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=f"ended after 9000 of {len(RAW)} bytes"):
        fetch(Given(RAW[:9_000]), COMMIT, SHARD, tmp_path, pauses_s=SOON)


def test_full_disk_is_named_and_what_came_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sawyer.model.downloads.os.fsync", full)
    with pytest.raises(NoSpace, match=r"a\.safetensors: the disk is full") as caught:
        fetch(Given(), COMMIT, SHARD, tmp_path, pauses_s=SOON)
    assert "goes on" in caught.value.hint
    assert bytes_here(tmp_path, SHARD) == len(RAW)


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone/a\.safetensors"):
        fetch(Given(), COMMIT, SHARD, tmp_path / "gone", pauses_s=SOON)


def test_removed_file_takes_no_room(tmp_path: Path) -> None:
    fetch(Given(), COMMIT, SHARD, tmp_path, pauses_s=SOON)
    part_of(tmp_path, SHARD).write_bytes(b"half")
    remove(tmp_path, SHARD)
    remove(tmp_path, SHARD)
    assert (bytes_here(tmp_path, SHARD), list(tmp_path.iterdir())) == (0, [])


def test_repository_that_has_less_than_it_lists_costs_nothing_of_what_came(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError):
        fetch(Given(cuts=[3_500, 0, 0, 0, 0]), COMMIT, SHARD, tmp_path, pauses_s=SOON)
    with pytest.raises(CheckpointCorrupt, match="less than it lists"):
        fetch(Given(raw=b"", error=CheckpointCorrupt("less than it lists")), COMMIT, SHARD, tmp_path, pauses_s=SOON)
    assert bytes_here(tmp_path, SHARD) == 3_500
