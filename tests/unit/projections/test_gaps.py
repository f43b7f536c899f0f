"""Which receipts a node's row waits for, against the plain definition, and far beyond what that could count."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sawyer.projections import nodes
from sawyer.projections.nodes import MAX_GAPS, Gap, NodeRow
from sawyer.schemas.base import MAX_SAFE_INTEGER
from sawyer.schemas.events import NO_HASH, WorkReceipted


def receipt(counter: int) -> WorkReceipted:
    return WorkReceipted(
        network="sawyer-net/3f9a1c22", request="00" * 16, node="node-a", model="m", manifest="00" * 32, rows=1,
        blocks=1, experts=(), root="00" * 32, counter=counter, previous=f"{counter:064x}",
    )  # fmt: skip


def row() -> NodeRow:
    return NodeRow("bob", "U" + "A" * 55, "CPU", 1, 0, 1)


def receive_plainly(node: NodeRow, body: WorkReceipted, digest: str, limit: int) -> None:
    """Every skipped number is written down first, then what is too many is given up."""
    waiting = [*node.gaps, *(Gap(counter, "", "") for counter in range(node.counter + 1, body.counter))]
    skipped = body.counter - node.counter - 1
    if skipped:
        waiting[-skipped].previous, waiting[-1].digest = node.last_receipt, body.previous
    if len(waiting) > limit:
        node.given_up = waiting[-limit - 1].counter
    node.gaps = waiting[-limit:]
    node.counter, node.last_receipt = body.counter, digest


@given(st.lists(st.integers(1, 14), max_size=8), st.integers(1, 6))
def test_row_waits_for_what_the_plain_definition_waits_for(steps: list[int], limit: int) -> None:
    held, nodes.MAX_GAPS = nodes.MAX_GAPS, limit
    try:
        fast, plain, counter = row(), row(), 0
        for step in steps:
            counter += step
            fast.receive(receipt(counter), f"{counter:064d}")
            receive_plainly(plain, receipt(counter), f"{counter:064d}", limit)
            assert fast == plain
    finally:
        nodes.MAX_GAPS = held


def test_counter_far_ahead_costs_no_more_than_the_gaps_that_are_kept() -> None:
    """No book that was decided right has it; a follower that folds what it reads must not be filled up by it."""
    node = row()
    node.receive(receipt(3), "a" * 64)
    node.receive(receipt(MAX_SAFE_INTEGER), "b" * 64)
    assert [gap.counter for gap in node.gaps] == list(range(MAX_SAFE_INTEGER - MAX_GAPS, MAX_SAFE_INTEGER))
    assert (node.given_up, node.counter) == (MAX_SAFE_INTEGER - MAX_GAPS - 1, MAX_SAFE_INTEGER)
    assert (node.gaps[0].previous, node.gaps[-1].digest) == ("", f"{MAX_SAFE_INTEGER:064x}")
    assert NO_HASH not in [gap.previous for gap in node.gaps]
