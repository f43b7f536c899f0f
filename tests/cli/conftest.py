"""The command line as a person runs it: real processes in homes of their own."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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


class Zygote:
    """See zygote.py. One command at a time."""

    def __init__(self) -> None:
        self._asking, theirs = socket.socketpair()
        with theirs:
            program = [sys.executable, str(Path(__file__).with_name("zygote.py")), str(theirs.fileno())]
            self._process = subprocess.Popen(program, pass_fds=[theirs.fileno()], env=environment(Path("/nonexistent")))
        self._answers = self._asking.makefile("rb", buffering=0)  # what has come is then seen by select

    def run(self, arguments: Sequence[str], settings: dict[str, str], text: str = "") -> Done:
        """The command with this environment and `text` on stdin."""
        asked = {"arguments": arguments, "environment": settings, "folder": str(Path.cwd())}
        (stdin, to_stdin), (from_out, out), (from_err, err) = os.pipe(), os.pipe(), os.pipe()
        socket.send_fds(self._asking, [json.dumps(asked).encode()], [stdin, out, err])
        for each in (stdin, out, err):
            os.close(each)
        pid = int(self._answers.readline())
        with ThreadPoolExecutor(3) as pipes:
            pipes.submit(_write_all, to_stdin, text)
            printed, said = (pipes.submit(_read_all, each) for each in (from_out, from_err))
            if not select.select([self._asking], [], [], TIMEOUT_S)[0]:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(arguments, TIMEOUT_S)
            return Done(int(self._answers.readline()), printed.result(), said.result())

    def close(self) -> None:
        self._answers.close()
        self._asking.close()
        self._process.wait(TIMEOUT_S)


def _write_all(descriptor: int, text: str) -> None:
    with suppress(BrokenPipeError), open(descriptor, "wb") as stream:
        stream.write(text.encode())


def _read_all(descriptor: int) -> str:
    with open(descriptor, "rb") as stream:
        return stream.read().decode()


def runner(zygote: Zygote, user: Path, **settings: str) -> Callable[..., Done]:
    """`run("generate", "It was a", text="stdin")` runs the command of this user, with these settings."""

    def run(*arguments: str | int | Path, text: str = "") -> Done:
        done = zygote.run([*map(str, arguments)], environment(user) | settings, text)
        assert "Traceback" not in done.err
        return done

    return run


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


@pytest.fixture(scope="session")
def sawyer(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Done]:
    """`sawyer("demo", "--json")` runs the command in a process of its own and returns exit code, stdout and stderr;
    with `program`, in a new Python that is started so."""
    home = tmp_path_factory.mktemp("user")

    def run(*arguments: str | Path, program: tuple[str, ...] = ()) -> Done:
        if not program:
            return zygote.run([*map(str, arguments)], environment(home))
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
def guest(zygote: Zygote, url: str, tmp_path: Path) -> Callable[..., Done]:
    """A command of somebody with a home of their own."""
    return runner(zygote, tmp_path, SAWYER_HOME=str(tmp_path / "guest"), SAWYER_NATS=url)


@pytest.fixture
def invited(sawyer: Callable[..., Done], up: Path, tmp_path: Path) -> Callable[..., Path]:
    """The file with a join token of the network that runs, for whom the arguments say."""

    def invite(*whom: str) -> Path:
        done = sawyer("network", "invite", *whom, "--home", up)
        assert done.code == 0, done.err
        file = tmp_path / f"token-{'-'.join(whom).replace('/', '')}.txt"
        file.write_text(done.out)
        return file

    return invite


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


@pytest.fixture
def temporary(monkeypatch, tmp_path):
    """Where a benchmark makes its home."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder
