"""A real writer process for test_disk.py whose files may not grow any more (RLIMIT_FSIZE), or which may not write.

Usage: python disk_writer.py full FOLDER | python disk_writer.py readonly FOLDER
"""

from __future__ import annotations

import importlib.util
import os
import resource
import sys
from pathlib import Path

import pytest

import sawyer.ledger.views  # noqa: F401 (all that is imported must be, before we lose the right to read it)
from sawyer.errors import SawyerError, VerificationError
from sawyer.identity.keys import Key

NOBODY = 65534
STEP_BYTES = 3_000
"""Less than a page: the limit falls on every part of what a commit writes."""


def scene_of_the_crash():
    spec = importlib.util.spec_from_file_location("scene", Path(__file__).with_name("conftest.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["scene"] = module
    spec.loader.exec_module(module)
    names = ("router", "ledger", "alice", "node-a", "node-b", "mallory")
    keys = {name: Key.from_raw(bytes([seed]) * 32) for seed, name in enumerate(names, start=1)}
    return module.Scene({**keys, "operator": Key.from_raw(bytes([99]) * 32, "O")})


def fill_the_disk(folder: Path) -> None:
    """Let the disk be full at every point of a batch; say each time what is there afterwards."""
    scene, (soft, hard) = scene_of_the_crash(), resource.getrlimit(resource.RLIMIT_FSIZE)
    book = scene.open(folder, views=False, synchronous="FULL")
    book.commit(scene.opening(50_000_000), scene.now_ms)
    wal = folder / "book.sqlite-wal"
    number, room = 1, 0
    while True:
        size, batch = book.size, [scene.reserve(scene.order(at)) for at in range(number, number + 20)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + room, hard))
        try:
            book.commit(batch, scene.now_ms)
        except SawyerError as error:
            failure = error
        else:
            break
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert failure.hint
        assert book.size == size, "a batch that failed left something"
        (reply, *_) = book.commit(batch, scene.now_ms)
        assert reply.error is None
        assert not reply.repeated
        print(f"{room} {failure.message}", flush=True)  # noqa: T201
        number, room = number + 20, room + STEP_BYTES
    book.close()


def write_where_we_may_not(folder: Path) -> None:
    scene = scene_of_the_crash()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    with pytest.raises(SawyerError) as caught:
        scene.open(folder, views=False).commit([scene.account("dave", "mallory")], scene.now_ms)
    assert caught.value.hint
    assert not isinstance(caught.value, VerificationError)
    print(f"refused: {caught.value.message}")  # noqa: T201


if __name__ == "__main__":
    {"full": fill_the_disk, "readonly": write_where_we_may_not}[sys.argv[1]](Path(sys.argv[2]))
