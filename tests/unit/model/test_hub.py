"""The hub over real HTTP: what it lists, what it sends, and each way in which it says no."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, REPO, Fault, HubServer, git_id, serving

from sawyer.errors import (
    CheckpointCorrupt,
    NotAuthorised,
    RefusedError,
    SawyerError,
    UnknownModel,
    UnreachableError,
    UsageError,
)
from sawyer.model.downloads import HubId
from sawyer.model.hub import Hub

FILES = {"config.json": b'{"a": 1}', "model.safetensors": bytes(range(256)) * 100, "sub/model.safetensors": b"x"}


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serving(dict(FILES)) as running:
        yield running


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a token of whoever runs this."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))


def hub(server: HubServer, revision: str = "main") -> Hub:
    return Hub(HubId(REPO, revision), server.url)


def read(server: HubServer, name: str, start: int, end: int) -> bytes:
    with closing(hub(server).stream(COMMIT, name, start, end)) as stream:
        return b"".join(stream)


# --- what is there ----------------------------------------------------------------------------------------------------


def test_listing_names_commit_and_checksum_of_each_file_in_the_top_folder(server: HubServer) -> None:
    listing = hub(server).listing()
    assert listing.commit == COMMIT
    assert [file.name for file in listing.files] == ["config.json", "model.safetensors"]
    config, weights = listing.files
    assert (config.size_bytes, config.sha256, config.git_sha1) == (8, "", git_id(FILES["config.json"]))
    assert weights.sha256 == hashlib.sha256(FILES["model.safetensors"]).hexdigest()


@pytest.mark.parametrize(("start", "end"), [(0, 25_600), (0, 8), (5_000, 25_600), (25_599, 25_600)])
def test_part_of_a_file_comes_as_it_was_asked_for(server: HubServer, start: int, end: int) -> None:
    assert read(server, "model.safetensors", start, end) == FILES["model.safetensors"][start:end]


def test_server_that_knows_no_ranges_still_gives_the_right_bytes(server: HubServer) -> None:
    server.ranges = False
    assert read(server, "model.safetensors", 5_000, 25_600) == FILES["model.safetensors"][5_000:]


# --- what is told about us --------------------------------------------------------------------------------------------


def test_nothing_is_told_but_the_name_of_the_program(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AI_AGENT", "AGENT", "CI"):
        monkeypatch.setenv(name, "someone")
    hub(server).listing()
    read(server, "model.safetensors", 0, 25_600)
    assert [each.path.split("?")[0] for each in server.asked] == [
        f"/api/models/{REPO}/revision/main", f"/{REPO}/resolve/{COMMIT}/model.safetensors", "/stored/model.safetensors",
    ]  # fmt: skip
    for each in server.asked:
        assert each.headers["user-agent"].startswith("sawyer/")
        assert ";" not in each.headers["user-agent"]
        assert "cookie" not in each.headers
        assert not [name for name in each.headers if name.startswith("x-hf")]


def test_token_goes_to_the_hub_and_not_to_its_storage(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.gated = True
    monkeypatch.setenv("HF_TOKEN", server.token)
    assert read(server, "model.safetensors", 0, 25_600) == FILES["model.safetensors"]
    at_hub, at_storage = server.asked
    assert at_hub.headers["authorization"] == f"Bearer {server.token}"
    assert "authorization" not in at_storage.headers


# --- saying no --------------------------------------------------------------------------------------------------------


def test_unknown_repository_is_named_with_what_to_check(server: HubServer) -> None:
    with pytest.raises(UnknownModel, match="no repository some/other at http") as caught:
        Hub(HubId("some/other"), server.url).listing()
    assert "HF_TOKEN" in caught.value.hint


def test_unknown_revision_is_named(server: HubServer) -> None:
    with pytest.raises(UnknownModel, match=f"{REPO} has no revision v9"):
        hub(server, "v9").listing()


@pytest.mark.parametrize("token", ["", "hf_wrong"])
def test_gated_repository_says_to_accept_the_licence(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    server.gated = True
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(NotAuthorised, match="is gated") as caught:
        read(server, "config.json", 0, 8)
    assert "Accept its licence" in caught.value.hint
    assert "HF_TOKEN" in caught.value.hint


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, NotAuthorised), (403, NotAuthorised), (404, UnknownModel), (400, RefusedError), (408, UnreachableError),
        (429, UnreachableError), (500, UnreachableError), (503, UnreachableError),
    ],
)  # fmt: skip
def test_status_without_a_word_becomes_the_error_that_fits(
    server: HubServer, status: int, kind: type[SawyerError]
) -> None:
    server.api_status = status
    with pytest.raises(kind) as caught:
        hub(server).listing()
    assert type(caught.value) is kind
    assert caught.value.hint


def test_file_that_is_listed_and_not_there_is_named(server: HubServer) -> None:
    with pytest.raises(CheckpointCorrupt, match=r"less of gone\.json than it lists"):
        read(server, "gone.json", 0, 10)


def test_more_than_there_is_cannot_be_asked_for(server: HubServer) -> None:
    with pytest.raises(CheckpointCorrupt, match=r"less of config\.json than it lists"):
        read(server, "config.json", 8, 10)


def test_hub_that_is_not_there_is_unreachable() -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UnreachableError, match=f"cannot reach {url}"):
            Hub(HubId(REPO), url).listing()


def test_password_in_the_endpoint_is_used_and_never_shown() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        hub = Hub(HubId(REPO), f"http://someone:s3cret@{place}")
        assert hub.endpoint == f"http://{place}"
        with pytest.raises(UnreachableError, match=f"cannot reach http://{place}") as caught:
            hub.listing()
    assert "s3cret" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "endpoint", ["http://[::1", "http://u:s3cret@[::1", "http://h:port", "http://", "ftp://h", "h", "http://u:s3cret@"]
)
def test_endpoint_that_is_no_address_is_refused_without_its_password(endpoint: str) -> None:
    with pytest.raises(UsageError, match="is no address of a hub") as caught:
        Hub(HubId(REPO), endpoint)
    assert "s3cret" not in caught.value.message
    assert "HF_ENDPOINT" in caught.value.hint


def test_line_that_breaks_is_unreachable_after_the_bytes_that_came(server: HubServer) -> None:
    server.faults["model.safetensors"] = [Fault(cut=9_000)]
    got: list[bytes] = []
    with closing(hub(server).stream(COMMIT, "model.safetensors", 0, 25_600)) as stream, pytest.raises(UnreachableError):
        got.extend(stream)
    assert b"".join(got) == FILES["model.safetensors"][:9_000]


def test_offline_mode_of_the_library_is_kept_and_named(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnreachableError, match="offline mode") as caught:
        hub(server).listing()
    assert "HF_HUB_OFFLINE" in caught.value.hint
    assert server.asked == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": None}, {"size": "8"}, {"size": -1}, {"blobId": None}, {"blobId": "../../x"}, {"lfs": {"size": 8}},
        {"lfs": 1},
    ],
)  # fmt: skip
def test_listing_that_is_none_is_refused(server: HubServer, wrong: dict[str, Any]) -> None:
    server.listed["config.json"] = wrong
    with pytest.raises(UnreachableError, match="does not answer as a hub does"):
        hub(server).listing()


def test_only_the_hub_module_needs_the_library() -> None:
    code = (
        "import sys\nimport sawyer.__main__, sawyer.cli.app, sawyer.cli.models, sawyer.cli.splitting\n"
        "import sawyer.model.split, sawyer.model.remote\nprint([name for name in sys.modules if 'huggingface' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("mistralai/Mixtral-8x7B-v0.1", HubId("mistralai/Mixtral-8x7B-v0.1")),
        ("a/b@refs/pr/1", HubId("a/b", "refs/pr/1")),
        *[(text, None) for text in ("a", "./a/b", "/a/b", "a/b/c", "a/b@", "a/../b", "a/b c", "a/b@../x", "", "a/b\n")],
        *[(text, None) for text in ("a/b.gguf", "a/model.safetensors", "a/b--c", "a../b", "a/b.git", "a/" + "b" * 95)],
    ],
)
def test_hub_id_is_told_from_a_path(text: str, parsed: HubId | None) -> None:
    assert HubId.parse(text) == parsed


def test_model_of_a_hub_id_gets_a_name_that_is_allowed() -> None:
    assert HubId("mistralai/Mixtral-8x7B-v0.1").model_name == "mixtral-8x7b-v0-1"
    assert HubId("a/b", "refs/pr/1").folder_name == "a--b@refs--pr--1"
