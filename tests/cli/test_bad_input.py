"""Whatever is wrong, a person reads one line that names it and one that says what to do; never a traceback."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer.main

from sawyer.bus.server import LocalServer
from sawyer.cli.app import app, run
from sawyer.model.catalog import demo_checkpoint

from .conftest import TIMEOUT_S, Done, environment

ASKING = [("status",), ("balance",), ("account", "open"), ("account", "show"), ("register",), ("doctor",)]
"""Commands that ask the network, also in a home that belongs to none."""
NOBODY = ("--nats", "nats://127.0.0.1:1")
UNPRIVILEGED = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"] if os.geteuid() == 0 else []
"""So that root too is refused what the modes of files refuse."""


def checked(done: subprocess.CompletedProcess[str]) -> Done:
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") <= 1
    if "error: " in done.stderr:
        assert "\nhint:  " in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def user(tmp_path: Path) -> Callable[..., Done]:
    """A command of somebody who has nothing yet, checked for how it fails."""

    def run(*arguments: str | Path, prefix: list[str] | None = None, limit_bytes: int = 0, **variables: str) -> Done:
        def limit() -> None:
            if limit_bytes:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

        return checked(subprocess.run(
            [*(prefix or []), sys.executable, "-m", "sawyer", *map(str, arguments)],
            check=False, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL,
            env=environment(tmp_path) | variables, preexec_fn=limit,
        ))  # fmt: skip

    return run


# --- addresses and servers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["http://127.0.0.1:4222", "nats://127.0.0.1:notaport", "nats://", "nats://h:1,"])
def test_address_that_is_none_is_named(user, url):
    done = user("status", "--nats", url)
    assert done.code == 2
    assert f"'{url}' is not the address of a NATS server" in done.err
    assert "nats://HOST:PORT" in done.err


@pytest.mark.parametrize("command", ASKING, ids=" ".join)
def test_every_command_takes_a_wrong_address_for_a_usage_error(user, command):
    done = user(*command, "--nats", "http://h")
    assert done.code == (1 if command == ("doctor",) else 2)
    assert "not the address" in done.out + done.err


@pytest.mark.parametrize("command", ASKING, ids=" ".join)
def test_server_that_is_down_is_named(user, command):
    done = user(*command, "--nats", "nats://127.0.0.1:1")
    assert done.code == (1 if command == ("doctor",) else 4)
    assert "nats://127.0.0.1:1 (connection refused)" in done.out + done.err


@pytest.mark.parametrize("command", ASKING, ids=" ".join)
def test_server_that_asks_for_credentials_names_what_it_refused(user, asking_server, command):
    done = user(*command, "--nats", asking_server.replace("//", "//maria:hunter2@"))
    assert done.code == (1 if command == ("doctor",) else 4)
    told = done.out + done.err
    assert "refused us" in told
    assert "--creds" in told
    assert "hunter2" not in told


@pytest.fixture
def asking_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from sawyer.bus import server

    monkeypatch.setattr(server, "_CONFIG", server._CONFIG + "authorization {{ token: x }}\n")
    with LocalServer.start(tmp_path / "nats") as local:
        yield local.url


def test_no_bookkeeper_on_a_server_is_said(user, tmp_path):
    with LocalServer.start(tmp_path / "nats") as local:
        done = user("balance", "--nats", local.url)
    assert done.code == 4
    assert "no bookkeeper answers" in done.err


@pytest.mark.parametrize("name", ["nowhere", "../x"])
def test_context_that_is_not_there_is_named(user, name):
    done = user("status", "--context", name)
    assert done.code == 2
    assert repr(name) in done.err


# --- homes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("up",), ("demo",), ("context", "add", "x", "--nats", "nats://h")], ids=" ".join)
def test_home_that_cannot_be_written_is_named(user, tmp_path, command):
    home = tmp_path / "of-another"
    home.mkdir(mode=0o500)
    done = user(*command, "--home", home, prefix=UNPRIVILEGED)
    assert done.code in (1, 2)
    assert str(home) in done.err
    assert "home of your own" in done.err


@pytest.mark.parametrize(
    "command",
    [("up",), ("ledger", "replay"), ("status", *NOBODY), ("serve", "austen-8m", *NOBODY), ("doctor", *NOBODY)],
    ids=lambda command: command[0],
)
def test_home_that_cannot_be_entered_is_named(user, tmp_path, command):
    home = tmp_path / "of-another"
    home.mkdir(mode=0o000)
    done = user(*command, "--home", home, prefix=UNPRIVILEGED)
    assert done.code in (1, 2)
    assert str(home) in done.out + done.err


def test_home_that_is_a_file_is_named(user, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    done = user("up", "--home", file)
    assert done.code == 2
    assert f"cannot make {file}" in done.err


def test_home_of_another_network_is_refused(user, started, demo_home, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    pin = (demo_home / "network.json").read_text()
    (mine / "network.json").write_text(pin.replace("sawyer-net/", "sawyer-net/0000", 1))
    theirs = tmp_path / "theirs"
    shutil.copytree(demo_home, theirs, ignore=shutil.ignore_patterns("models"))
    with LocalServer.start(tmp_path / "nats") as local:
        bookkeeper = started("bookkeeper", "--home", theirs, "--nats", local.url)
        assert bookkeeper.stdout.readline().startswith("ready: ")
        done = user("balance", "--home", mine, "--nats", local.url)
    assert done.code == 3
    assert "is pinned to" in done.err


# --- a full disk ------------------------------------------------------------------------------------------------------


def test_file_that_no_longer_fits_is_named(user, tmp_path):
    done = user("models", "split", demo_checkpoint(), "--name", "m", "--out", tmp_path / "m", limit_bytes=100_000)
    assert done.code == 1
    assert str(tmp_path / "m") in done.err
    assert "File too large" in done.err
    assert "Free some space" in done.err
    assert [path for path in (tmp_path / "m").rglob("*.bin") if path.stat().st_size >= 100_000] == []


def test_demo_on_a_full_disk_fails_in_one_line(user, tmp_path):
    done = user("demo", "--home", tmp_path / "h", "--max-tokens", "4", limit_bytes=100_000)
    assert done.code == 1
    assert "File too large" in done.err


def test_book_that_cannot_grow_fails_in_one_line(user, demo_home, tmp_path):
    home = tmp_path / "h"
    shutil.copytree(demo_home, home, ignore=shutil.ignore_patterns("models"))
    done = user("bookkeeper", "--home", home, "--nats", "nats://127.0.0.1:1", limit_bytes=4096)
    assert done.code == 1
    assert "book.sqlite" in done.err


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("context", "ls", "--json"), ("doctor", "--json")])
def test_output_that_cannot_be_written_fails_in_one_line(tmp_path, arguments):
    with Path("/dev/full").open("w") as full:
        done = checked(subprocess.run(
            [sys.executable, "-m", "sawyer", *arguments],
            check=False, stdout=full, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S, env=environment(tmp_path),
            stdin=subprocess.DEVNULL,
        ))  # fmt: skip
    assert done.code == 1
    assert "cannot write: No space left on device" in done.err


def test_reader_that_goes_away_ends_it_quietly(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = checked(subprocess.run(
        [sys.executable, "-m", "sawyer", "--help"], check=False, stdout=writer, stderr=subprocess.PIPE, text=True,
        timeout=TIMEOUT_S, env=environment(tmp_path), stdin=subprocess.DEVNULL,
    ))  # fmt: skip
    os.close(writer)
    assert (done.code, done.err) == (1, "")


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [*ASKING[:-1], ("up",), ("demo",), ("bookkeeper",), ("context", "ls")], ids=" ".join
)
def test_corrupted_config_file_is_named_with_line_and_column(user, tmp_path, command):
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "config.toml").write_text("# mine\nnats = nats://h\n")
    done = user(*command, "--home", tmp_path / "h")
    assert done.code == 2
    assert f"{tmp_path}/h/config.toml: " in done.err
    assert "(at line 2, column 8)" in done.err


def test_value_of_a_variable_that_makes_no_sense_names_the_variable(user):
    done = user("status", SAWYER_THREADS="many")
    assert done.code == 2
    assert "threads is 'many' (SAWYER_THREADS)" in done.err


# --- the command line -------------------------------------------------------------------------------------------------


def _commands(group: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("command", list(_commands(typer.main.get_command(app))), ids=" ".join)
def test_every_command_explains_itself_and_refuses_an_unknown_flag(command, capsys):
    assert run([*command, "--help"]) == 0
    assert "Example: sawyer" in capsys.readouterr().out
    assert run([*command, "--no-such-flag"]) == 2
    told = capsys.readouterr().err
    assert "--no-such-flag" in told
    assert f"hint:  `sawyer {' '.join(command)} --help`" in told


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("stats",), "Did you mean 'status'?"),
        (("leger", "replay"), "Did you mean 'ledger'"),
        (("context", "list"), "No such command 'list'"),
        (("demo", "--prompts", "x"), "--prompt"),
        (("demo", "--max-tokens", "many"), "'--max-tokens'"),
        (("demo", "surplus"), "surplus"),
        (("serve",), "Missing argument 'model'"),
    ],
    ids=" ".join,
)
def test_mistyped_command_line_says_what_was_meant(user, wrong, words):
    done = user(*wrong)
    assert done.code == 2
    assert words in done.err
    assert "--help` lists what there is" in done.err


def test_no_command_at_all_shows_what_there_is(user):
    done = user()
    assert done.code == 2
    assert "doctor" in done.out


# --- what nobody foresaw ----------------------------------------------------------------------------------------------

BROKEN = """
import asyncio, sys
from sawyer import settings
from sawyer.cli.app import main
def broken(*_, **__):
    {statement}
