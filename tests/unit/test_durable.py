"""Small files that survive: whole, private, and without drafts beside them, also after a crash in the middle."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sawyer import durable


@pytest.fixture(params=["unnamed drafts", "named drafts"])
def drafts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux has drafts without a name; other systems do not."""
    if request.param == "named drafts":
        monkeypatch.setattr(durable, "_UNNAMED", 0)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replaced_file_holds_the_new_content_is_private_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state"
    for content in (b"one", b"two, which is longer"):
        durable.replace(path, content)
        assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names_in(path.parent) == ["state"]


@pytest.mark.usefixtures("drafts")
def test_created_file_is_private_and_alone_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "new" / "seed"
    durable.create(path, b"first")
    with pytest.raises(FileExistsError):
        durable.create(path, b"second")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"first", 0o600)
    assert names_in(path.parent) == ["seed"]


def test_system_without_proc_uses_a_named_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def no_proc(source: str | Path, target: Path, **options: object) -> None:
        if str(source).startswith("/proc"):
            raise FileNotFoundError(source)
        link(source, target)

    monkeypatch.setattr(os, "link", no_proc)
    durable.create(tmp_path / "seed", b"first")
    assert names_in(tmp_path) == ["seed"]


@pytest.mark.parametrize("write", [durable.replace, durable.create])
def test_disk_that_fails_leaves_the_old_file_and_no_draft(tmp_path: Path, write, monkeypatch) -> None:
    path = tmp_path / "state"
    if write is durable.replace:
        durable.replace(path, b"old")
    before = names_in(tmp_path)

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write(path, b"new")
    assert names_in(tmp_path) == before


@pytest.mark.parametrize("write", ["replace", "create"])
def test_file_and_folder_are_synced_in_that_order(tmp_path: Path, write: str, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode)))
    getattr(durable, write)(tmp_path / "state", b"content")
    assert synced == [False, True]


def test_process_killed_before_the_key_has_its_name_leaves_no_seed(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from sawyer.identity.keys import load_or_create\n"
        "os.link = lambda *_, **__: os._exit(9)\n"
        "load_or_create(Path(sys.argv[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "node.nk")], check=False)
    assert done.returncode == 9
    assert names_in(tmp_path) == []


@pytest.mark.usefixtures("drafts")
@pytest.mark.parametrize("write", [durable.create, durable.replace])
def test_failure_names_the_file_and_not_its_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, bytes], None]
) -> None:
    def full(_: int, __: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left") as error:
        write(tmp_path / "seed", b"x")
    assert error.value.filename == str(tmp_path / "seed")
    assert names_in(tmp_path) == []
