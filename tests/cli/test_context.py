"""`sawyer context`: the way from a server that asks who connects to commands that just connect."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sawyer.bus import server
from sawyer.bus.server import LocalServer
from sawyer.identity.keys import Key

from .conftest import TIMEOUT_S, Done, environment

SECRET = "s3cret-never-told"


@pytest.fixture
def user(tmp_path: Path) -> Callable[..., Done]:
    """`user("context", "ls", text="stdin")`: a command of somebody who has nothing yet."""

    def run(*arguments: str | Path, text: str = "", **variables: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "sawyer", *map(str, arguments)],
            check=False, capture_output=True, text=True, timeout=TIMEOUT_S, input=text,
            env=environment(tmp_path) | variables,
        )  # fmt: skip
        assert SECRET not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that lets in only maria, by her password."""
    users = f'authorization {{{{ users: [{{{{user: maria, password: "{SECRET}"}}}}] }}}}'
    monkeypatch.setattr(server, "_CONFIG", server._CONFIG + users)
    with LocalServer.start(tmp_path / "nats") as local:
        yield local.url


def test_context_with_a_password_from_stdin_opens_a_guarded_server(user, guarded):
    refused = user("status", "--nats", guarded)
    assert refused.code == 4
    assert "refused us, connecting with no credentials" in refused.err
    added = user("context", "add", "home", "--nats", guarded, "--user", "maria", "--select", text=SECRET + "\n")
    assert added.code == 0, added.err
    assert "no bookkeeper answers" in user("balance").err, "it is in, and there is nobody else"


def test_wrong_password_in_a_context_names_the_user_and_not_the_password(user, guarded):
    user("context", "add", "home", "--nats", guarded, "--user", "maria", text=SECRET + "x\n")
    done = user("balance", "--context", "home")
    assert done.code == 4
    assert "user maria" in done.err


def test_password_is_asked_without_an_echo_on_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sawyer", "context", "add", "home", "--nats", "nats://h", "--user", "maria"],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment(tmp_path), start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while b"password:" not in seen:
        seen += os.read(ours, 4096)
    os.write(ours, SECRET.encode() + b"\n")
    assert process.wait(TIMEOUT_S) == 0
    os.close(ours)
    assert SECRET.encode() not in seen
    file = tmp_path / "config" / "sawyer" / "contexts" / "home.json"
    assert json.loads(file.read_text())["password"] == SECRET
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_contexts_are_listed_selected_shown_and_deleted(user, tmp_path):
    theirs = tmp_path / "config" / "nats" / "context" / "cli.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text(json.dumps({"url": f"nats://maria:{SECRET}@demo.nats.io", "description": "of the nats CLI"}))
    assert user("context", "add", "ours", "--nats", "nats://h:1", "--token", text=SECRET).code == 0
    assert user("context", "select", "cli").code == 0
    rows = user("context", "ls", "--json").json
    assert [(row["name"], row["owner"], row["url"], row["credential"], row["selected"]) for row in rows] == [
        ("cli", "nats", "nats://***@demo.nats.io", "what stands in the address", True),
        ("ours", "sawyer", "nats://h:1", "a token", False),
    ]
    table = user("context", "ls").out.splitlines()
    assert [line[0] for line in table] == [" ", "*", " "]
    assert user("context", "show", "--json").json["name"] == "cli"
    assert "a token" in user("context", "show", "ours").out
    assert "in force is ours" in user("context", "ls", SAWYER_CONTEXT="ours").err
    assert user("context", "rm", "cli").code == 2
    assert user("context", "select", "-").code == 0
    assert user("context", "show").code == 2
    assert user("context", "rm", "ours").code == 0
    assert [row["name"] for row in user("context", "ls", "--json").json] == ["cli"]


def test_files_of_a_context_are_found_from_every_folder(user, tmp_path):
    (tmp_path / "maria.nk").write_text(Key.generate().seed)
    (tmp_path / "maria.nk").chmod(0o600)
    user("context", "add", "x", "--nats", "nats://h", "--nkey", os.path.relpath(tmp_path / "maria.nk"))
    named = Path(user("context", "show", "x", "--json").json["credential"].removeprefix("nkey "))
    assert named.is_absolute()
    assert named.samefile(tmp_path / "maria.nk")


def test_broken_context_is_listed_with_what_is_wrong(user, tmp_path):
    user("context", "add", "good", "--nats", "nats://h")
    (tmp_path / "config" / "sawyer" / "contexts" / "bad.json").write_text("{")
    rows = {row["name"]: row["problem"] for row in user("context", "ls", "--json").json}
    assert rows["good"] == ""
    assert "line 1, column 2" in rows["bad"]
    assert user("context", "select", "bad").code == 2
    assert user("context", "rm", "bad").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--nats", "h:x"), "not the address"),
        (("--nats", "nats://h", "--creds", "/no/such"), "cannot read /no/such"),
        (("--nats", "nats://h", "--nkey", __file__), "no seed"),
        (("--nats", "nats://h", "--ca", __file__), "TLS files"),
        (("--nats", "nats://h", "--user", "maria"), "no password on stdin"),
        (("--nats", "nats://h", "--token"), "no token on stdin"),
        (("--nats", "nats://h", "--token", "--user", "maria"), "--user and --token"),
        ((), "--nats"),
    ],
)
def test_context_that_could_not_be_used_is_not_written(user, tmp_path, arguments, words):
    done = user("context", "add", "x", *arguments)
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "config").exists()


def test_password_is_not_asked_for_a_name_that_is_taken(user):
    user("context", "add", "x", "--nats", "nats://h")
    done = user("context", "add", "x", "--nats", "nats://h", "--user", "maria")
    assert done.code == 2
    assert "there already" in done.err