settings.Settings.load = broken
main()
"""


@pytest.mark.parametrize(
    ("statement", "code", "words"),
    [
        ("raise RuntimeError('the unforeseen')", 1, "sawyer failed unexpectedly (RuntimeError: the unforeseen)"),
        ("raise MemoryError", 1, "sawyer failed unexpectedly (MemoryError)"),
        ("open('/no/such/file')", 1, "/no/such/file: No such file or directory"),
        (
            "raise ExceptionGroup('x', [KeyError('k'), settings.UsageError('the known', hint='h')])",
            2,
            "error: the known",
        ),
        ("raise asyncio.CancelledError", 130, "interrupted"),
        ("raise settings.UsageError('\\x1b[2Jsteered', hint='h')", 2, "error: \N{REPLACEMENT CHARACTER}[2Jsteered"),
    ],
)
def test_failure_that_nobody_foresaw_is_a_line_and_with_debug_a_traceback(sawyer, statement, code, words):
    program = ("-c", BROKEN.format(statement=statement))
    plain, debug = sawyer("status", program=program), sawyer("status", "--debug", program=program)
    assert (plain.code, debug.code) == (code, code)
    assert words in plain.err
    assert "Traceback" not in plain.err
    assert "Traceback" in debug.err
    assert words in debug.err


def test_interrupt_has_its_exit_code_and_no_traceback(sawyer):
    done = sawyer("status", "--debug", program=("-c", BROKEN.format(statement="raise KeyboardInterrupt")))
    assert done.code == 130
    assert "Traceback" not in done.err


def test_debug_after_two_dashes_is_an_argument(sawyer):
    done = sawyer("demo", "--", "--debug")
    assert done.code == 2
    assert "--debug" in done.err


LOADING = """
import runpy, sys
class Impatient:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Impatient())
runpy.run_module("sawyer", run_name="__main__")
"""


def test_interrupt_while_the_program_loads_is_as_quiet(sawyer):
    done = sawyer("status", program=("-c", LOADING))
    assert (done.code, done.out, done.err) == (130, "", "")
