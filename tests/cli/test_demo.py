"""`sawyer demo` as a newcomer runs it, and as an impatient one ends it."""

from __future__ import annotations

import os
import signal

import pytest

from .conftest import pid_of, processes_of, wait_until


def test_demo_prints_text_summary_and_verdict(sawyer, demo_home_copy):
    done = sawyer("demo", "--max-tokens", "12", "--home", demo_home_copy)
    assert done.code == 0
    assert done.out.startswith("It was a pity that he should be")
    for part in ("tokens", "balance", "node-1", "node-2", "signed", "OK", "sawyer ledger replay --home"):
        assert part in done.out
    assert processes_of(demo_home_copy) == []


def test_demo_json_is_one_object_with_what_happened(sawyer, tmp_path):
    done = sawyer("demo", "--json", "--max-tokens", "8", "--nodes", "3", "--home", tmp_path / "home")
    assert done.code == 0
    result = done.json
    assert result["text"] == " pity that he should be so very"
    assert result["tokens"] == 8
    assert result["tokens_per_second"] > 0
    assert {node["id"] for node in result["nodes"]} <= {"node-1", "node-2", "node-3"}
    assert sum(node["rows"] for node in result["nodes"]) == (3 + 8 - 1) * 4 * 2
    assert result["balance_before"] - result["balance_after"] == 11
    assert result["replay"]["ok"] is True
    assert result["replay"]["entries"] == result["entries"]
    assert result["replay"]["signatures"] > result["entries"]
    assert result["wall_seconds"] > 0


def test_demo_kill_gives_the_same_text_and_says_who_took_over(sawyer, tmp_path):
    plain = sawyer("demo", "--json", "--max-tokens", "32", "--home", tmp_path / "home").json
    killed = sawyer("demo", "--json", "--max-tokens", "32", "--kill", "--home", tmp_path / "home").json
    assert killed["text"] == plain["text"]
    assert len(killed["killed"]) == 1
    dead = killed["killed"][0]
    rows = {node["id"]: node for node in killed["nodes"]}
    assert rows[dead]["rows"] > 0
    assert rows[dead]["receipted"] is False
    assert dead in {each["lost"] for each in killed["takeovers"]}
    assert killed["replay"]["ok"] is True
    assert killed["balance_before"] == plain["balance_after"]


def test_demo_verbose_prints_one_line_a_layer(sawyer, demo_home_copy):
    done = sawyer("demo", "-v", "--max-tokens", "2", "--home", demo_home_copy)
    lines = [line for line in done.out.splitlines() if line.startswith("step ")]
    assert len(lines) == 2 * 4
    assert all("node-" in line and "experts" in line and " us " in line for line in lines)


def test_demo_continues_the_book_of_its_home(sawyer, demo_home_copy):
    first = sawyer("demo", "--json", "--max-tokens", "2", "--home", demo_home_copy).json
    second = sawyer("demo", "--json", "--max-tokens", "2", "--home", demo_home_copy).json
    assert second["balance_before"] == first["balance_after"]
    assert second["entries"] == first["entries"] + 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--prompt", ""), 2, "the prompt is empty"),
        (("--prompt", "very " * 600), 2, "over the context of 512"),
        (("--nodes", "0"), 2, "nodes"),
        (("--nodes", "1", "--kill"), 2, "--nodes 2 or more"),
        (("--frobnicate",), 2, "No such option"),
    ],
)
def test_demo_with_bad_input_says_what_is_wrong(sawyer, demo_home_copy, arguments, code, words):
    done = sawyer("demo", "--home", demo_home_copy, *arguments)
    assert done.code == code
    assert words in done.err
    assert "Traceback" not in done.err
    assert processes_of(demo_home_copy) == []


def test_second_demo_in_the_same_home_is_refused_naming_the_first(started, sawyer, tmp_path):
    home = tmp_path / "home"
    first = started("demo", "--max-tokens", "400", "--home", home)
    wait_until(lambda: (home / "lock").exists() and (home / "lock").read_text() == str(first.pid), "the first demo")
    second = sawyer("demo", "--home", home)
    assert second.code == 5
    assert str(first.pid) in second.err


def _running_demo(started, home):
    demo = started("demo", "--max-tokens", "450", "--home", home)
    assert demo.stdout is not None
    assert demo.stdout.read(20)  # the text has begun
    assert len(processes_of(home)) >= 5
    return demo


@pytest.mark.parametrize("part", ["route", "bookkeeper", "nats-server"])
def test_demo_whose_network_breaks_says_what_died_and_ends_soon(started, tmp_path, part):
    home = tmp_path / "home"
    demo = _running_demo(started, home)
    os.kill(pid_of(home, part), signal.SIGKILL)
    _, err = demo.communicate(timeout=40)
    assert demo.returncode == 1
    assert "the network broke" in err
    assert "Traceback" not in err
    assert processes_of(home) == []


def test_demo_whose_reader_goes_away_ends_quietly(started, tmp_path):
    home = tmp_path / "home"
    demo = _running_demo(started, home)
    demo.stdout.close()
    demo.stdout = None
    _, err = demo.communicate(timeout=40)
    assert "Traceback" not in err
    assert processes_of(home) == []


def test_home_that_cannot_be_made_is_named(sawyer):
    done = sawyer("demo", "--home", "/dev/null/home")
    assert done.code == 2
    assert "cannot make /dev/null/home" in done.err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_demo_ends_every_process_it_started(started, tmp_path, how):
    home = tmp_path / "home"
    demo = _running_demo(started, home)
    demo.send_signal(how)
    assert demo.wait(40) == 130
    assert processes_of(home) == []


def test_killed_demo_leaves_no_process_behind(started, tmp_path):
    home = tmp_path / "home"
    demo = _running_demo(started, home)
    demo.kill()
    demo.wait(10)
    wait_until(lambda: processes_of(home) == [], "its children to end")


def test_interrupted_demo_leaves_a_book_that_proves_right(started, sawyer, tmp_path):
    home = tmp_path / "home"
    demo = _running_demo(started, home)
    demo.kill()
    demo.wait(10)
    wait_until(lambda: processes_of(home) == [], "its children to end")
    assert sawyer("ledger", "replay", "--home", home).code == 0
    again = sawyer("demo", "--json", "--max-tokens", "2", "--home", home)
    assert again.json["replay"]["ok"] is True
