"""The page of `sawyer status`: what is said of nodes, and what is called a problem."""

from __future__ import annotations

import pytest

from sawyer.cli.status_view import (
    NetworkStatus,
    as_document,
    find_problems,
    merged_nodes,
    node_sections,
    node_state,
    sections,
    tokens_per_second,
)
from sawyer.cli.supervisor import PartStatus
from sawyer.ids import NodeId
from sawyer.router.counters import Counters
from sawyer.schemas.messages import RouterReply, SeenNode, Vitals
from sawyer.schemas.metrics import RouterMetrics

VITALS = Vitals(
    version="test", provider="CPUExecutionProvider", device="AMD", threads=2, memory_total_mb=1000, memory_free_mb=500,
    loaded=32, loads=40, drops=8, queue=1, answers=10, refused=0, rows=1234, runs=20, latency_p50_us=1500,
    latency_p95_us=2500, rows_per_second=99, round_trip_us=0, kilobytes_per_second=0,
)  # fmt: skip


def seen(node: str = "node-1", **changes: object) -> SeenNode:
    made = SeenNode(
        node=node, host="maria", first=16, replica=16, expected_us=2000, draining=False, avoided=False, gone=False,
        silent_ms=100, vitals=VITALS,
    )  # fmt: skip
    return made.model_copy(update=changes)


def router(name: str = "router-1", *nodes: SeenNode, **changes: object) -> RouterReply:
    made = RouterReply(
        router=name, model="austen", manifest="ab" * 32, version="test", started_ms=1, experts=32, missing=0, running=1,
        waiting=0, completed=5, failed=0, refused=0, output_tokens=640, recent_tokens=50, recent_ms=500, nodes=nodes,
    )  # fmt: skip
    return made.model_copy(update=changes)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "ok"),
        ({"avoided": True}, "avoided"),
        ({"draining": True}, "draining"),
        ({"silent_ms": 5000}, "silent for 5 s"),
        ({"gone": True, "silent_ms": 9000, "draining": True}, "gone"),
    ],
)
def test_state_of_a_node_is_its_worst_trouble(changes: dict[str, object], word: str) -> None:
    assert node_state(seen(**changes)) == word


def test_node_that_two_routers_know_is_shown_once_by_who_heard_it_last() -> None:
    found = merged_nodes([router("a", seen(silent_ms=900, avoided=True)), router("b", seen(silent_ms=10))])
    assert [(each.node, each.silent_ms) for each in found] == [("node-1", 10)]


def test_speed_is_over_the_last_seconds_and_zero_when_idle() -> None:
    assert tokens_per_second(router()) == 100.0
    assert tokens_per_second(router(recent_tokens=0, recent_ms=0)) == 0.0


def test_missing_experts_and_unserved_models_are_problems(event_examples: dict[str, object]) -> None:
    told = type("Told", (), {"models": (event_examples["model.published.v1"],)})()
    assert find_problems((), None, [router(missing=3)]) == ["austen: 3 of 32 experts are served by no node"]
    assert find_problems((), told, [router(model="other")]) == ["no router serves austen"]
    assert find_problems((), told, [router()]) == []


def test_part_that_does_not_run_and_own_node_that_is_not_heard_are_problems() -> None:
    parts = [PartStatus("node-1", "running", 7), PartStatus("router-1", "waiting", 0, 2, "router-1 ended by signal 9")]
    others = router("router-1", seen(silent_ms=60), seen("attic", gone=True))
    assert find_problems(parts, None, [others]) == ["router-1 is waiting (router-1 ended by signal 9)"]
    silent = router("router-1", seen(silent_ms=9000))
    assert find_problems(parts[:1], None, [silent]) == ["node-1 is silent for 9 s"]


def test_page_names_processes_routers_nodes_and_what_is_wrong() -> None:
    part = PartStatus("router-1", "waiting", 0, 2, "router-1 ended by signal 9")
    status = NetworkStatus(
        "nats://x:1", "/home", 7, (part,), None, (router("router-1", seen()),), (), ("no bookkeeper",)
    )
    page = sections(status)
    assert [each.title for each in page] == ["", "Processes", "Routers", "Nodes", "Not well"]
    assert ("router-1", "waiting", "-", 2, "router-1 ended by signal 9") in page[1].rows
    assert page[3].rows[0][:4] == ("node-1", "maria", "CPU", "16+16")
    assert page[4].lines == ("no bookkeeper",)


def test_one_node_is_told_with_all_its_vitals() -> None:
    status = NetworkStatus("nats://x:1", "/home", routers=(router("router-1", seen()),))
    [section] = node_sections(status, "node-1")
    text = "\n".join(section.lines)
    assert "1,234 rows in 20 runs" in text
    assert "32 experts; 40 loaded and 8 dropped since the start" in text
    assert "not measured yet" in text
    assert node_sections(status, "node-9") == []


def test_one_node_is_told_with_what_its_router_counted() -> None:
    counters = Counters()
    node = NodeId("node-1")
    counters.sent(node, 2_000_000, hedge=True)
    counters.lost(node, "deadline")
    counters.taken_over(node, 0, 1)
    counted = RouterMetrics(
        router="router-1", model=router().model, manifest="0f" * 32, started_ms=1, passes=1, steps_waiting=0,
        late_answers=0, nodes=counters.nodes(), layers=(),
    )  # fmt: skip
    status = NetworkStatus("nats://x:1", "/home", routers=(router("router-1", seen()),), counted=(counted,))
    [section] = node_sections(status, "node-1")
    lines = [" ".join(line.split()) for line in section.lines]
    assert lines[-5:] == [
        "asked 1 messages, 0 rows used", "bytes 2.0 MB there, 0.0 MB back", "beside slow ones 1 hedges",
        "taken over 1 times by others", "errors 1 deadline",
    ]  # fmt: skip
    assert as_document(status)["counters"][0]["nodes"][0]["hedges"] == 1  # type: ignore[index]


def test_document_says_whether_all_is_well() -> None:
    status = NetworkStatus("nats://x:1", "/home", routers=(router(),), problems=("no bookkeeper answers",))
    document = as_document(status)
    assert document["ok"] is False
    assert document["problems"] == ["no bookkeeper answers"]
    assert document["routers"][0]["tokens_per_second"] == 100.0  # type: ignore[index]
