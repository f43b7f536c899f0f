"""Which replica answers: the first choice, unless it failed, fell silent, or another is much faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.ids import HostId, NodeId
from sawyer.router import placement as rules
from sawyer.router.placement import (
    DEADLINE_FLOOR_S,
    DEADLINE_MOST_S,
    DEADLINE_UNMEASURED_S,
    FIRST_BACKOFF_S,
    FRESH_S,
    MAX_BACKOFF_S,
    UNMEASURED_US,
    NodeState,
    Placement,
)

LAYER, NOBODY = 2, frozenset[NodeId]()
A, B = NodeId("node-a"), NodeId("node-b")
START_S = 1000.0


@pytest.fixture
def placement(tools: Any) -> Placement:
    """node-a is first choice for experts 0 and 1, node-b for 2; each is replica for the other's."""
    made = Placement("ab" * 32)
    for node, first, replica in ((A, (0, 1), (2,)), (B, (2,), (0, 1))):
        made.member(tools.registered(node, "U" + "A" * 55))
        made.beat(tools.heartbeat(node, first, replica), START_S)
    return made


def choose(placement: Placement, expert: int, at_s: float = START_S, tried: frozenset[NodeId] = NOBODY) -> str | None:
    return placement.choose(LAYER, expert, tried, at_s)


def test_first_choice_is_preferred(placement: Placement) -> None:
    assert [choose(placement, expert) for expert in (0, 1, 2)] == [A, A, B]


def test_expert_or_layer_that_nobody_serves_has_no_node(placement: Placement) -> None:
    assert choose(placement, 3) is None
    assert placement.choose(LAYER + 1, 0, NOBODY, START_S) is None


def test_tried_nodes_are_not_chosen_again(placement: Placement) -> None:
    assert choose(placement, 0, tried=frozenset({A})) == B
    assert choose(placement, 0, tried=frozenset({A, B})) is None


def test_equal_nodes_are_chosen_by_name(tools: Any) -> None:
    made = Placement("ab" * 32)
    for node in ("node-c", "node-a", "node-b"):
        made.member(tools.registered(node, "U" + "A" * 55))
        made.beat(tools.heartbeat(node, (0,)), START_S)
    assert choose(made, 0) == A


def test_much_faster_replica_wins_and_a_little_faster_one_does_not(placement: Placement) -> None:
    for _ in range(100):
        placement.nodes[A].answered(2000, START_S)
        placement.nodes[B].answered(1500, START_S)
    assert choose(placement, 0) == A
    for _ in range(100):
        placement.nodes[B].answered(500, START_S)
    assert choose(placement, 0) == B
    assert choose(placement, 2) == B


def test_estimate_that_is_not_renewed_ages_and_the_slow_node_is_tried_again(placement: Placement) -> None:
    for _ in range(200):
        placement.nodes[A].answered(500_000, START_S)
    assert choose(placement, 0) == B
    later_s = START_S + 600
    for node in placement.nodes.values():
        node.last_beat_s = later_s
    assert placement.nodes[A].expected_us(later_s) == pytest.approx(UNMEASURED_US, rel=0.01)
    assert choose(placement, 0, later_s) == A


def test_one_outlier_moves_the_estimate_by_a_bounded_step(placement: Placement) -> None:
    node = placement.nodes[A]
    node.answered(60_000_000, START_S)
    bound = UNMEASURED_US * (1 + rules.EWMA_WEIGHT * (rules.OUTLIER_FACTOR - 1))
    assert node.expected_us(START_S) == pytest.approx(bound)


def test_failed_node_is_avoided_and_then_tried_again(placement: Placement) -> None:
    placement.nodes[A].failed(START_S, gone=False)
    assert choose(placement, 0, START_S + FIRST_BACKOFF_S * 0.99) == B
    assert choose(placement, 0, START_S + FIRST_BACKOFF_S) == A


def test_avoided_node_is_better_than_none(placement: Placement) -> None:
    placement.nodes[A].failed(START_S, gone=False)
    assert choose(placement, 0, tried=frozenset({B})) == A


def test_back_off_doubles_to_its_most_and_a_good_answer_ends_it(placement: Placement) -> None:
    node, waits = placement.nodes[A], []
    for _ in range(8):
        node.failed(START_S, gone=False)
        waits.append(node.avoid_until_s - START_S)
    assert waits == [min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2**n) for n in range(8)]
    assert waits[-1] == MAX_BACKOFF_S
    node.answered(1000, START_S)
    assert choose(placement, 0) == A
    node.failed(START_S, gone=False)
    assert node.avoid_until_s - START_S == FIRST_BACKOFF_S


def test_gone_node_is_never_chosen_until_it_beats_again(placement: Placement, tools: Any) -> None:
    placement.nodes[A].failed(START_S, gone=True)
    assert choose(placement, 0, START_S + 3600) == B
    assert choose(placement, 0, tried=frozenset({B})) is None
    placement.nodes[A].failed(START_S, gone=False)
    assert choose(placement, 0, tried=frozenset({B})) is None, "a later failure of another kind does not bring it back"
    placement.beat(tools.heartbeat(A, (0, 1), (2,), beat=2), START_S + 60)
    assert choose(placement, 0, START_S + 60, tried=frozenset({B})) == A


def test_draining_node_is_not_chosen(placement: Placement, tools: Any) -> None:
    placement.beat(tools.heartbeat(A, (0, 1), (2,), beat=2, draining=True), START_S)
    assert choose(placement, 0) == B
    assert choose(placement, 0, tried=frozenset({B})) is None


