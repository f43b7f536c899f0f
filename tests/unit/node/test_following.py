"""A node that chose its experts itself follows the demand: one move at a time, and only where it helps."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from sawyer.node import following
from sawyer.node.choosing import Pair, Served
from sawyer.node.following import Follower, Move, move
from sawyer.node.hosting import with_replica
from sawyer.schemas.messages import HostedLayer

HOT, WARM, COLD, OTHER = (0, 0), (0, 1), (0, 2), (0, 3)
DEMAND = {HOT: 9000, WARM: 2000, COLD: 100, OTHER: 1000}


def by(nodes: int) -> Served:
    return Served(frozenset({f"host-{n}" for n in range(nodes)}), nodes, 1)


SERVED = {HOT: by(1), WARM: by(2), COLD: by(3), OTHER: by(2)}


def test_hottest_expert_that_is_not_here_is_taken_on_where_there_is_room() -> None:
    assert move(DEMAND, SERVED, {COLD, WARM}, 1) == Move(HOT)


def test_coldest_expert_that_enough_others_serve_is_given_up_where_there_is_none() -> None:
    assert move(DEMAND, SERVED, {COLD, WARM}, 0) == Move(HOT, COLD)


@pytest.mark.parametrize(
    ("demand", "served", "mine"),
    [
        (DEMAND, SERVED, {HOT, COLD}),  # it is here already
        (DEMAND, {**SERVED, COLD: by(2)}, {COLD, WARM}),  # nobody can be spared
        (DEMAND, {**SERVED, HOT: by(9)}, {COLD, WARM}),  # its nodes can share it
        ({pair: rows // 100 for pair, rows in DEMAND.items()}, SERVED, {COLD, WARM}),  # too few to tell
        ({}, SERVED, {COLD}),
        (DEMAND, {}, {COLD}),
    ],
)
def test_nothing_is_moved_where_it_would_not_help(
    demand: Mapping[Pair, int], served: Mapping[Pair, Served], mine: set[Pair]
) -> None:
    assert move(demand, served, mine, 0) is None


class Node:
    """Counters that grow, and what was done."""

    def __init__(self) -> None:
        self.rows = dict.fromkeys(DEMAND, 0)
        self.done: list[tuple[str, Pair]] = []

    async def demand(self) -> Mapping[Pair, int]:
        return dict(self.rows)

    async def served(self) -> Mapping[Pair, Served]:
        return SERVED

    def mine(self) -> tuple[frozenset[Pair], int]:
        return frozenset({COLD, WARM}), 0

    async def adopt(self, pair: Pair) -> None:
        self.done.append(("adopt", pair))

    async def give_up(self, pair: Pair) -> None:
        self.done.append(("give up", pair))


async def test_what_was_asked_between_two_looks_decides_and_room_is_made_first() -> None:
    node = Node()
    follower = Follower(node, node.adopt, node.give_up)
    node.rows = {**DEMAND, COLD: 10**9}
    assert await follower.look() is None
    for pair, rows in DEMAND.items():
        node.rows[pair] += rows
    assert await follower.look() == Move(HOT, COLD)
    assert node.done == [("give up", COLD), ("adopt", HOT)]


async def test_counters_of_a_router_that_was_started_anew_say_nothing_yet() -> None:
    node = Node()
    follower = Follower(node, node.adopt, node.give_up)
    node.rows = {pair: 10 * rows for pair, rows in DEMAND.items()}
    await follower.look()
    node.rows = dict(DEMAND)
    assert await follower.look() is None
    for pair, rows in DEMAND.items():
        node.rows[pair] += rows
    assert await follower.look() == Move(HOT, COLD)


def test_factors_leave_a_move_that_was_made_where_it_is() -> None:
    """With one more node the one is not hot enough to be given up for at once, nor the other to be taken on again."""
    after = {**SERVED, HOT: by(2), COLD: by(2)}
    assert following.COLD < 1 < following.HOT
    assert move({HOT: 9000, WARM: 8000, COLD: 100, OTHER: 8000}, after, {HOT, WARM}, 0) is None


def test_expert_that_is_taken_on_is_a_replica() -> None:
    layers = (HostedLayer(layer=1, first=(0,), replica=(2,)),)
    one = HostedLayer(layer=1, first=(0,), replica=(1, 2))
    assert with_replica(layers, (1, 1)) == (one,)
    assert with_replica((one,), (0, 3)) == (HostedLayer(layer=0, first=(), replica=(3,)), one)
    assert with_replica((one,), (1, 0)) == (one,)
