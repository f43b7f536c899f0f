"""`sawyer bench chaos` as a person runs it, and as an impatient one ends it."""

from __future__ import annotations

import signal

import pytest

from .conftest import processes_of, wait_until

pytestmark = pytest.mark.usefixtures("temporary")


def test_bench_chaos_loses_and_changes_nothing_and_the_book_is_right(sawyer, temporary):
    done = sawyer("bench", "chaos", "--quick", "--streams", "2", "--seed", "5", "--json")
    result = done.json
    assert (result["failed"], result["changed"], result["wrong"]) == (0, 0, [])
    assert done.code == 0, done.err
    assert result["faults"] == {"kill_node": 1, "freeze_node": 1, "slow_node": 1, "kill_bookkeeper": 1, "kill_nats": 1}
    assert result["replay"]["ok"]
    assert result["replay"]["wrong_debits"] == 0
    assert result["replay"]["debits"] == result["requests"] > 0
    assert result["stall_ms"]["max"] >= result["stall_ms"]["p99"] >= result["stall_ms"]["p50"] > 0
    assert set(result["stall_ms"]["by_kind"]) == {"none", *result["faults"]}
    assert (result["seed"], result["streams"], result["nodes"]) == (5, 2, 2)
    assert done.err == ""
    assert processes_of(temporary) == []
    assert list(temporary.glob("sawyer-bench-*")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_chaos_ends_its_processes_and_removes_its_home(started, temporary, number):
    process = started("bench", "chaos", "--quick")
    wait_until(lambda: any("node-2" in line for line in processes_of(temporary)), "the nodes of the benchmark")
    process.send_signal(number)
    assert process.wait(60) == 130
    assert processes_of(temporary) == []
    assert list(temporary.glob("sawyer-bench-*")) == []
