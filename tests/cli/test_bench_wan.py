"""`sawyer bench wan` as a person runs it."""

from __future__ import annotations

import pytest

from sawyer.bench.lossy import why_not

from .conftest import processes_of

pytestmark = pytest.mark.usefixtures("temporary")


def test_bench_wan_tells_tokens_a_second_beside_the_bound(sawyer, temporary):
    done = sawyer("bench", "wan", "--quick", "--rtt-ms", "10", "--streams", "1,3", "--json")
    assert done.code == 0, done.err
    result = done.json
    assert result["bound_tokens_per_second"] == 50.0
    assert result["measured_rtt_ms"] >= result["rtt_ms"] == 10.0
    assert [(each["streams"], each["tokens"]) for each in result["streams"]] == [(1, 8), (3, 24)]
    assert all(each["tokens_per_second"] > 0 for each in result["streams"])
    assert result["streams"][0]["of_bound"] < 1
    repetitive, ordinary = result["speculation"]
    assert (repetitive["text"], ordinary["text"]) == ("repetitive", "ordinary")
    assert repetitive["accepted"] > ordinary["accepted"] == 0
    assert all(each["ratio"] > 0 for each in result["speculation"])
    assert all(each["tokens"] == 16 for each in result["speculation"])
    assert done.err == ""
    assert processes_of(temporary) == []
    assert list(temporary.glob("sawyer-bench-*")) == []


def test_bench_wan_with_loss_gives_the_same_texts_or_says_why_it_cannot(sawyer, temporary):
    done = sawyer("bench", "wan", "--quick", "--rtt-ms", "10", "--streams", "2", "--loss", "2", "--json")
    if why_not():
        assert (done.code, why_not() in done.err) == (2, True)
        return
    assert done.code == 0, done.err
    assert done.json["loss_percent"] == 2.0
    assert done.json["measured_rtt_ms"] >= 10.0
    assert [(each["streams"], each["tokens"]) for each in done.json["streams"]] == [(2, 16)]
    assert processes_of(temporary) == []


@pytest.mark.parametrize("streams", ["0", "1,,2", "x", "65", "-1", ""])
def test_number_of_streams_that_is_none_is_refused_before_anything_starts(sawyer, streams):
    done = sawyer("bench", "wan", f"--streams={streams},1")
    assert done.code == 2
    assert "is not a number of streams" in done.err
