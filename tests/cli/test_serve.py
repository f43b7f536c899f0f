"""`sawyer serve` as a host meets it: says what it serves, refuses what makes no sense, leaves nothing behind."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sawyer.bus.server import LocalServer
from sawyer.engine.experts import FAST
from sawyer.engine.footprint import expert_footprint
from sawyer.model.artifacts import Artifacts
from sawyer.node.hosting import pairs, parse_experts

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
        (("--max-memory", "lots"), "--max-memory 'lots' is no amount of memory"),
        (("--max-memory", "200%"), "--max-memory '200%' is no part of the memory"),
        (("--max-memory", "6"), "--max-memory '6' has no unit"),
        (("--json",), "--json shows what would be hosted"),
    ],
)
def test_experts_that_make_no_sense_are_a_usage_error(sawyer, home, arguments, words):
    place = ("--home", home, "--nats", NOBODY, "--format", "q4")
    done = sawyer("serve", "austen-8m", "--name", "attic", *place, *arguments)
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
    arguments = ("serve", "austen-8m", "--name", "node-1", "--threads", "1", "--share", "0/1", *network)
    done = sawyer(*arguments, "--host", "bob")
    assert done.code == 2
    assert "node-1 is registered for host-1, not for bob" in done.err
    assert "leave the host out" in done.err.lower()
    assert done.out == ""
    assert ready(started(*arguments)).endswith(", for host-1\n"), "a host that nobody chose is the one in the book"


def test_second_process_is_refused_and_one_that_was_killed_is_replaced_at_once(sawyer, started, network):
    arguments = ("serve", "austen-8m", "--name", "node-1", "--threads", "1", "--share", "0/1", *network)
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


# --- what it chooses itself -------------------------------------------------------------------------------------------


@pytest.fixture
def room_for(home: Path) -> Callable[[int], str]:
    """`--max-memory` for so many experts of the demo model."""
    artifacts = Artifacts.open(home / "models" / "austen-8m-q4")
    one = expert_footprint(artifacts.layout, "q4", accuracy_level=FAST)
    return lambda experts: f"{one.room_for(experts)}B"


@pytest.fixture
def chosen_of(home: Path) -> Callable[[str], set[tuple[int, int]]]:
    """The (layer, expert) pairs of a text that --experts takes."""
    layout = Artifacts.open(home / "models" / "austen-8m-q4").layout
    return lambda text: set(pairs(parse_experts(text, layout)))


def test_dry_run_shows_the_choice_and_changes_nothing(sawyer, home, network):
    def files() -> set[tuple[Path, int]]:
        return {
            (path, path.stat().st_mtime_ns)
            for part in ("keys", "models", "receipts")
            for path in (home / part).rglob("*")
        }

    before = files()
    done = sawyer("serve", "austen-8m", "--name", "attic", "--threads", "1", "--dry-run", *network)
    assert done.code == 0, done.err
    for words in (
        "austen-8m in q4: 32 experts in 4 layers", "32 of 32 experts: --experts *:*", "(80 % of what is free; ",
        "nothing to bring: all of it is here", "test mode, no money moves", "$0.00 a month at the traffic of now",
    ):  # fmt: skip
        assert words in done.out
    assert files() == before
    assert "attic" not in sawyer("ledger", "log", "--home", home).out


def test_dry_run_in_a_home_that_has_nothing_leaves_nothing_there(sawyer, network, tmp_path):
    done = sawyer("serve", "austen-8m", "--dry-run", "--json", "--home", tmp_path / "new", *network[2:])
    assert done.code == 0, done.err
    assert done.json["experts"] == "*:*"
    assert not (tmp_path / "new").exists()


def test_dry_run_in_a_home_with_another_format_leaves_nothing_there(sawyer, home, network, tmp_path):
    other = tmp_path / "other"
    (other / "models").mkdir(parents=True)
    split = shutil.copytree(home / "models" / "austen-8m-q4", other / "models" / "austen-8m-q8")
    before = set(other.rglob("*"))
    done = sawyer("serve", "austen-8m", "--dry-run", "--json", "--home", other, *network[2:])
    assert done.code == 0, done.err
    assert done.json["format"] == "q4"
    assert set(other.rglob("*")) == before
    named = sawyer("serve", split, "--dry-run", "--json", "--home", other, *network[2:])
    assert named.code == 0, named.err
    assert named.json["bring_files"] == 0


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_path_that_is_no_split_model_is_a_usage_error(sawyer, home, tmp_path, dry):
    done = sawyer("serve", tmp_path / "nothing*", "--home", home, "--nats", NOBODY, *dry)
    assert done.code == 2
    assert "nothing* is no folder of a split model: it has no manifest.json" in done.err
    assert "hint:" in done.err


def test_dry_run_chooses_exactly_what_is_missing_and_then_replicas(sawyer, started, network, room_for, chosen_of):
    assert ready(started("serve", "austen-8m", "--name", "node-1", "--experts", "0-1:*,2:0-3", *network))

    def asked(*arguments: str) -> dict:
        return sawyer("serve", "austen-8m", "--name", "attic", "--dry-run", "--json", *network, *arguments).json

    told = asked("--max-memory", room_for(12))
    assert chosen_of(told["experts"]) == chosen_of("2:4-7,3:*")
    assert told["expert_count"] == 12
    assert told["experts_by_hosts"] == {
        "now": {"0": 12, "1": 20, "2+": 0},
        "with_this_node": {"0": 0, "1": 32, "2+": 0},
    }
    assert told["memory_bytes"] <= told["max_memory_bytes"]
    assert all(not each["replica"] for each in told["layers"])
    assert told["earnings"]["share_of_rows_ppb"] == 375_000_000
    assert told["earnings"]["today_uusd"] == 0
    assert told["machine"]["provider"] == "CPUExecutionProvider"
    more = asked("--max-memory", room_for(14))
    assert chosen_of(more["experts"]) > chosen_of("2:4-7,3:*")
    assert sum(len(each["replica"]) for each in more["layers"]) == 2
    named = asked("--experts", "0:0-1", "--max-memory", room_for(1))
    assert named["experts"] == "0:0-1"


def test_two_nodes_choose_all_experts_between_them_and_a_text_is_generated(
    sawyer, started, home, network, room_for, chosen_of
):
    common = ("--threads", "1", "--max-memory", room_for(16), *network)
    said = []
    for name in ("node-1", "node-2"):
        node = started("serve", "austen-8m", "--name", name, *common)
        line = ready(node)
        assert line.startswith(f"ready: {name} serves 16 experts of austen-8m (q4)"), node.communicate()[1]
        said.append([node.stderr.readline() for _ in range(2)])
    chosen = [chosen_of(first.rpartition(": ")[2].strip()) for first, _ in said]
    assert len(chosen[0] | chosen[1]) == 32
    assert [second for _, second in said] == [
        "16 of them nobody served; 0 as another replica; 16 are still served by nobody\n",
        "16 of them nobody served; 0 as another replica; 0 are still served by nobody\n",
    ]
    assert ready(started("route", "austen-8m", *network))
    done = sawyer("generate", "It was a", "--max-tokens", "4", "--account", "alice", *network)
    assert done.code == 0, done.err
    assert done.out.strip()


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_memory_for_less_than_one_expert_is_refused_with_numbers(sawyer, home, network, dry):
    done = sawyer("serve", "austen-8m", "--name", "attic", "--max-memory", "100kB", *network, *dry)
    assert done.code == 2
    assert "one expert takes 683 kB of memory while it is loaded, and 100 kB may be used" in done.err
    assert "raise --max-memory" in done.err
    assert done.out == ""
    assert not (home / "keys" / "nodes" / "attic.nk").exists()


def test_more_memory_than_the_machine_has_is_a_warning(sawyer, network):
    done = sawyer("serve", "austen-8m", "--name", "attic", "--max-memory", "900TB", "--dry-run", *network)
    assert done.code == 0
    assert "warning: --max-memory 900TB is more than the " in done.err


def test_dry_run_without_a_network_is_unreachable(sawyer, home):
    done = sawyer("serve", "austen-8m", "--dry-run", "--home", home, "--nats", NOBODY)
    assert done.code == 4
    assert "hint:" in done.err
