"""`sawyer serve` as a host meets it: says what it serves, refuses what makes no sense, leaves nothing behind."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sawyer.bus.server import LocalServer

NOBODY = "nats://127.0.0.1:1"


@pytest.fixture
def home(demo_home_copy: Path) -> Path:
    """The demo's home, which a test may serve from."""
    return demo_home_copy


@pytest.fixture
def network(home: Path, started: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """The demo's network again, without router and nodes: how to reach it."""
    with LocalServer.start(tmp_path / "nats") as server:
        reach = ("--home", str(home), "--nats", server.url)
        assert ready(started("bookkeeper", *reach)).startswith("ready: bookkeeper of ")
        yield reach


def ready(process: subprocess.Popen[str]) -> str:
    """The line in which it says that it is ready; empty if it ended instead."""
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--share", "0/1", "--experts", "*:*"), "--share and --experts"),
        (("--share", "2/2"), "share 2/2 does not exist"),
        (("--experts", "0:0-3,1:9"), "'9' at position 9 of --experts: this model has no expert 9"),
        (("--experts", "0:0-3;1:2"), "'0-3;1:2' at position 3"),
        (("--experts", "7:0"), "this model has no layer 7"),
    ],
)
def test_experts_that_make_no_sense_are_a_usage_error(sawyer, home, arguments, words):
    done = sawyer("serve", "austen-8m", "--name", "attic", "--home", home, "--nats", NOBODY, *arguments)
    assert done.code == 2
    assert words in done.err
    assert "hint:" in done.err
    assert not (home / "keys" / "nodes" / "attic.nk").exists()


def test_start_that_fails_leaves_no_key_behind(sawyer, home):
    done = sawyer("serve", "austen-8m", "--name", "attic", "--home", home, "--nats", NOBODY)
    assert done.code == 4
    assert not (home / "keys" / "nodes" / "attic.nk").exists()


def test_ready_line_says_what_is_served_and_a_new_key_is_kept(started, home, network):
    chosen = ("--experts", "0:0-3,1:4,2:*")
    line = ready(started("serve", "austen-8m", "--name", "attic", "--host", "bob", "--threads", "1", *chosen, *network))
    assert line == "ready: attic serves 13 experts of austen-8m (q4) on CPU, 1 thread, for bob\n"
    assert (home / "keys" / "nodes" / "attic.nk").exists()


def test_host_that_is_not_the_one_in_the_book_is_a_usage_error(sawyer, started, network):
    arguments = ("serve", "austen-8m", "--name", "node-1", "--threads", "1", *network)
    done = sawyer(*arguments, "--host", "bob")
    assert done.code == 2
    assert "node-1 is registered for host-1, not for bob" in done.err
    assert "leave the host out" in done.err.lower()
    assert done.out == ""
    assert ready(started(*arguments)).endswith(", for host-1\n"), "a host that nobody chose is the one in the book"


def test_second_process_is_refused_and_one_that_was_killed_is_replaced_at_once(sawyer, started, network):
    arguments = ("serve", "austen-8m", "--name", "node-1", "--threads", "1", *network)
    first = started(*arguments)
    assert ready(first)
    done = sawyer(*arguments)
    assert done.code == 5
    assert done.out == ""
    assert "node-1 is served by another process already (instance " in done.err
    assert "another --name" in done.err
    assert "Traceback" not in done.err
    assert first.poll() is None
    first.kill()
    first.wait()
    assert ready(started(*arguments))
