"""The text for Prometheus: read back by a parser that takes nothing but the format."""

from __future__ import annotations

import re

import pytest

from sawyer.cli.metrics_text import exposition
from sawyer.errors import UsageError
from sawyer.schemas.histogram import Histogram, bucket_of, merged, quantile_us
from sawyer.schemas.metrics import LATENCY_BOUNDS_US, AskedLayer, AskedNode, Metrics, NodeMetrics, RouterMetrics

SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (\d+(?:\.\d+)?)')


def parse(text: str) -> dict[str, dict[str, float]]:
    """Samples by family and labels. Every family has HELP, then TYPE, then all of its samples, and comes once."""
    found: dict[str, dict[str, float]] = {}
    lines, family, kind = iter(text.splitlines()), "", ""
    assert text == "" or text.endswith("\n")
    for line in lines:
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
            name, kind = next(lines).removeprefix("# TYPE ").split(" ")
            assert name == family
            assert family not in found
            assert family.endswith("_total") == (kind == "counter")
            found[family] = {}
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample, line
        suffix = sample[1].removeprefix(family)
        assert suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",)), line
        key = f"{suffix}{sample[2] or ''}"
        assert key not in found[family], line
        found[family][key] = float(sample[3])
    return found


def told() -> list[Metrics]:
    took = Histogram()
    for took_us in (10, 100, 5_000_000, 20_000_000):
        took.add(took_us)
    node = AskedNode(
        node="node-1", messages=5, rows=7, bytes_out=100, bytes_in=90, hedges=1, takeovers=2,
        errors={"deadline": 3}, latency=took.told(),
    )  # fmt: skip
    layer = AskedLayer(layer=4, rows=(7, 0), messages=(5, 0), sum_us=(1_500_000, 0), takeovers=(2, 0))
    router = RouterMetrics(
        router="router-1", model="austen", manifest="ab" * 32, started_ms=1, passes=3, steps_waiting=0,
        late_answers=0, nodes=(node,), layers=(layer,),
    )  # fmt: skip
    serving = NodeMetrics(
        node="node-1", model="austen", started_ms=1, queue=0, answers=5, rows=7, runs=6, joined_runs=1, bytes_in=100,
        bytes_out=90, compute_us=2_500, refusals={"busy": 2}, latency=took.told(),
    )  # fmt: skip
    return [Metrics(m=router), Metrics(m=serving)]


def test_page_is_valid_and_holds_every_counter():
    page = parse(exposition([], told()))
    of = 'router="router-1",model="austen"'
    assert page["sawyer_node_errors_total"] == {f'{of},node="node-1",reason="deadline"': 3}
    assert page["sawyer_expert_rows_total"] == {f'{of},layer="4",expert="0"': 7}, "expert 1 was asked nothing"
    assert page["sawyer_expert_answer_seconds_total"] == {f'{of},layer="4",expert="0"': 1.5}
    assert page["sawyer_serving_compute_seconds_total"] == {'node="node-1",model="austen"': 0.0025}
    buckets = [count for name, count in page["sawyer_node_answer_seconds"].items() if name.startswith("_bucket")]
    assert buckets == sorted(buckets)
    assert (buckets[0], buckets[-1], len(buckets)) == (1, 4, len(LATENCY_BOUNDS_US) + 1)


def test_nothing_told_is_an_empty_page():
    assert exposition([], []) == ""


@pytest.mark.parametrize("bound", range(len(LATENCY_BOUNDS_US)))
def test_bound_belongs_to_its_bucket_and_one_more_to_the_next(bound):
    assert bucket_of(LATENCY_BOUNDS_US[bound]) == bound
    assert bucket_of(LATENCY_BOUNDS_US[bound] + 1) == bound + 1


def test_histograms_add_up_and_tell_quantiles():
    one, other = Histogram(), Histogram()
    one.add(0)
    one.add(60)
    other.add(1000)
    both = merged([one.told(), other.told()])
    assert (sum(both.counts), both.sum_us) == (3, 1060)
    assert quantile_us(both, 0.5) <= 64
    assert 512 < quantile_us(both, 0.99) <= 1024
    assert quantile_us(Histogram().told(), 0.5) == 0


async def test_taken_port_is_said_to_be_taken():
    from sawyer.bus.memory import MemoryBus, MemoryNetwork
    from sawyer.cli.metrics import start_server

    bus = MemoryBus(MemoryNetwork())
    async with await start_server(bus, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UsageError, match="taken by another program"):
            await start_server(bus, "127.0.0.1", port)
