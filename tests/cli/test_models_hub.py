"""`sawyer models split owner/name`: a real process against a stand-in for the hub, killed, refused, and resumed."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import REPO, Fault, HubServer, serving, sharded

from sawyer.ids import ModelId
from sawyer.model.split import split

from .conftest import TIMEOUT_S, Done, environment, wait_until

GROUPED = Path(__file__).parents[1] / "unit" / "engine" / "golden" / "grouped"
SHARDS = 4
NAME = "tiny-moe"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return sharded(GROUPED, SHARDS)


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a split of the same checkpoint on this machine."""
    return split(GROUPED, tmp_path_factory.mktemp("here") / "out", model=ModelId(NAME)).digest()


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[HubServer]:
    with serving(dict(files)) as running:
        yield running


def surroundings(user: Path, server: HubServer, **more: str) -> dict[str, str]:
    hub = {"HF_ENDPOINT": server.url, "HF_HOME": str(user / "hf"), "SAWYER_HOME": str(user / "home"), "HF_TOKEN": ""}
    return environment(user) | hub | more


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "sawyer", "models", "split", *map(str, arguments)]


@pytest.fixture
def run(server: HubServer, tmp_path: Path) -> Callable[..., Done]:
    """`run(REPO, "--json", HF_TOKEN="hf_...")` runs `sawyer models split` with these arguments and settings."""

    def run(*arguments: str | Path, **settings: str) -> Done:
        done = subprocess.run(
            command(*arguments), env=surroundings(tmp_path, server, **settings), capture_output=True, text=True,
            timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL, cwd=tmp_path,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return run


def shards_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


# --- it works ---------------------------------------------------------------------------------------------------------


def test_hub_id_is_downloaded_and_split_and_the_shards_go(
    run: Callable[..., Done], tmp_path: Path, digest: str
) -> None:
    done = run(REPO, "--delete-shards", "--json")
    assert done.code == 0, done.err
    assert done.json["digest"] == digest
    assert Path(done.json["folder"]) == tmp_path / "home" / "models" / f"{NAME}-q4"
    downloads = tmp_path / "home" / "downloads" / REPO.replace("/", "--")
    assert (downloads / "tokenizer.json").is_file()
    assert shards_in(downloads) == []
    assert f"{REPO} comes from http://127.0.0.1:" in done.err


def test_token_and_revision_are_used_and_shards_stay_where_they_were_wanted(
    run: Callable[..., Done], server: HubServer, tmp_path: Path, files: dict[str, bytes]
) -> None:
    server.gated = True
    arguments = (f"{REPO}@{server.commit}", "--download-to", tmp_path / "big", "--out", tmp_path / "out")
    done = run(*arguments, HF_TOKEN=server.token)
    assert done.code == 0, done.err
    assert len(shards_in(tmp_path / "big")) == SHARDS
    assert f"stays in {tmp_path / 'big'}" in done.err
    assert {each.headers.get("authorization") for each in server.asked if each.path.startswith("/stored/")} == {None}


def test_killed_download_goes_on_where_it_was(
    run: Callable[..., Done], server: HubServer, tmp_path: Path, digest: str
) -> None:
    third = sorted(name for name in server.files if name.endswith(".safetensors"))[2]
    server.faults[third] = [Fault(), Fault(cut=40_000, hang=True)]
    downloads = tmp_path / "home" / "downloads" / REPO.replace("/", "--")
    part = downloads / f".{third}.part"
    process = subprocess.Popen(
        command(REPO, "--delete-shards"), env=surroundings(tmp_path, server), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path,
    )  # fmt: skip
    try:
        wait_until(lambda: part.exists() and part.stat().st_size > 0, "the third shard to begin")
    finally:
        process.kill()
        process.wait()
    assert shards_in(downloads) in ([], [third.replace("00003", "00002")])
    left = part.stat().st_size
    server.over.set()
    server.asked.clear()
    done = run(REPO, "--delete-shards", "--json")
    assert done.code == 0, done.err
    assert done.json["digest"] == digest
    (again,) = [each for each in server.asked_for(third) if each.path.startswith("/stored/")]
    assert again.headers["range"].startswith(f"bytes={left}-")
    assert shards_in(downloads) == []


def test_bars_show_rate_and_time_left_on_a_terminal(server: HubServer, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(REPO), env=surroundings(tmp_path, server, TERM="xterm"), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=theirs, cwd=tmp_path,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        select.select([ours], [], [], TIMEOUT_S)
        try:
            shown += os.read(ours, 1 << 16)
        except OSError:  # the other side is closed
            break
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    assert b"downloading model-0000" in shown
    assert b"splitting tiny-moe" in shown
    assert b"0:00:00" in shown


def test_layers_in_two_runs_give_the_same_model_and_the_first_says_how_to_go_on(
    run: Callable[..., Done], digest: str
) -> None:
    first = run(REPO, "--delete-shards", "--layers", "1")
    assert first.code == 0, first.err
    assert "missing layers: 0 " in " ".join(first.out.split())
    assert f"sawyer models split {REPO} --layers 0" in " ".join(first.err.split())
    last = run(REPO, "--delete-shards", "--layers", "0", "--json")
    assert last.code == 0, last.err
    assert last.json["digest"] == digest


@pytest.mark.parametrize(("layers", "says"), [("3-1", "backwards"), ("x", "no range"), ("0-99", "has no layer 2")])
def test_layers_that_are_none_are_refused(run: Callable[..., Done], layers: str, says: str) -> None:
    done = run(GROUPED, "--layers", layers)
    assert (done.code, done.out) == (2, "")
    assert says in " ".join(done.err.split()), done.err


# --- it refuses -------------------------------------------------------------------------------------------------------


def gated(server: HubServer) -> None:
    server.gated = True


def wrong_byte(server: HubServer) -> None:
    name = next(name for name in server.files if name.endswith("00002-of-00004.safetensors"))
    server.faults[name] = [Fault()]
    server.always[name] = Fault(flip=30_000)


def pickles(server: HubServer) -> None:
    server.files = {"config.json": server.files["config.json"], "pytorch_model.bin": b"x"}


@pytest.mark.parametrize(
    ("change", "arguments", "code", "says"),
    [
        (gated, (REPO,), 5, ("is gated", "Accept its licence", "HF_TOKEN")),
        (None, ("some/other",), 5, ("no repository some/other", "HF_TOKEN")),
        (wrong_byte, (REPO,), 3, ("00002-of-00004.safetensors: expected SHA-256", "thrown away")),
        (pickles, (REPO,), 2, ("pickle files only", ".safetensors")),
        (None, (GROUPED, "--delete-shards"), 2, ("is on this machine", "hub id")),
    ],
)  # fmt: skip
def test_split_from_a_hub_that_cannot_be_says_why_and_what_to_do(
    run: Callable[..., Done],
    server: HubServer,
    tmp_path: Path,
    change: Callable[[HubServer], None] | None,
    arguments: tuple[str | Path, ...],
    code: int,
    says: tuple[str, ...],
) -> None:
    if change is not None:
        change(server)
    done = run(*arguments)
    assert (done.code, done.out) == (code, ""), done.err
    assert [word for word in says if word not in " ".join(done.err.split())] == [], done.err
    assert list((tmp_path / "home").rglob("manifest.json")) == []


def test_hub_that_is_not_there_is_unreachable(run: Callable[..., Done]) -> None:
    done = run(REPO, HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.code, "cannot reach http://127.0.0.1:9" in done.err) == (4, True), done.err
    assert json.dumps("HF_ENDPOINT").strip('"') in done.err


@pytest.mark.parametrize(
    ("endpoint", "code", "says"),
    [
        ("http://u:s3cret@127.0.0.1:9", 4, "cannot reach http://127.0.0.1:9"),
        ("http://u:s3cret@[::1", 2, "HF_ENDPOINT 'http://[::1' is no address"),
    ],
)
def test_endpoint_is_shown_without_its_password(run: Callable[..., Done], endpoint: str, code: int, says: str) -> None:
    done = run(REPO, HF_ENDPOINT=endpoint)
    assert (done.code, done.out) == (code, "")
    assert says in " ".join(done.err.split()), done.err
    assert "s3cret" not in done.err
