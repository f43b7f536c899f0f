"""One MoE layer over nodes that behave: right rows to right experts, one message a node, every row metered once."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sawyer.errors import ExpertUnavailable
from sawyer.router import placement
from sawyer.router.dispatch import ExpertRows
from sawyer.schemas import tensors
from sawyer.schemas.tensors import MESSAGE_LIMIT_BYTES, ActivationRequest, Part

HIDDEN = 4
LAYER = 2


def rows_of(count: int, hidden: int = HIDDEN) -> Any:
    """[count, hidden] float32, small whole numbers, exact in float16 through every formula; 300 rows that differ."""
    return (np.arange(count)[:, None] % 300 * 3 + np.arange(hidden) % 7).astype(np.float32)


def work_of(routing: dict[int, list[int]]) -> list[ExpertRows]:
    return [ExpertRows(expert, np.array(rows, np.uint32)) for expert, rows in sorted(routing.items())]


def expect_formula(tools: Any, hidden: Any, work: list[ExpertRows], blocks: list[Any]) -> None:
    assert len(blocks) == len(work)
    for piece, block in zip(work, blocks, strict=True):
        assert block.dtype == np.float32
        np.testing.assert_array_equal(block, tools.formula(piece.expert, hidden[piece.rows]))


async def test_experts_of_one_node_travel_in_one_message_with_each_row_once(world: Any, tools: Any) -> None:
    node = await world.add("node-a", first=range(4))
    hidden, work = rows_of(3), work_of({0: [0, 1], 1: [1], 3: [0, 1]})
    blocks, calls = await world.layer(hidden, work)
    expect_formula(tools, hidden, work, blocks)
    (asked,) = node.asked
    assert node.subjects == ["sawyer.v1.expert.node-a.austen.2.0"], "the subject of the first expert"
    np.testing.assert_array_equal(asked.rows, hidden[:2], "row 2 was asked of nobody")
    assert [expert for expert, _ in asked.work] == [0, 1, 3]
    assert (asked.layer, asked.parts) == (LAYER, (Part(world.scope.request, 1, 2),))
    assert asked.manifest == bytes.fromhex("ab" * 32)[:8]
    (call,) = calls
    assert (call.node, call.experts, call.rows, call.compute_us) == ("node-a", (0, 1, 3), 5, 5)


async def test_each_node_gets_one_message_for_its_experts(world: Any, tools: Any) -> None:
    left = await world.add("node-a", first=(0, 2))
    right = await world.add("node-b", first=(1, 3))
    hidden, work = rows_of(4), work_of({0: [0], 1: [1, 2], 2: [3], 3: [0, 3]})
    blocks, calls = await world.layer(hidden, work)
    expect_formula(tools, hidden, work, blocks)
    assert [[expert for expert, _ in each.work] for each in left.asked + right.asked] == [[0, 2], [1, 3]]
    assert world.rows_of() == {"node-a": 2, "node-b": 4}
    assert {(call.node, call.rows) for call in calls} == {("node-a", 2), ("node-b", 4)}
    assert world.scope.takeovers == {}


async def test_sequence_numbers_count_the_messages_to_each_node(world: Any) -> None:
    left, right = await world.add("node-a", first=(0,)), await world.add("node-b", first=(1,))
    for routing in ({0: [0], 1: [0]}, {0: [0]}, {0: [0], 1: [0]}):
        await world.layer(rows_of(1), work_of(routing))
    assert [each.parts[0].sequence for each in left.asked] == [1, 2, 3]
    assert [each.parts[0].sequence for each in right.asked] == [1, 2]
    assert world.scope.asked == {"node-a", "node-b"}
    assert {node: world.scope.meter.finish(node).used for node in world.scope.asked} == {
        "node-a": ((1, 3),),
        "node-b": ((1, 2),),
    }


async def test_rows_over_the_message_limit_travel_in_parts(world: Any, tools: Any) -> None:
    node = await world.add("node-a", first=(0, 1))
    hidden = rows_of(600, hidden=1024)
    work = work_of({0: list(range(600)), 1: list(range(0, 600, 2))})
    blocks, calls = await world.layer(hidden, work)
    expect_formula(tools, hidden, work, blocks)
    assert len(node.asked) > 1
    assert max(node.sizes) <= MESSAGE_LIMIT_BYTES
    replies = [len(tools.honest(each)) for each in node.asked]
    assert max(replies) <= MESSAGE_LIMIT_BYTES
    most = tensors.split_limit_rows(1024, tensors.Dtype.F16)
    assert all(sum(len(rows) for _, rows in each.work) <= most for each in node.asked)
    assert world.rows_of() == {"node-a": 900}
    assert sum(call.rows for call in calls) == 900
    assert world.scope.meter.finish("node-a").used == ((1, len(node.asked)),)


async def test_float16_is_sent_and_float32_when_a_value_does_not_fit(world: Any, tools: Any) -> None:
    node = await world.add("node-a", first=(0,))
    hidden, work = rows_of(2), work_of({0: [0, 1]})
    await world.layer(hidden, work)
    hidden[1, 2] = -1e5
    blocks, _ = await world.layer(hidden, work)
    expect_formula(tools, hidden, work, blocks)
    assert [(each.rows.dtype, each.reply_f32) for each in node.asked] == [(np.float16, False), (np.float32, True)]


async def test_largest_float16_value_still_travels_as_float16(world: Any) -> None:
    node = await world.add("node-a", first=(0,), script=lambda request: None)
    node.script = lambda request: tensors.encode_reply(tensors.ActivationReply(
        request.parts, request.manifest, LAYER, ((0, request.rows),), 1, 1))  # fmt: skip
    hidden = np.full((1, HIDDEN), 65504.0, np.float32)
    blocks, _ = await world.layer(hidden, work_of({0: [0]}))
    np.testing.assert_array_equal(blocks[0], hidden)
    assert node.asked[0].rows.dtype == np.float16


async def test_wide_dispatcher_sends_and_asks_for_float32(world: Any, tools: Any) -> None:
    node = await world.add("node-a", first=(0,))
    hidden, work = rows_of(2) + np.float32(1 / 3), work_of({0: [0, 1]})
    blocks, _ = await world.layer(hidden, work, wide=True)
    expect_formula(tools, hidden, work, blocks)
    assert (node.asked[0].rows.dtype, node.asked[0].reply_f32) == (np.float32, True)


async def test_float32_answer_to_float16_rows_is_used_whole(world: Any) -> None:
    """A node whose values would overflow float16 answers wider than it was asked."""
    big = np.full((1, HIDDEN), 1e6, np.float32)

    def wide(request: ActivationRequest) -> bytes:
        return tensors.encode_reply(tensors.ActivationReply(
            request.parts, request.manifest, LAYER, ((0, big),), 1, 1))  # fmt: skip

    await world.add("node-a", first=(0,), script=wide)
    blocks, _ = await world.layer(rows_of(1), work_of({0: [0]}))
    np.testing.assert_array_equal(blocks[0], big)


async def test_good_answer_is_measured(world: Any) -> None:
    node = await world.add("node-a", first=(0,))
    node.state.failures, node.state.avoid_until_s = 3, asyncio.get_running_loop().time() + 60
    assert node.state.deadline_s(1) == placement.DEADLINE_UNMEASURED_S
    await world.layer(rows_of(1), work_of({0: [0]}))
    assert (node.state.failures, node.state.avoid_until_s) == (0, 0.0)
    assert node.state.deadline_s(1) != placement.DEADLINE_UNMEASURED_S


ROUTING = st.dictionaries(st.integers(0, 5), st.sets(st.integers(0, 6), min_size=1), min_size=1, max_size=6)
"""Expert -> the rows that go through it."""
BEHAVIOUR = st.sampled_from(["honest", "honest", "honest", "absent", "refuses", "garbage", "silent"])


@settings(max_examples=40)
@given(
    routing=ROUTING,
    behaviours=st.lists(BEHAVIOUR, min_size=1, max_size=4),
    hosts=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=6, max_size=6),
)
def test_any_routing_over_any_nodes_is_exact_or_fails_and_meters_each_row_once(
    tools: SimpleNamespace, routing: dict[int, set[int]], behaviours: list[str], hosts: list[tuple[int, int]]
) -> None:
    work = {expert: sorted(rows) for expert, rows in routing.items()}
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=tools.virtual_loop) as runner:
        patch.setattr(placement, "DEADLINE_UNMEASURED_S", 0.01)
        patch.setattr("sawyer.router.dispatch.LAYER_TIMEOUT_S", 0.1)
        runner.run(_any_layout(tools, work, behaviours, hosts))


async def _any_layout(
    tools: SimpleNamespace, routing: dict[int, list[int]], behaviours: list[str], hosts: list[tuple[int, int]]
) -> None:
    """Node `n` behaves as `behaviours[n]`; expert `e` has its first choice and its replica on the nodes `hosts[e]`."""
    scripts = {
        "honest": tools.honest,
        "absent": None,
        "refuses": lambda request: tensors.encode_error(ExpertUnavailable("no")),
        "garbage": lambda request: b"garbage " * 30,
        "silent": lambda request: None,
    }
    world, count = await tools.make_world(), len(behaviours)
    for number, behaviour in enumerate(behaviours):
        first = [expert for expert in range(6) if hosts[expert][0] % count == number]
        replica = [expert for expert in range(6) if hosts[expert][1] % count == number]
        await world.add(f"node-{number}", scripts[behaviour], first, replica)
    honest = {number for number, behaviour in enumerate(behaviours) if behaviour == "honest"}
    hopeless = {expert for expert in routing if not {host % count for host in hosts[expert]} & honest}
    hidden, work = rows_of(7), work_of(routing)
    if hopeless:
        with pytest.raises(ExpertUnavailable) as error:
            await world.layer(hidden, work)
        assert {expert for _, expert in error.value.experts} <= hopeless
        assert error.value.experts
    else:
        blocks, calls = await world.layer(hidden, work)
        expect_formula(tools, hidden, work, blocks)
        wanted = Counter({expert: len(rows) for expert, rows in routing.items()})
        assert sum(world.rows_of().values()) == sum(call.rows for call in calls) == wanted.total()
        assert Counter(expert for call in calls for expert in call.experts) == Counter(routing.keys())
        assert {int(node[-1]) for node in world.rows_of()} <= honest
    await tools.end_world(world)
