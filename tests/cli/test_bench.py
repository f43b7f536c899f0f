"""`sawyer bench` as a person runs it, and as an impatient one ends it."""

from __future__ import annotations

import signal

import pytest

from .conftest import processes_of, wait_until

pytestmark = pytest.mark.usefixtures("temporary")


def test_bench_json_names_ratio_activations_and_goals(sawyer, temporary):
    done = sawyer("bench", "--quick", "--rounds", "1", "--json")
    assert done.code == 0, done.err
    result = done.json
    synthetic, demo = result["models"]
    assert demo["model"] == "austen-8m"
    assert result["ratio"] == synthetic["ratio"]["median"] > 0
    assert result["activations_per_second"] == synthetic["activations_per_second"]["median"] > 0
    assert [goal["name"] for goal in result["goals"]] == [
        "activations_per_second", "layer_call_p50_us", "distributed_ratio", "streams_ratio", "streams_gain",
        "four_nodes_ratio",
    ]  # fmt: skip
    assert [batch["rows"] for batch in synthetic["batches"]] == [32]
    assert done.err == ""
    assert list(temporary.glob("sawyer-bench-*")) == []


def test_bench_prints_a_table_and_the_goals(sawyer):
    done = sawyer("bench", "--quick", "--rounds", "1")
    assert done.code == 0, done.err
    assert " on uvloop\n" in done.out
    for label in ("tokens/s distributed", "communication us", "plain requests us", "32 rows a layer", "activations/s"):
        assert label in done.out
    assert done.out.count("met") + done.out.count("missed") == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_bench_ends_its_processes_and_removes_its_home(started, temporary, number):
    process = started("bench", "--quick")
    wait_until(lambda: any("node-2" in line for line in processes_of(temporary)), "the nodes of the benchmark")
    process.send_signal(number)
    assert process.wait(60) == 130
    assert processes_of(temporary) == []
    assert list(temporary.glob("sawyer-bench-*")) == []


def test_bench_split_measures_memory_and_speed_beside_a_copy(sawyer, temporary):
    done = sawyer("bench", "split", "--quick", "--size-gb", "0.04", "--trunk-format", "q8", "--json")
    assert done.code == 0, done.err
    result = done.json
    assert (result["format"], result["trunk_format"], result["rounds"]) == ("q4", "q8", 1)
    assert result["peak_bytes"] > result["idle_bytes"] > 0
    assert result["copies_a_split"]["median"] > 0
    assert [goal["name"] for goal in result["goals"]] == ["mb_per_s", "peak_bytes"]
    assert list(temporary.glob("sawyer-bench-*")) == []
