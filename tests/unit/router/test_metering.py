"""What was used of each node, and the receipts that are refused because they say anything else."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.errors import BadSignature, VerificationError
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.ids import NodeId
from sawyer.ledger.merkle import leaf_hash, tree_root
from sawyer.router.metering import CALLS_TIMED, CallTimes, Meter, runs
from sawyer.schemas.events import NO_HASH, RECEIPT_KIND, NodeLatency, NodeRows, WorkReceipted
from sawyer.schemas.messages import Finish
from sawyer.schemas.signed import Signed

NODE, REQUEST, MODEL, MANIFEST = NodeId("node-a"), "0f" * 16, "austen", "ab" * 32
LEAVES = tuple(leaf_hash(bytes([number])) for number in range(4))

Receipt = Callable[..., Signed[WorkReceipted]]


@pytest.fixture
def meter() -> Meter:
    """node-a: answers 1 and 3, used out of order; node-b: one answer."""
    made = Meter(REQUEST, MODEL)
    made.used(NODE, 3, LEAVES[2:4], 5)
    made.used(NODE, 1, LEAVES[0:2], 4)
    made.used(NodeId("node-b"), 1, LEAVES[:1], 2)
    return made


@pytest.fixture
def receipt(keys: dict[str, Key]) -> Receipt:
    """The honest receipt of node-a, or one that differs."""

    def make(by: str = "node-a", **changes: Any) -> Signed[WorkReceipted]:
        made = WorkReceipted(
            network="sawyer-net/3f9a1c22", node=NODE, request=REQUEST, model=MODEL, manifest=MANIFEST, rows=9, blocks=4,
            experts=((0, 0, 9),), root=tree_root(list(LEAVES)).hex(), counter=1, previous=NO_HASH,
        )  # fmt: skip
        return sign(made.changed(**changes), RECEIPT_KIND, NODE, keys[by])

    return make


@given(st.sets(st.integers(1, 60)))
def test_runs_hold_exactly_these_numbers_in_as_few_pieces_as_can_be(numbers: set[int]) -> None:
    made = runs(sorted(numbers))
    assert [number for start, end in made for number in range(start, end + 1)] == sorted(numbers)
    assert all(end + 1 < start for (_, end), (start, _) in itertools.pairwise(made))


@pytest.mark.parametrize(
    ("numbers", "expected"), [([], []), ([4], [(4, 4)]), ([1, 2, 3, 7], [(1, 3), (7, 7)]), ([1, 3], [(1, 1), (3, 3)])]
)
def test_runs_by_example(numbers: list[int], expected: list[tuple[int, int]]) -> None:
    assert runs(numbers) == expected


def test_rows_of_a_node_are_those_of_its_used_answers(meter: Meter) -> None:
    assert {node: each.rows for node, each in meter.nodes.items()} == {"node-a": 9, "node-b": 2}


def test_root_is_over_the_leaves_in_order_of_sequence(meter: Meter) -> None:
    assert meter.nodes[NODE].root() == tree_root(list(LEAVES)).hex()


def test_finish_names_the_used_answers_and_none_for_a_node_that_was_only_asked(meter: Meter) -> None:
    assert meter.finish(NODE) == Finish(request=REQUEST, model=MODEL, used=((1, 1), (3, 3)))
    assert meter.finish(NodeId("node-c")).used == ()
    assert "node-c" not in meter.nodes


def test_honest_receipt_is_taken(meter: Meter, receipt: Receipt, keys: dict[str, Key]) -> None:
    meter.check(receipt(), NODE, keys["node-a"].id, MANIFEST)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("node", "node-b"),
        ("request", "1f" * 16),
        ("model", "mixtral-8x7b"),
        ("manifest", "cd" * 32),
        ("rows", 10),
        ("rows", 8),
        ("root", tree_root(list(LEAVES[:3])).hex()),
        ("root", tree_root([LEAVES[2], LEAVES[3], LEAVES[0], LEAVES[1]]).hex()),
    ],
)
def test_receipt_over_anything_else_is_refused(
    meter: Meter, receipt: Receipt, keys: dict[str, Key], field: str, value: object
) -> None:
    with pytest.raises(VerificationError, match="does not match what was used"):
        meter.check(receipt(**{field: value}), NODE, keys["node-a"].id, MANIFEST)


def test_receipt_by_another_key_is_refused(meter: Meter, receipt: Receipt, keys: dict[str, Key]) -> None:
    with pytest.raises(VerificationError, match=keys["mallory"].id):
        meter.check(receipt(by="mallory"), NODE, keys["node-a"].id, MANIFEST)


def test_receipt_that_claims_the_right_key_without_its_signature_is_refused(
    meter: Meter, receipt: Receipt, keys: dict[str, Key]
) -> None:
    forged = receipt(by="mallory")
    claim = forged.signature.changed(key_id=keys["node-a"].id)
    with pytest.raises(BadSignature):
        meter.check(forged.changed(signature=claim), NODE, keys["node-a"].id, MANIFEST)


def test_signature_over_another_kind_of_statement_is_refused(
    meter: Meter, receipt: Receipt, keys: dict[str, Key]
) -> None:
    other = sign(receipt().body, "node.beat.v1", NODE, keys["node-a"])
    with pytest.raises(BadSignature):
        meter.check(other, NODE, keys["node-a"].id, MANIFEST)


def test_unreceipted_lists_the_rows_of_every_node_without_a_receipt(meter: Meter) -> None:
    both = (NodeRows(node="node-a", rows=9), NodeRows(node="node-b", rows=2))
    assert meter.unreceipted([]) == both
    assert meter.unreceipted([NODE]) == both[1:]
    assert meter.unreceipted([NODE, NodeId("node-b")]) == ()


# --- how long calls took ----------------------------------------------------------------------------------------------


def timed(*took_us: int) -> CallTimes:
    made = CallTimes()
    for each in took_us:
        made.add(each)
    return made


@pytest.mark.parametrize(
    ("took_us", "p95_us"),
    [((7,), 7), (range(1, 21), 19), (range(1, 101), 95), (range(100, 0, -1), 95), ((1, 9), 9), ((0,), 1)],
)
def test_p95_is_the_nearest_rank_and_at_least_a_microsecond(took_us: Iterable[int], p95_us: int) -> None:
    assert timed(*took_us).p95_us() == p95_us


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=200))
def test_p95_is_a_time_that_95_percent_of_the_calls_did_not_exceed_and_no_smaller_one_is(took_us: list[int]) -> None:
    p95_us = timed(*took_us).p95_us()
    assert sum(each <= p95_us for each in took_us) * 100 >= 95 * len(took_us)
    assert sum(each < p95_us for each in took_us) * 100 < 95 * len(took_us)


def test_times_of_a_long_request_are_kept_evenly_spaced_in_bounded_memory() -> None:
    many = timed(*range(1, 5 * CALLS_TIMED + 1))
    assert len(many._kept) <= CALLS_TIMED
    assert abs(many.p95_us() - 0.95 * 5 * CALLS_TIMED) < 0.001 * 5 * CALLS_TIMED


def test_latencies_are_told_for_the_nodes_that_are_asked_about_in_their_order(meter: Meter) -> None:
    other = NodeId("node-b")
    for node, took_us in ((other, 30), (NODE, 10), (NODE, 20)):
        meter.timed(node, took_us)
    assert meter.latencies([NODE, other]) == (NodeLatency(node=NODE, p95_us=20), NodeLatency(node=other, p95_us=30))
    assert meter.latencies([]) == ()
