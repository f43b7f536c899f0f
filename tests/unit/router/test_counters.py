"""What a router counts of nodes and experts, and what it remembers of requests: both within bounds."""

from __future__ import annotations

from sawyer.ids import NodeId, RequestId
from sawyer.router.counters import MAX_REASONS, OTHER, Counters
from sawyer.router.times import MAX_TRACES, RequestTimes, Traces

NODE = NodeId("node-1")


def test_node_that_names_ever_new_errors_is_told_apart_up_to_a_bound():
    counters = Counters()
    for number in range(3 * MAX_REASONS):
        counters.lost(NODE, f"reason-{number}")
    counters.lost(NODE, "reason-0")
    (node,) = counters.nodes()
    assert len(node.errors) == MAX_REASONS + 1
    assert (node.errors["reason-0"], node.errors[OTHER]) == (2, 2 * MAX_REASONS)


def test_experts_stand_by_their_numbers_whether_asked_or_not():
    counters = Counters()
    counters.used(NODE, 3, [(1, 4), (2, 1)], 500)
    counters.taken_over(NodeId("node-2"), 3, 0)
    (layer,) = counters.layers([3], 4)
    assert (layer.rows, layer.messages, layer.sum_us) == ((0, 4, 1, 0), (0, 1, 1, 0), (0, 500, 500, 0))
    assert layer.takeovers == (1, 0, 0, 0)


def test_oldest_request_is_forgotten_first():
    traces = Traces()
    ids = [RequestId(f"{number:032x}") for number in range(MAX_TRACES + 1)]
    for each in ids:
        traces.keep(each, RequestTimes())
    assert traces.find(ids[0]) is None
    assert traces.find(ids[1]) is not None


def test_slowest_answer_of_a_layer_is_named():
    times = RequestTimes()
    times.answered(2, NODE, 3, 900, 400)
    times.answered(2, NodeId("node-2"), 1, 700, 600)
    told = times.told(RequestId("ab" * 16), "router-1", "austen")
    assert [(each.slowest, each.slowest_us, each.rows, each.messages) for each in told.layers] == [(NODE, 900, 4, 2)]
    assert [(each.node, each.compute_us) for each in told.nodes] == [("node-1", 400), ("node-2", 600)]
