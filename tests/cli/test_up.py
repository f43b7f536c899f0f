"""`sawyer up` and what goes with it, as people run it: real processes, ended and killed in every way."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import Done, pid_of, processes_of, wait_until


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def up_home(sawyer, tmp_path_factory) -> Iterator[Path]:
    """A home in which a network runs in the background. Tests may ask it, and add nodes."""
    home = tmp_path_factory.mktemp("up") / "home"
    done = sawyer("up", "-d", "--listen", free_address(), "--account", "ann", "--home", home)
    assert done.code == 0, done.err
    yield home
    sawyer("down", "--home", home)


def _holder(home: Path) -> int:
    return int((home / "lock").read_text())


def _parts(home: Path) -> dict[str, dict]:
    try:
        return {row["name"]: row for row in json.loads((home / "parts.json").read_text())}
    except (OSError, ValueError):
        return {}


def test_status_shows_every_part_and_node(sawyer, up_home):
    page = sawyer("status", "--home", up_home)
    assert page.code == 0, page.err
    for word in (
        "nats-server",
        "bookkeeper",
        "authority",
        "router-1",
        "node-1",
        "node-2",
        "32/32",
        "austen-8m",
        "entries",
    ):
        assert word in page.out
    document = sawyer("status", "--json", "--home", up_home).json
    assert document["ok"] is True
    assert document["pid"] == _holder(up_home)
    assert [each["state"] for each in document["parts"]] == ["running"] * 6
    assert document["routers"][0]["missing"] == 0


def test_status_of_one_node_tells_its_vitals_and_of_none_says_which_there_are(sawyer, up_home):
    page = sawyer("status", "node-1", "--home", up_home)
    assert page.code == 0
    assert "16 as first choice, 16 as replica" in page.out
    assert sawyer("status", "node-1", "--json", "--home", up_home).json[0]["node"] == "node-1"
    missed = sawyer("status", "node-9", "--home", up_home)
    assert missed.code == 2
    assert "node-1" in missed.err


@pytest.mark.parametrize("detached", [(), ("-d",)])
def test_second_up_in_the_same_home_is_refused_naming_the_first(sawyer, up_home, detached):
    again = sawyer("up", *detached, "--home", up_home)
    assert again.code == 5
    assert str(_holder(up_home)) in again.err
    assert "sawyer down" in again.err or "sawyer status" in again.err


def test_up_on_an_address_that_is_taken_says_so(sawyer, up_home, tmp_path):
    taken = (up_home / "listen.txt").read_text().strip()
    done = sawyer("up", "--listen", taken, "--home", tmp_path / "other")
    assert done.code == 2
    assert taken in done.err
    assert "--listen" in done.err


def test_logs_are_shown_by_part_and_a_wrong_part_is_named(sawyer, up_home):
    out = sawyer("logs", "--home", up_home).out
    assert any(line.startswith("up          | ") and " ready: nats://" in line for line in out.splitlines())
    assert "Server is ready" in sawyer("logs", "nats-server", "--home", up_home).out
    missed = sawyer("logs", "node-9", "--home", up_home)
    assert missed.code == 2
    assert "router-1" in missed.err


def test_logs_are_followed_until_ctrl_c(started, up_home):
    following = started("logs", "-f", "-n", "1", "up", "--home", up_home)
    assert following.stdout is not None
    assert following.stdout.readline()
    with (up_home / "logs" / "up.log").open("a") as log:
        log.write("something new\n")
    assert following.stdout.readline() == "something new\n"
    following.send_signal(signal.SIGINT)
    assert following.wait(20) == 130


def test_node_of_another_user_joins_is_seen_and_is_missed_when_killed(sawyer, started, up_home, tmp_path):
    other, token = tmp_path / "other", _token(sawyer, up_home, tmp_path)
    joined = sawyer("register", "--name", "attic", "--join", token, "--home", other)
    assert joined.code == 0, joined.err
    assert "attic is a node of sawyer-net/" in joined.out
    again = sawyer("register", "--name", "attic", "--host", "maria", "--home", other, "--json")
    assert again.json["key"] in joined.out
    node = started("serve", "austen-8m", "--name", "attic", "--threads", "1", "--home", other)
    assert node.stdout is not None
    assert node.stdout.readline().startswith("ready: attic")

    def state() -> str:
        rows = sawyer("status", "--json", "--home", up_home).json["routers"][0]["nodes"]
        seen = {row["node"]: row for row in rows}.get("attic")
        return "unknown" if seen is None else "silent" if seen["silent_ms"] > 3500 or seen["gone"] else "seen"

    wait_until(lambda: state() == "seen", "the router to see the new node")
    node.kill()
    wait_until(lambda: state() == "silent", "the router to miss it")


def test_revoked_node_ends_is_out_of_placement_and_others_go_on(sawyer, started, up_home, tmp_path):
    home = tmp_path / "cellar"
    joined = sawyer("register", "--name", "cellar", "--join", _token(sawyer, up_home, tmp_path), "--home", home)
    assert joined.code == 0, joined.err
    node = started("serve", "austen-8m", "--name", "cellar", "--threads", "1", "--home", home)
    assert node.stdout is not None
    assert node.stdout.readline().startswith("ready: cellar")
    members = sawyer("network", "members", "--home", up_home, "--json").json
    assert [each["host"] for each in members if each["name"] == "cellar"] == ["maria"]
    revoked = sawyer("network", "revoke", "cellar", "--reason", "stolen", "--home", up_home, "--json")
    assert revoked.code == 0, revoked.err
    assert node.wait(20) == 5
    assert node.stderr is None or "revoked" in node.stderr.read()
    seen = sawyer("status", "--json", "--home", up_home).json["routers"][0]["nodes"]
    assert "cellar" not in {row["node"] for row in seen}
    assert sawyer("generate", "It was", "--max-tokens", "3", "--account", "ann", "--home", up_home).code == 0
    told = sawyer("keys", "ls", "--all", "--home", up_home).out
    assert f"revoked in entry {revoked.json['entry']}: stolen" in told


def test_invitation_lets_one_node_in_and_no_second(sawyer, up_home, tmp_path):
    token = _token(sawyer, up_home, tmp_path)
    assert sawyer("register", "--name", "first", "--join", token, "--home", tmp_path / "first").code == 0
    done = sawyer("register", "--name", "second", "--join", token, "--home", tmp_path / "second")
    assert done.code == 5
    assert "used already" in done.err
    assert not (tmp_path / "second" / "keys" / "nodes" / "second.nk").exists()


def _token(sawyer: Callable[..., Done], up_home: Path, tmp_path: Path) -> Path:
    done = sawyer("network", "invite", "--host", "maria", "--home", up_home)
    assert done.code == 0, done.err
    file = tmp_path / "token.txt"
    file.write_text(done.out)
    return file


def test_name_of_another_node_is_refused_and_no_key_is_left(sawyer, up_home, tmp_path):
    token = _token(sawyer, up_home, tmp_path)
    done = sawyer("register", "--name", "node-1", "--join", token, "--home", tmp_path / "thief")
    assert done.code == 5
    assert not (tmp_path / "thief" / "keys" / "nodes" / "node-1.nk").exists()


def test_key_that_is_none_is_refused_before_anything_is_trusted(sawyer, up_home, tmp_path):
    url = f"nats://{(up_home / 'listen.txt').read_text().strip()}"
    done = sawyer("register", "--key", "sawyer-net/x+00000000+AAAA", "--nats", url, "--home", tmp_path / "home")
    assert done.code == 2
    assert not (tmp_path / "home" / "network.json").exists()


@pytest.mark.parametrize("part", ["bookkeeper", "route", "serve", "nats-server"])
def test_part_that_is_killed_is_started_again_and_said(sawyer, up_home, part):
    before = {name: row["restarts"] for name, row in _parts(up_home).items()}
    pid = pid_of(up_home, part)
    name = next(name for name, row in _parts(up_home).items() if row["pid"] == pid)
    os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: (
            _parts(up_home).get(name, {}).get("restarts") == before[name] + 1
            and _parts(up_home)[name]["state"] == "running"
        ),
        f"{name} to be back",
    )
    assert f"{name} ended by signal 9. Starting it again in" in sawyer("logs", "up", "-n", "9", "--home", up_home).out
    wait_until(lambda: sawyer("status", "--home", up_home).code == 0, "all to be well again")


def test_node_that_is_frozen_is_a_problem_until_it_goes_on(sawyer, up_home):
    pid = _parts(up_home)["node-2"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: sawyer("status", "--home", up_home).code == 1, "status to miss the node")
        assert "node-2 is silent for" in sawyer("status", "--home", up_home).out
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: sawyer("status", "--home", up_home).code == 0, "all to be well again")


def test_down_ends_every_process_and_again_says_that_nothing_runs(sawyer, tmp_path):
    home = tmp_path / "home"
    assert sawyer("up", "-d", "--listen", free_address(), "--home", home).code == 0
    first = sawyer("status", "--json", "--home", home).json
    done = sawyer("down", "--home", home)
    assert done.code == 0
    assert processes_of(home) == []
    assert "nothing runs" in sawyer("down", "--home", home).err
    assert sawyer("ledger", "replay", "--home", home).code == 0
    assert sawyer("up", "-d", "--home", home).code == 0
    second = sawyer("status", "--json", "--home", home).json
    assert (second["network"], second["entries"], second["url"]) == (first["network"], first["entries"], first["url"])
    assert sawyer("down", "--home", home).code == 0


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -9)])
def test_up_in_the_foreground_leaves_no_process_whatever_ends_it(started, sawyer, tmp_path, how, code):
    home = tmp_path / "home"
    up = started("up", "--listen", free_address(), "--home", home)
    assert up.stdout is not None
    assert up.stdout.readline().startswith("ready: nats://127.0.0.1:")
    up.send_signal(how)
    assert up.wait(40) == code
    wait_until(lambda: processes_of(home) == [], "its children to end")
    assert sawyer("ledger", "replay", "--home", home).code == 0


def test_up_without_its_model_files_fails_with_the_words_of_the_part(sawyer, tmp_path):
    home = tmp_path / "home"
    done = sawyer("up", "-d", "--listen", free_address(), "--home", home)
    assert done.code == 0
    assert sawyer("down", "--home", home).code == 0
    expert = next((home / "models").rglob("E0.q4.bin"))
    expert.write_bytes(b"changed")
    broken = sawyer("up", "-d", "--home", home)
    assert broken.code == 1
    assert f"{expert.name}" in broken.err
    assert "Traceback" not in broken.err
    assert processes_of(home) == []


def test_background_network_that_is_asked_for_nonsense_has_the_exit_code_and_words_of_the_foreground(sawyer, tmp_path):
    there = sawyer("up", "--format", "bogus", "--home", tmp_path / "home")
    behind = sawyer("up", "-d", "--format", "bogus", "--home", tmp_path / "home")
    assert (behind.code, behind.err) == (there.code, there.err)
    assert there.code == 2


def test_interrupted_start_in_the_background_leaves_nothing_running(started, tmp_path):
    home = tmp_path / "home"
    up = started("up", "-d", "--listen", free_address(), "--home", home)
    wait_until(lambda: (home / "lock").exists() and len(processes_of(home)) > 1, "it to begin")
    up.send_signal(signal.SIGINT)
    assert up.wait(60) == 130
    wait_until(lambda: processes_of(home) == [], "its children to end")


def test_network_whose_reader_goes_away_goes_on(started, sawyer, tmp_path):
    home = tmp_path / "home"
    up = started("up", "--listen", free_address(), "--home", home)
    assert up.stdout is not None
    assert up.stdout.readline().startswith("ready: ")
    up.stdout.close()
    up.stdout = None
    os.kill(_parts(home)["node-1"]["pid"], signal.SIGKILL)
    wait_until(lambda: _parts(home)["node-1"]["restarts"] == 1, "the node to be started again")
    wait_until(lambda: sawyer("status", "--home", home).code == 0, "all to be well again")
    assert sawyer("down", "--home", home).code == 0
    assert up.wait(40) == 0


def test_network_in_the_background_keeps_to_the_config_file_of_its_user(started, tmp_path):
    user = tmp_path  # the home directory of the processes that `started` starts
    folder = user / "config" / "sawyer"
    folder.mkdir(parents=True)
    home = tmp_path / "net"
    (folder / "config.toml").write_text(f'home = "{home}"\naccount = "alice"\n')
    up = started("up", "-d", "--json", "--listen", free_address())
    out, err = up.communicate(timeout=60)
    assert up.returncode == 0, err
    assert json.loads(out)["home"] == str(home)
    balance = started("balance", "--json")
    out, err = balance.communicate(timeout=30)
    assert json.loads(out)["account"] == "alice", err
    assert started("down").wait(60) == 0
