"""The files of a home; the pin: written once, never another, never half read; the lock: one network at a time."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sawyer import home as home_module
from sawyer.errors import Busy, UsageError, VerificationError
from sawyer.home import Home, Pin, Running

PIN = Pin(
    network="sawyer-net/3f9a1c22", ledger_vkey="sawyer-net/3f9a1c22+0a1b2c3d+" + "A" * 44, operator="O" + "A" * 55
)

GONE = 2**22 + 1
"""More than Linux numbers processes."""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_every_file_has_a_place_of_its_own_inside_the_home(home: Home) -> None:
    places = [home.book, home.views, home.models, home.logs, home.nats, home.lock, home.demo.path]
    assert len(set(places)) == len(places)
    assert all(home.path in place.parents for place in places)


def test_keys_of_one_name_in_several_roles_are_several_files(home: Home) -> None:
    files = [home.operator_key, home.ledger_key]
    for name in ("alice", "operator", "ledger"):
        files += [home.account_key(name), home.node_key(name), home.router_key(name)]
    assert len(set(files)) == len(files)
    assert all(home.keys in file.parents for file in files)


def test_pin_is_read_back_as_written_and_may_be_written_again(home: Home) -> None:
    home.write_pin(PIN)
    home.write_pin(PIN)
    assert home.pin() == PIN
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert [path.name for path in home.path.iterdir()] == ["network.json"]


@pytest.mark.parametrize("field", ["network", "ledger_vkey", "operator"])
def test_foreign_pin_is_refused_and_the_first_stays(home: Home, field: str) -> None:
    home.write_pin(PIN)
    with pytest.raises(UsageError, match="belongs to network") as error:
        home.write_pin(replace(PIN, **{field: "another"}))
    assert "--home" in error.value.hint
    assert home.pin() == PIN


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"network": "a", "ledger_vkey": "b"}',
        b'{"network": "a", "ledger_vkey": "b", "operator": "c", "extra": "d"}',
        b'{"network": "a", "ledger_vkey": "b", "operator": 3}',
    ],
)
def test_corrupt_pin_is_named_and_never_overwritten(home: Home, content: bytes) -> None:
    home.path.mkdir()
    file = home.path / "network.json"
    file.write_bytes(content)
    with pytest.raises(VerificationError, match=r"network\.json"):
        home.pin()
    with pytest.raises(VerificationError):
        home.write_pin(PIN)
    assert file.read_bytes() == content


def test_kept_checkpoint_is_read_back_and_replaced_by_the_next(home: Home) -> None:
    assert home.held_checkpoint() is None
    for note in ("one\n", "two \N{EM DASH}\n"):
        home.keep_checkpoint(note)
        assert home.held_checkpoint() == note
    assert [path.name for path in home.path.iterdir()] == ["checkpoint.txt"]


# --- one network at a time --------------------------------------------------------------------------------------------

INSIDE = """
import sys
from pathlib import Path
from sawyer.home import Home
home = Home(Path(sys.argv[1]))
with home.alone():
    home.announce("nats://127.0.0.1:7")
    print("inside", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(home: Home) -> Callable[[], subprocess.Popen[str]]:
    """Starts another process, which is inside when this returns, and leaves when its stdin closes."""

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", INSIDE, str(home.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        return process

    return start


def test_second_network_in_one_home_is_refused_naming_the_first(
    home: Home, other: Callable[[], subprocess.Popen[str]]
) -> None:
    with other() as process, pytest.raises(Busy, match=f"process {process.pid} runs a network") as error, home.alone():
        pass
    assert "sawyer down" in error.value.hint


def test_running_network_is_found_while_it_runs_and_not_after(
    home: Home, other: Callable[[], subprocess.Popen[str]]
) -> None:
    assert (home.lock_holder(), home.running()) == (None, None)
    with other() as process:
        assert home.lock_holder() == process.pid
        assert home.running() == Running(process.pid, "nats://127.0.0.1:7")
    assert (home.lock_holder(), home.running()) == (None, None)
    assert not home.running_file.exists()


def test_network_that_was_killed_leaves_no_trace_that_counts(
    home: Home, other: Callable[[], subprocess.Popen[str]]
) -> None:
    with other() as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert home.running_file.exists()
        assert (home.lock_holder(), home.running()) == (None, None)
        with home.alone():
            assert home.lock_holder() == os.getpid()
            assert home.running() is None, "it does not listen yet"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', b'{"pid": %d, "url": 7}', b"\xff"])
def test_running_file_that_says_nothing_useful_counts_as_none(home: Home, content: bytes) -> None:
    with home.alone():
        home.running_file.write_bytes(content.replace(b"%d", str(os.getpid()).encode()))
        assert home.running() is None


def test_running_file_of_another_process_is_not_believed(home: Home) -> None:
    with home.alone():
        home.running_file.write_text(json.dumps({"pid": os.getpid() + 1, "url": "nats://h"}))
        assert home.running() is None


def test_somebody_who_looks_at_the_lock_does_not_keep_a_network_out(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.create()
    with home.lock.open("a+") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr(home_module.time, "sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        with home.alone():
            assert home.lock_holder() == os.getpid()


def test_holder_that_has_not_written_its_number_yet_is_waited_for(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.create()
    for before in ("", str(GONE)):  # of nobody, of a process that was killed
        home.lock.write_text(before)
        with home.lock.open("a+") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            monkeypatch.setattr(home_module.time, "sleep", lambda _: home.lock.write_text(str(os.getpid())))
            assert home.lock_holder() == os.getpid()


def test_holder_whose_process_cannot_be_seen_from_here_is_named_after_all(home: Home) -> None:
    home.create()
    home.lock.write_text(str(GONE))
    with home.lock.open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert home.lock_holder() == GONE


def test_lock_that_was_left_names_nobody(home: Home) -> None:
    with home.alone():
        assert home.lock.read_text() == str(os.getpid())
    assert home.lock.read_text() == ""


# --- a home that cannot be used ---------------------------------------------------------------------------------------


def test_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below"):
        with pytest.raises(UsageError, match="cannot make") as error, Home(path).alone():
            pass
        assert "--home" in error.value.hint


def test_home_is_made_for_its_user_alone(home: Home) -> None:
    home.create()
    home.create()
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700


def test_home_that_cannot_be_written_names_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UsageError, match=f"cannot write in {tmp_path}, which belongs to {tmp_path.owner()}"):
        Home(tmp_path).create()