def test_node_without_a_fresh_beat_is_chosen_only_when_no_other_is_left(placement: Placement, tools: Any) -> None:
    late_s = START_S + FRESH_S + 0.1
    placement.beat(tools.heartbeat(B, (2,), (0, 1), beat=2), late_s)
    assert choose(placement, 0, START_S + FRESH_S) == A
    assert choose(placement, 0, late_s) == B
    assert choose(placement, 0, late_s, tried=frozenset({B})) == A


@pytest.mark.parametrize(("at_ms", "beat"), [(9, 9), (10, 5), (10, 4), (1, 99)])
def test_old_or_repeated_beat_changes_nothing(placement: Placement, tools: Any, at_ms: int, beat: int) -> None:
    placement.beat(tools.heartbeat(A, (0,), at_ms=10, beat=5), START_S + 1)
    placement.beat(tools.heartbeat(A, (7,), at_ms=at_ms, beat=beat, draining=True), START_S + 2)
    state = placement.nodes[A]
    assert (state.draining, state.last_beat_s) == (False, START_S + 1)
    assert (choose(placement, 0), choose(placement, 7)) == (A, None)


@pytest.mark.parametrize(("at_ms", "beat"), [(10, 6), (11, 1)])
def test_newer_beat_counts_also_after_a_restart_of_its_node(
    placement: Placement, tools: Any, at_ms: int, beat: int
) -> None:
    placement.beat(tools.heartbeat(A, (0,), at_ms=10, beat=5), START_S)
    placement.beat(tools.heartbeat(A, (7,), at_ms=at_ms, beat=beat), START_S)
    assert (choose(placement, 7), choose(placement, 0)) == (A, B)


def test_node_with_other_weights_serves_nothing(placement: Placement, tools: Any) -> None:
    placement.beat(tools.heartbeat(A, (0, 1), (2,), beat=2, manifest="cd" * 32), START_S)
    assert choose(placement, 0) == B


def test_member_that_is_known_keeps_what_was_measured_and_takes_its_new_key(placement: Placement, tools: Any) -> None:
    placement.nodes[A].failed(START_S, gone=True)
    placement.member(tools.registered(A, "U" + "B" * 55))
    assert (placement.nodes[A].gone, placement.nodes[A].key) == (True, "U" + "B" * 55)


def test_missing_names_every_pair_that_no_live_node_serves(placement: Placement, tools: Any) -> None:
    assert placement.missing((LAYER,), 3) == []
    assert placement.missing((LAYER, LAYER + 1), 4) == [(2, 3), (3, 0), (3, 1), (3, 2), (3, 3)]
    placement.nodes[A].failed(START_S, gone=True)
    assert placement.missing((LAYER,), 3) == []
    placement.beat(tools.heartbeat(B, (2,), (0, 1), beat=2, draining=True), START_S)
    assert placement.missing((LAYER,), 3) == [(2, 0), (2, 1), (2, 2)]


@pytest.fixture
def node() -> NodeState:
    return NodeState(A, HostId("bob"), "key")


def test_deadline_of_an_unmeasured_node_is_long(node: NodeState) -> None:
    assert node.deadline_s(1) == node.deadline_s(10_000) == DEADLINE_UNMEASURED_S


@given(latencies_us=st.lists(st.floats(1, 1e9), min_size=1, max_size=100), rows=st.integers(1, 65_536))
def test_deadline_stays_in_its_bounds_and_grows_with_the_rows(latencies_us: list[float], rows: int) -> None:
    state = NodeState(A, HostId("bob"), "key")
    for each in latencies_us:
        state.answered(each, START_S)
    assert DEADLINE_FLOOR_S <= state.deadline_s(rows) <= DEADLINE_MOST_S
    assert state.deadline_s(rows) <= state.deadline_s(rows + 1)


def test_deadline_follows_the_slow_tail_of_the_last_answers(node: NodeState, tail: Callable[[int], None]) -> None:
    tail(0)
    assert node.deadline_s(64) == pytest.approx(2 * DEADLINE_FLOOR_S)
    tail(8)
    assert node.deadline_s(64) == pytest.approx(2 * rules.DEADLINE_FACTOR * 0.1)


def test_node_that_was_not_measured_is_hedged_as_the_slowest_that_was(placement: Placement, tools: Any) -> None:
    third = NodeId("node-c")
    placement.member(tools.registered(third, "U" + "A" * 55))
    a, b, c = (placement.nodes[name] for name in (A, B, third))
    assert placement.hedge_s(A, 1) == rules.HEDGE_UNMEASURED_S
    b.answered(20_000, START_S)
    c.answered(40_000, START_S)
    slow = placement.hedge_s(third, 1)
    assert placement.hedge_s(A, 1) == slow == pytest.approx(rules.HEDGE_FACTOR * 0.04 * (1 + 1 / rules.ROWS_A_DEADLINE))
    assert placement.hedge_s(B, 1) < slow
    for _ in range(rules.WINDOW):
        c.answered(9e6, START_S)
    assert placement.hedge_s(A, 1) == rules.HEDGE_UNMEASURED_S < placement.hedge_s(third, 1)
    a.answered(1000, START_S)
    assert placement.hedge_s(A, 0) == rules.HEDGE_FLOOR_S


@pytest.fixture
def tail(node: NodeState) -> Callable[[int], None]:
    """A full window of 1 ms answers, with so many of 100 ms."""

    def fill(slow: int) -> None:
        for number in range(rules.WINDOW):
            node.answered(100_000 if number < slow else 1000, START_S)

    return fill
