"""What a running network counts of itself, and what it tells of one request."""

from __future__ import annotations

import asyncio
import logging

import pytest

from sawyer.bus.calls import ask, survey
from sawyer.cli import metrics
from sawyer.cli.metrics_text import nodes_of, routers_of
from sawyer.cli.top import look
from sawyer.cli.top_view import Look, expert_lines, node_lines
from sawyer.errors import UnknownRequest
from sawyer.model.catalog import DEMO_MODEL
from sawyer.schemas.metrics import Metrics
from sawyer.schemas.traces import RequestTrace, TraceQuery


@pytest.fixture
async def served(founded):
    await founded.add_node("node-1", 0, 2)
    await founded.add_node("node-2", 1, 2)
    await founded.add_router()
    return founded


async def generate(network, tokens: int = 6) -> str:
    """The id of a request that is over."""
    async with network.client() as client, client.stream("It was a", model=DEMO_MODEL, max_tokens=tokens) as stream:
        assert [piece async for piece in stream]
        return stream.request


async def test_routers_and_nodes_count_the_same_rows_after_a_request(served):
    await generate(served)
    told = await survey(served.bus, "metrics", Metrics)
    (router,) = routers_of(told)
    assert {each.node for each in router.nodes} == {each.node for each in nodes_of(told)} == {"node-1", "node-2"}
    own = {each.node: each for each in nodes_of(told)}
    for each in router.nodes:
        assert each.messages == own[each.node].answers == sum(each.latency.counts) == sum(own[each.node].latency.counts)
        assert each.rows == own[each.node].rows
        assert each.bytes_out == own[each.node].bytes_in
        assert each.bytes_in == own[each.node].bytes_out
        assert each.errors == {}
    assert sum(sum(layer.rows) for layer in router.layers) == sum(each.rows for each in router.nodes)
    assert router.passes >= 1


async def test_trace_says_where_the_time_of_a_request_went(served):
    request = await generate(served)
    trace = await ask(served.bus, "trace", RequestTrace, TraceQuery(request=request))
    assert (trace.request, trace.state, trace.router) == (request, "completed", "router-1")
    assert [each.layer for each in trace.layers] == list(served.artifacts.layout.moe_layers)
    assert sum(each.rows for each in trace.layers) == sum(each.rows for each in trace.nodes)
    assert {each.node for each in trace.nodes} == {"node-1", "node-2"}
    assert all(each.attend_us + each.experts_us > 0 and each.slowest for each in trace.layers)
    within = sum(each.attend_us + each.experts_us for each in trace.layers) + trace.head_us + trace.sample_us
    assert within <= trace.prefill_us + trace.decode_us
    assert min(trace.reserve_us, trace.prefill_us, trace.receipts_us, trace.posting_us) > 0


async def test_trace_of_an_unknown_request_is_refused(served):
    with pytest.raises(UnknownRequest, match="remembers no request"):
        await ask(served.bus, "trace", RequestTrace, TraceQuery(request="ab" * 16))


async def test_top_counts_what_lies_between_two_looks(served):
    before = await look(served.bus)
    await generate(served)
    now = await look(served.bus)
    lines = node_lines(before, now)
    assert [(each.node, each.state) for each in lines] == [("node-1", "ok"), ("node-2", "ok")]
    assert all(each.rows_per_second > 0 and 0 < each.p50_us <= each.p99_us for each in lines)
    assert expert_lines(before, now)
    assert expert_lines(now, now) == expert_lines(Look(0.0), now)


async def test_page_is_served_over_http_until_closed(served):
    await generate(served)
    server = await metrics.start_server(served.bus, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        head, body = await fetch(port, "GET /metrics HTTP/1.1")
        assert head.startswith("HTTP/1.1 200 ")
        assert "Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
        assert 'sawyer_router_requests_total{router="router-1",model="austen-8m",outcome="completed"} 1\n' in body
        assert (await fetch(port, "GET / HTTP/1.1"))[0].startswith("HTTP/1.1 404 ")
        assert (await fetch(port, "POST /metrics HTTP/1.1"))[0].startswith("HTTP/1.1 405 ")


async def fetch(port: int, line: str) -> tuple[str, str]:
    """Head and body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{line}\r\nHost: x\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return head, body


async def test_logs_of_router_nodes_and_bookkeeper_name_the_request(network, caplog):
    with caplog.at_level(logging.INFO, logger="sawyer"):
        async with network.client() as client:
            answer = await client.generate("It was a", model=network.model, max_tokens=4)
    told = {(each.name, each.getMessage()) for each in caplog.records if getattr(each, "request", "") == answer.request}
    parts = {name.split(".")[1] for name, _ in told}
    assert parts == {"router", "node", "bookkeeper"}
    assert ("sawyer.bookkeeper.service", f"inference.completed.v1: entry {answer.usage.entry}") in told
