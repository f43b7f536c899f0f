"""The command line as a person runs it: real processes in homes of their own."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TIMEOUT_S = 90
POLL_S = 0.05


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)


def environment(home: Path) -> dict[str, str]:
    """A user without a home directory of ours, and without our settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SAWYER_")}
    folders = {"HOME": home, "XDG_DATA_HOME": home / "data", "XDG_CONFIG_HOME": home / "config"}
    return {**kept, **{name: str(folder) for name, folder in folders.items()}, "COLUMNS": "120"}


def runner(user: Path, **settings: str) -> Callable[..., Done]:
    """`run("generate", "It was a", text="stdin")` runs the command of this user, with these settings."""

    def run(*arguments: str | int | Path, text: str = "") -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "sawyer", *map(str, arguments)],
            check=False, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(user) | settings,
            input=text,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def sawyer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Done]:
    """`sawyer("demo", "--json")` runs the command and returns exit code, stdout and stderr."""
    home = tmp_path_factory.mktemp("user")

    def run(*arguments: str | Path, program: tuple[str, ...] = ("-m", "sawyer")) -> Done:
        done = subprocess.run(
            [sys.executable, *program, *map(str, arguments)],
            check=False, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(home),
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`started("demo", ...)` starts the command and leaves it running; what is left at the end is ended."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "sawyer", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(tmp_path),
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def demo_home(sawyer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home in which one demo ran to its end. Tests must not add to its book: `demo_home_copy` is for those."""
    home = tmp_path_factory.mktemp("demo") / "home"
    done = sawyer("demo", "--json", "--max-tokens", "4", "--home", home)
    assert done.code == 0, done.err
    yield home
    entries = sawyer("ledger", "replay", "--json", "--home", home).json["entries"]
    assert entries == done.json["entries"], "a test wrote to the book that all tests read"


@pytest.fixture
def demo_home_copy(demo_home: Path, tmp_path: Path) -> Path:
    """A copy of `demo_home` for one test, which may do with it what it likes."""
    left = shutil.ignore_patterns("nats", "logs", "lock", "running.json")
    return Path(shutil.copytree(demo_home, tmp_path / "copy", ignore=left))


@pytest.fixture(scope="module")
def up(sawyer: Callable[..., Done], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a network that runs while this module's tests do; alice has a budget there."""
    home = tmp_path_factory.mktemp("up") / "home"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    done = sawyer("up", "-d", "--listen", listen, "--account", "alice", "--home", home)
    assert done.code == 0, done.err
    yield home
    sawyer("down", "--home", home)


@pytest.fixture(scope="module")
def url(up: Path) -> str:
    return str(json.loads((up / "running.json").read_text())["url"])


@pytest.fixture
def guest(url: str, tmp_path: Path) -> Callable[..., Done]:
    """A command of somebody with a home of their own."""
    return runner(tmp_path, SAWYER_HOME=str(tmp_path / "guest"), SAWYER_NATS=url)


def processes_of(home: Path) -> list[str]:
    """Command lines of all processes that name this home."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if str(home) in line and state != "Z":
            found.append(line)
    return found


def pid_of(home: Path, part: str) -> int:
    """The process that runs this part of the network in this home."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(str(home) in word for word in words) and any(
            word == part or word.endswith("/" + part) for word in words[:5]
        ):
            return int(folder.name)
    raise AssertionError(f"no {part} runs in {home}")


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Poll a condition; fail with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for: {what}"
        select.select([], [], [], POLL_S)
