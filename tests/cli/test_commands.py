"""The other commands: splitting, replaying, and each program alone; right exit codes, no tracebacks."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

import sawyer as package
from sawyer.model.catalog import demo_checkpoint

WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Blocked())
sys.argv[0] = "sawyer"
from sawyer.cli.app import main
main()
"""


NETWORK_PACKAGES = ("nats", "onnxruntime", "onnx", "stripe", "tokenizers")


def _without(*packages: str) -> tuple[str, str]:
    """How to run sawyer where these packages cannot be imported."""
    return "-c", WITHOUT.format(blocked=packages)


@pytest.fixture
def book_copy(demo_home, tmp_path) -> Path:
    """A copy of the demo's home that a test may damage."""
    home = tmp_path / "copy"
    home.mkdir()
    for name in ("book.sqlite", "views.sqlite", "network.json"):
        shutil.copy(demo_home / name, home / name)
    return home


def _execute(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    try:
        with connection:
            assert connection.execute(statement, values).rowcount == 1
    finally:
        connection.close()


def test_version_is_the_packages(sawyer):
    assert sawyer("--version").out == f"sawyer {package.__version__}\n"


@pytest.mark.parametrize("command", [(), ("demo",), ("serve",), ("models", "split"), ("ledger", "replay")])
def test_help_explains_the_command(sawyer, command):
    done = sawyer(*command, "--help")
    assert done.code == 0
    assert "Usage: sawyer" in done.out


def test_unknown_command_is_a_usage_error(sawyer):
    done = sawyer("frobnicate")
    assert done.code == 2
    assert "No such command" in done.err


def test_split_writes_a_model_that_serve_can_use(sawyer, tmp_path):
    done = sawyer("models", "split", demo_checkpoint(), "--name", "austen-8m", "--out", tmp_path / "m", "--json")
    assert done.code == 0
    assert done.json["files"] > 32
    assert (tmp_path / "m" / "manifest.json").exists()
    again = sawyer("models", "split", demo_checkpoint(), "--name", "austen-8m", "--out", tmp_path / "m")
    assert again.code == 2
    assert "already holds a split model" in again.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("/no/such/folder",), "/no/such/folder"),
        ((".", "--format", "q3"), "q3"),
        ((".", "--name", "A.B"), "A.B"),
    ],
)
def test_split_of_bad_input_says_what_is_wrong(sawyer, tmp_path, arguments, words):
    done = sawyer("models", "split", *arguments, "--out", tmp_path / "m")
    assert done.code == 2
    assert words in done.err
    assert "Traceback" not in done.err


def test_replay_of_a_good_book_prints_balances_and_what_hosts_are_owed(sawyer, demo_home):
    done = sawyer("ledger", "replay", "--home", demo_home)
    assert done.code == 0
    for part in ("OK", "alice", "host-1", "owed"):
        assert part in done.out


def test_replay_runs_where_the_network_packages_are_not_installed(sawyer, demo_home):
    done = sawyer("ledger", "replay", "--home", demo_home, "--json", program=_without(*NETWORK_PACKAGES))
    assert done.code == 0, done.err
    assert done.json["ok"] is True


@pytest.mark.parametrize("package_name", ["onnxruntime", "tokenizers"])
def test_router_without_a_compute_package_says_which_extra(sawyer, demo_home, package_name):
    done = sawyer("route", "austen-8m", "--home", demo_home, program=_without(package_name))
    assert done.code == 1
    assert "Traceback" not in done.err
    assert "pip install 'sawyer[cpu]'" in done.err


def test_replay_of_a_book_without_a_key_says_it_is_not_anchored(sawyer, demo_home):
    done = sawyer("ledger", "replay", "--book", demo_home / "book.sqlite", "--json")
    assert done.code == 0
    assert done.json["anchored"] is False


def test_replay_with_another_networks_key_finds_the_book_wrong(sawyer, demo_home, keys):
    from sawyer.ledger.checkpoint import vkey_of

    key = vkey_of("sawyer-net/00000000", keys["ledger"])
    done = sawyer("ledger", "replay", "--book", demo_home / "book.sqlite", "--key", key)
    assert done.code == 3


def test_replay_after_one_changed_byte_names_the_entry(sawyer, book_copy):
    _execute(
        book_copy / "book.sqlite",
        "UPDATE stored_events SET state = CAST(replace(state, ?, ?) AS BLOB) WHERE topic = 'tokens.granted.v1'",
        b'"tokens":500000', b'"tokens":900000',
    )  # fmt: skip
    done = sawyer("ledger", "replay", "--home", book_copy)
    assert done.code == 3
    assert "WRONG: entry" in done.out
    assert "tokens.granted.v1" in done.out


def test_replay_after_a_changed_view_row_names_the_row(sawyer, book_copy):
    _execute(
        book_copy / "views.sqlite",
        "UPDATE view_rows SET row = replace(row, ?, ?) WHERE view = 'balances' AND key = 'account:alice'",
        b'"consumed":', b'"consumed":9',
    )  # fmt: skip
    done = sawyer("ledger", "replay", "--home", book_copy)
    assert done.code == 3
    assert "account:alice" in done.out


def test_replay_of_nothing_says_so(sawyer, tmp_path):
    done = sawyer("ledger", "replay", "--home", tmp_path / "empty")
    assert done.code == 2
    assert "Traceback" not in done.err


def test_serve_with_a_corrupted_weight_file_names_it_and_serves_nothing(sawyer, demo_home, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(demo_home, home)
    victim = next((home / "models").glob("*/experts/L2/E5*"))
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 1
    victim.write_bytes(raw)
    done = sawyer("demo", "--home", home, "--max-tokens", "4")
    assert done.code == 1
    assert "E5" in done.err
    assert "Traceback" not in done.err


def test_key_file_that_others_can_read_is_refused(sawyer, demo_home, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(demo_home, home)
    (home / "keys" / "operator.nk").chmod(0o644)
    done = sawyer("demo", "--home", home, "--max-tokens", "4")
    assert done.code == 5
    assert "chmod 600" in done.err


@pytest.mark.parametrize("command", [("bookkeeper",), ("route", "austen-8m"), ("serve", "austen-8m")])
def test_part_without_a_server_says_who_does_not_answer(sawyer, demo_home, command):
    done = sawyer(*command, "--home", demo_home, "--nats", "nats://127.0.0.1:1")
    assert done.code == 4
    assert "nats://127.0.0.1:1" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", [("bookkeeper",), ("serve", "austen-8m")])
def test_part_in_an_empty_home_says_what_to_do(sawyer, tmp_path, command):
    done = sawyer(*command, "--home", tmp_path)
    assert done.code == 2
    assert "belongs to no network" in done.err


def test_serve_ends_in_order_on_sigterm(started, demo_home, tmp_path):
    from sawyer.bus.server import LocalServer

    home = tmp_path / "home"
    shutil.copytree(demo_home, home)
    with LocalServer.start(tmp_path / "nats") as server:
        common = ("--home", home, "--nats", server.url)
        bookkeeper = started("bookkeeper", *common)
        assert bookkeeper.stdout.readline().startswith("ready: bookkeeper")
        node = started("serve", "austen-8m", "--name", "node-1", *common)
        assert node.stdout.readline().startswith("ready: node-1")
        for process in (node, bookkeeper):
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
