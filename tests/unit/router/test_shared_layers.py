"""Rows of many requests in one layer: they travel together, are metered apart, and fail apart. And slow replicas."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sawyer.errors import ExpertUnavailable
from sawyer.ids import RequestId
from sawyer.router import dispatch, placement
from sawyer.router.dispatch import ExpertRows
from sawyer.router.metering import Meter
from sawyer.router.scope import RequestScope, Share
from sawyer.schemas import subjects, tensors
from sawyer.schemas.tensors import ActivationRequest

HIDDEN = 4
LAYER = 2
FIRST_SECOND = 1.0


def rows_of(count: int) -> Any:
    return (np.arange(count)[:, None] * 3 + np.arange(HIDDEN)).astype(np.float32)


def work_of(routing: dict[int, list[int]]) -> list[ExpertRows]:
    return [ExpertRows(expert, np.array(rows, np.uint32)) for expert, rows in sorted(routing.items())]


def shares_of(*rows: int) -> list[Share]:
    made = []
    for number, count in enumerate(rows):
        request = RequestId(f"{number + 1:032x}")
        made.append(Share(RequestScope(request, Meter(request, "austen"), traced=True), count))
    return made


async def test_rows_of_many_requests_are_one_message_and_each_is_metered_alone(world: Any, tools: Any) -> None:
    node = await world.add("node-a", first=range(4))
    hidden, shares = rows_of(4), shares_of(1, 2, 1)
    work = work_of({0: [0, 1], 1: [1, 2], 3: [3]})
    answers = await world.shared_layer(shares, hidden, work)
    for piece, block in zip(work, answers.blocks, strict=True):
        np.testing.assert_array_equal(block, tools.formula(piece.expert, hidden[piece.rows]))
    (asked,) = node.asked
    assert [(part.request[-1], part.sequence, part.rows) for part in asked.parts] == [
        ("1", 1, 1),
        ("2", 1, 2),
        ("3", 1, 1),
    ]
    assert [share.scope.meter.nodes["node-a"].rows for share in shares] == [1, 3, 1]
    assert [[(call.experts, call.rows) for call in calls] for calls in answers.calls] == [
        [((0,), 1)], [((0, 1), 3)], [((3,), 1)],
    ]  # fmt: skip
    assert answers.failed == {}


async def test_sequences_count_the_messages_of_each_request(world: Any) -> None:
    node = await world.add("node-a", first=range(2))
    one, other = shares_of(1, 1)
    await world.shared_layer([one], rows_of(1), work_of({0: [0]}))
    await world.shared_layer([one, other], rows_of(2), work_of({0: [0], 1: [1]}))
    await world.shared_layer([one, other], rows_of(2), work_of({0: [1]}))
    assert [[part.sequence for part in asked.parts] for asked in node.asked] == [[1], [2, 1], [2]]


async def test_request_that_needs_an_expert_of_nobody_fails_alone(world: Any, tools: Any) -> None:
    await world.add("node-a", first=(0,))
    hidden, shares = rows_of(3), shares_of(1, 1, 1)
    work = work_of({0: [0, 1, 2], 5: [1]})
    answers = await world.shared_layer(shares, hidden, work)
    assert answers.failed.keys() == {1}
    assert answers.failed[1].experts == ((LAYER, 5),)
    np.testing.assert_array_equal(answers.blocks[0][[0, 2]], tools.formula(0, hidden[[0, 2]]))


@settings(max_examples=60)
@given(
    routing=st.dictionaries(st.integers(0, 5), st.sets(st.integers(0, 6), min_size=1), min_size=1),
    behaviours=st.lists(
        st.sampled_from(["honest", "absent", "refuses", "garbage", "silent", "slow"]), min_size=1, max_size=4
    ),
    hosts=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=6, max_size=6),
)
def test_whatever_nodes_do_each_request_is_exact_and_metered_once_or_names_its_own_lost_experts(
    tools: SimpleNamespace, routing: dict[int, set[int]], behaviours: list[str], hosts: list[tuple[int, int]]
) -> None:
    work = {expert: sorted(rows) for expert, rows in routing.items()}
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=tools.virtual_loop) as runner:
        patch.setattr(placement, "HEDGE_UNMEASURED_S", 0.01)
        patch.setattr(placement, "DEADLINE_UNMEASURED_S", 0.03)
        patch.setattr("sawyer.router.dispatch.LAYER_TIMEOUT_S", 0.2)
        runner.run(_any_layout(tools, work, behaviours, hosts))


async def _any_layout(
    tools: SimpleNamespace, routing: dict[int, list[int]], behaviours: list[str], hosts: list[tuple[int, int]]
) -> None:
    """A row for each of seven requests. Node `n` behaves as `behaviours[n]`; expert `e` is on the nodes `hosts[e]`."""

    async def slow(request: ActivationRequest) -> bytes:
        await asyncio.sleep(0.02)
        return bytes(tools.honest(request))

    scripts = {
        "honest": tools.honest, "absent": None, "refuses": lambda request: tensors.encode_error(tools.no()),
        "garbage": lambda request: b"garbage " * 30, "silent": lambda request: None, "slow": slow,
    }  # fmt: skip
    world, count = await tools.make_world(), len(behaviours)
    for number, behaviour in enumerate(behaviours):
        first = [expert for expert in range(6) if hosts[expert][0] % count == number]
        replica = [expert for expert in range(6) if hosts[expert][1] % count == number]
        await world.add(f"node-{number}", scripts[behaviour], first, replica)
    good = {number for number, behaviour in enumerate(behaviours) if behaviour in ("honest", "slow")}
    hopeless = {expert for expert in routing if not {host % count for host in hosts[expert]} & good}
    hidden, work, shares = rows_of(7), work_of(routing), shares_of(*[1] * 7)
    answers = await world.shared_layer(shares, hidden, work)
    await tools.end_world(world)
    needs = {row: {expert for expert, rows in routing.items() if row in rows} for row in range(7)}
    assert answers.failed.keys() == {row for row, experts in needs.items() if experts & hopeless}
    for row, error in answers.failed.items():
        assert {expert for _, expert in error.experts} <= needs[row] & hopeless
    for piece, block in zip(work, answers.blocks, strict=True):
        kept = [at for at, row in enumerate(piece.rows.tolist()) if row not in answers.failed]
        np.testing.assert_array_equal(block[kept], tools.formula(piece.expert, hidden[piece.rows[kept]]))
    for row, share in enumerate(shares):
        if row not in answers.failed:
            metered = sum(meter.rows for meter in share.scope.meter.nodes.values())
            assert metered == len(needs[row]), "each expert's row counts once, whoever raced for it"


def run_virtually(tools: Any, coroutine: Any) -> None:
    with asyncio.Runner(loop_factory=tools.virtual_loop) as runner:
        runner.run(coroutine)


def test_slow_node_is_hedged_before_it_counts_as_failed_and_the_first_answer_wins(tools: Any) -> None:
    run_virtually(tools, _hedged(tools))


async def _hedged(tools: Any) -> None:
    world, loop = await tools.make_world(), asyncio.get_running_loop()

    async def late(request: ActivationRequest) -> bytes:
        await asyncio.sleep(FIRST_SECOND)
        return bytes(tools.honest(request))

    node = await world.add("node-a", late, first=(0, 1))
    await world.add("node-b", replica=(0, 1))
    for _ in range(placement.WINDOW):
        node.state.answered(1000, loop.time())
    before_us = node.state.expected_us(loop.time())
    started_s = loop.time()
    blocks, _ = await world.layer(rows_of(2), work_of({0: [0], 1: [1]}))
    assert loop.time() - started_s < 2 * placement.HEDGE_FLOOR_S
    np.testing.assert_array_equal(blocks[0], tools.formula(0, rows_of(2)[:1]))
    (takeover,) = world.scope.takeovers.values()
    assert (takeover.lost, takeover.by, takeover.reason) == ("node-a", "node-b", "hedged")
    assert (node.state.failures, node.state.gone) == (0, False)
    assert node.state.expected_us(loop.time()) > before_us, "it is chosen less from now on"
    assert world.rows_of() == {"node-b": 2}
    await tools.end_world(world)


def test_slow_node_is_hedged_to_a_replica_that_is_avoided_if_no_other_is_left(tools: Any) -> None:
    """Why it is avoided may be long over, and to ask it costs little."""
    run_virtually(tools, _avoided(tools))


async def _avoided(tools: Any) -> None:
    world, loop = await tools.make_world(), asyncio.get_running_loop()

    async def late(request: ActivationRequest) -> bytes:
        await asyncio.sleep(0.1)
        return bytes(tools.honest(request))

    node = await world.add("node-a", late, first=(0,))
    other = await world.add("node-b", replica=(0,))
    other.state.failed(loop.time(), gone=False)
    for _ in range(placement.WINDOW):
        node.state.answered(1000, loop.time())
    await world.layer(rows_of(1), work_of({0: [0]}))
    assert (world.rows_of(), node.state.failures, other.state.failures) == ({"node-b": 1}, 0, 0)
    await tools.end_world(world)


def test_node_that_is_not_back_yet_after_the_server_was_away_is_asked_again_and_not_blamed(tools: Any) -> None:
    run_virtually(tools, _settling(tools))


async def _settling(tools: Any) -> None:
    world, loop = await tools.make_world(), asyncio.get_running_loop()
    node = await world.add("node-a", None, first=(0,))
    world.router.settling = True

    async def come_back() -> None:
        await asyncio.sleep(1)
        await node.bus.subscribe(subjects.experts_of(node.name, "austen"), node.hear)

    coming = asyncio.create_task(come_back())
    blocks, _ = await world.layer(rows_of(1), work_of({0: [0]}))
    await coming
    np.testing.assert_array_equal(blocks[0], tools.formula(0, rows_of(1)))
    assert (node.state.gone, node.state.failures, world.scope.takeovers) == (False, 0, {})
    assert 1 <= loop.time() <= 1.5
    await tools.end_world(world)


def test_node_that_is_not_back_yet_does_not_keep_its_replica_from_answering_at_once(tools: Any) -> None:
    """It may have been killed a moment after the server came back."""
    run_virtually(tools, _settling_beside_a_replica(tools))


async def _settling_beside_a_replica(tools: Any) -> None:
    world, loop = await tools.make_world(), asyncio.get_running_loop()
    node = await world.add("node-a", None, first=(0,))
    await world.add("node-b", replica=(0,))
    world.router.settling = True
    blocks, _ = await world.layer(rows_of(1), work_of({0: [0]}))
    np.testing.assert_array_equal(blocks[0], tools.formula(0, rows_of(1)))
    assert (node.state.gone, node.state.failures, world.rows_of()) == (False, 0, {"node-b": 1})
    assert loop.time() < dispatch.SETTLING_AGAIN_S
    await tools.end_world(world)


def test_node_that_does_not_come_back_is_gone_when_all_others_should_be_there(tools: Any) -> None:
    run_virtually(tools, _settled(tools))


async def _settled(tools: Any) -> None:
    world, loop = await tools.make_world(), asyncio.get_running_loop()
    node = await world.add("node-a", None, first=(0,))
    world.router.settling = True
    loop.call_later(2, lambda: setattr(world.router, "settling", False))
    with pytest.raises(ExpertUnavailable, match="node-a: nobody listens"):
        await world.layer(rows_of(1), work_of({0: [0]}))
    assert node.state.gone
    assert 2 <= loop.time() < 2 + 2 * dispatch.SETTLING_AGAIN_S
    await tools.end_world(world)


def test_message_that_was_lost_while_the_server_was_away_is_sent_again_to_the_same_node(tools: Any) -> None:
    run_virtually(tools, _lost_on_the_way(tools))


async def _lost_on_the_way(tools: Any) -> None:
    world, answered = await tools.make_world(), []

    def only_the_second(request: ActivationRequest) -> bytes | None:
        answered.append(request)
        return bytes(tools.honest(request)) if len(answered) > 1 else None

    node = await world.add("node-a", only_the_second, first=(0,))
    world.router.settling = True
    blocks, _ = await world.layer(rows_of(1), work_of({0: [0]}))
    np.testing.assert_array_equal(blocks[0], tools.formula(0, rows_of(1)))
    assert (len(answered), node.state.failures, world.scope.takeovers) == (2, 0, {})
    assert node.state.deadline_s(1) == placement.DEADLINE_UNMEASURED_S, "what that took says nothing of the node"
    await tools.end_world(world)
