"""One MoE layer over nodes that fail: a replica of the SAME expert answers, nobody is counted twice, or the layer fails
and says for which experts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sawyer.errors import Busy, ExpertUnavailable, ServerUnreachable, UnknownExpert
from sawyer.router import dispatch, placement
from sawyer.router.dispatch import ExpertRows
from sawyer.schemas import tensors
from sawyer.schemas.messages import Takeover
from sawyer.schemas.tensors import ActivationRequest

HIDDEN, LAYER = 4, 2
PATIENCE_S = 10.0
HIDDEN_STATES = np.arange(5 * HIDDEN, dtype=np.float32).reshape(5, HIDDEN)


def work_of(routing: dict[int, list[int]]) -> list[ExpertRows]:
    return [ExpertRows(expert, np.array(rows, np.uint32)) for expert, rows in sorted(routing.items())]


WORK = work_of({0: [0, 1], 1: [2, 3, 4]})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed at once."""
    monkeypatch.setattr(placement, "DEADLINE_UNMEASURED_S", 0.02)


@pytest.fixture
def expect_exact(tools: Any) -> Callable[..., None]:
    def check(blocks: list[Any], work: list[ExpertRows] = WORK, hidden: Any = HIDDEN_STATES) -> None:
        for piece, block in zip(work, blocks, strict=True):
            np.testing.assert_array_equal(block, tools.formula(piece.expert, hidden[piece.rows]))

    return check


def refuse(request: ActivationRequest) -> bytes:
    return tensors.encode_error(Busy("full"))


def silent(request: ActivationRequest) -> None:
    return None


def bent(tools: Any, how: str, request: ActivationRequest) -> bytes:
    """An answer that is wrong in one way."""
    blocks = tools.reply_to(request).blocks
    first, (part, *_) = blocks[0][1], request.parts
    changes: dict[str, Any] = {
        "other sequence": {"parts": (part._replace(sequence=part.sequence + 1),)},
        "other request": {"parts": (part._replace(request="1f" * 16),)},
        "other layer": {"layer": request.layer + 1},
        "other weights": {"manifest": bytes(8)},
        "NaN": {"blocks": ((blocks[0][0], np.full_like(first, np.nan)), *blocks[1:])},
        "infinity": {"blocks": (*blocks[:-1], (blocks[-1][0], np.full_like(blocks[-1][1], np.inf)))},
        "row missing": {"blocks": ((blocks[0][0], first[:1]), *blocks[1:])},
        "row too many": {"blocks": ((blocks[0][0], np.repeat(first, 2, axis=0)), *blocks[1:])},
        "expert missing": {"blocks": blocks[:1]},
        "other expert": {"blocks": (*blocks[:-1], (blocks[-1][0] + 5, blocks[-1][1]))},
        "wider rows": {"blocks": tuple((expert, np.repeat(each, 2, axis=1)) for expert, each in blocks)},
    }
    if how == "garbage":
        return b"garbage " * 20
    if how == "empty":
        return b""
    if how == "truncated":
        return bytes(tools.honest(request)[:-1])
    if how == "the request itself":
        return tensors.encode_request(request)
    if how == "unreadable error":
        return refuse(request) + b"}"
    return tensors.encode_reply(tools.reply_to(request, **changes[how]))


WRONG = [
    "garbage", "empty", "truncated", "the request itself", "unreadable error", "other sequence", "other request",
    "other layer", "other weights", "NaN", "infinity", "row missing", "row too many", "expert missing", "other expert",
    "wider rows",
]  # fmt: skip


@pytest.mark.parametrize("how", WRONG)
async def test_wrong_answer_is_never_used_and_a_replica_takes_over(
    world: Any, tools: Any, expect_exact: Callable[..., None], how: str
) -> None:
    liar = await world.add("node-a", lambda request: bent(tools, how, request), first=(0, 1))
    await world.add("node-b", replica=(0, 1))
    blocks, calls = await world.layer(HIDDEN_STATES, WORK)
    expect_exact(blocks)
    assert world.rows_of() == {"node-b": 5}
    assert [call.node for call in calls] == ["node-b"]
    (takeover,) = world.scope.takeovers.values()
    assert takeover == Takeover(lost="node-a", by="node-b", reason="malformed", step=0, layer=LAYER)
    assert (liar.state.failures, liar.state.gone) == (1, False)
    assert world.scope.asked == {"node-a", "node-b"}


async def test_answer_that_is_narrower_than_asked_is_not_used(world: Any, tools: Any) -> None:
    """In a parity run a float16 answer would pass for exact."""

    def narrow(request: ActivationRequest) -> bytes:
        blocks = tuple((e, block.astype(np.float16)) for e, block in tools.reply_to(request).blocks)
        return tensors.encode_reply(tools.reply_to(request, blocks=blocks))

    await world.add("node-a", narrow, first=(0, 1))
    await world.add("node-b", replica=(0, 1))
    hidden = HIDDEN_STATES + np.float32(1 / 3)
    blocks, _ = await world.layer(hidden, WORK, wide=True)
    np.testing.assert_array_equal(blocks[0], tools.formula(0, hidden[[0, 1]]))
    assert world.rows_of() == {"node-b": 5}


async def test_typed_refusal_is_answered_by_a_replica_and_its_reason_kept(
    world: Any, expect_exact: Callable[..., None]
) -> None:
    node = await world.add("node-a", refuse, first=(0, 1))
    await world.add("node-b", replica=(0, 1))
    blocks, _ = await world.layer(HIDDEN_STATES, WORK)
    expect_exact(blocks)
    assert [each.reason for each in world.scope.takeovers.values()] == ["busy"]
    assert (node.state.failures, node.state.gone) == (1, False)


async def test_node_that_is_not_there_is_replaced_at_once_and_gone_until_it_beats(
    world: Any, expect_exact: Callable[..., None]
) -> None:
    node = await world.add("node-a", None, first=(0, 1))
    await world.add("node-b", replica=(0, 1))
    blocks, _ = await world.layer(HIDDEN_STATES, WORK)
    expect_exact(blocks)
    assert node.state.gone
    assert [each.reason for each in world.scope.takeovers.values()] == ["nobody-listens"]


async def test_silence_past_the_deadline_is_answered_by_a_replica(
    world: Any, quick: None, expect_exact: Callable[..., None]
) -> None:
    node = await world.add("node-a", silent, first=(0, 1))
    await world.add("node-b", replica=(0, 1))
    blocks, _ = await world.layer(HIDDEN_STATES, WORK)
    expect_exact(blocks)
    assert [each.reason for each in world.scope.takeovers.values()] == ["deadline"]
    assert (node.state.failures, node.state.gone) == (1, False)
    assert world.rows_of() == {"node-b": 5}


async def test_experts_of_a_lost_node_go_to_different_replicas(world: Any, expect_exact: Callable[..., None]) -> None:
    await world.add("node-a", refuse, first=(0, 1))
    await world.add("node-b", replica=(0,))
    await world.add("node-c", replica=(1,))
    blocks, _ = await world.layer(HIDDEN_STATES, WORK)
    expect_exact(blocks)
    assert world.rows_of() == {"node-b": 2, "node-c": 3}
    assert {(each.lost, each.by) for each in world.scope.takeovers.values()} == {
        ("node-a", "node-b"),
        ("node-a", "node-c"),
    }


async def test_third_replica_answers_when_two_fail(world: Any, quick: None, expect_exact: Callable[..., None]) -> None:
    await world.add("node-a", refuse, first=(0, 1))
    await world.add("node-b", silent, replica=(0, 1))
    await world.add("node-c", replica=(0, 1))
    blocks, _ = await world.layer(HIDDEN_STATES, WORK)
    expect_exact(blocks)
    assert world.rows_of() == {"node-c": 5}
    assert {(each.lost, each.reason) for each in world.scope.takeovers.values()} == {
        ("node-a", "busy"),
        ("node-b", "deadline"),
    }


async def test_late_answer_counts_if_it_comes_before_the_replacement(
    world: Any, quick: None, tools: Any, expect_exact: Callable[..., None]
) -> None:
    replica_asked, replica_may = asyncio.Event(), asyncio.Event()

    async def late(request: ActivationRequest) -> bytes:
        await replica_asked.wait()
        return bytes(tools.honest(request))

    async def held(request: ActivationRequest) -> bytes:
        replica_asked.set()
        await replica_may.wait()
        return bytes(tools.honest(request))

    await world.add("node-a", late, first=(0, 1))
    replica = await world.add("node-b", held, replica=(0, 1))
    replica.state.answered(1e6, asyncio.get_running_loop().time())  # known as slow: its deadline is far
    blocks, calls = await world.layer(HIDDEN_STATES, WORK)
    expect_exact(blocks)
    assert world.rows_of() == {"node-a": 5}
    assert [call.node for call in calls] == ["node-a"]
    assert world.scope.takeovers == {}, "it lost nothing"
    assert replica.state.failures == 0, "the first answer ended the race: nobody waited for the replica's deadline"
    assert world.scope.asked == {"node-a", "node-b"}
    replica_may.set()
    await asyncio.wait_for(asyncio.gather(*replica.tasks), PATIENCE_S)
    await world.layer(HIDDEN_STATES, work_of({0: [0]}))
    assert world.gatherer.late == 1
    assert sum(world.rows_of().values()) == 6


async def test_two_answers_to_the_same_rows_are_counted_once(
    world: Any, quick: None, tools: Any, expect_exact: Callable[..., None]
) -> None:
    together = asyncio.Event()

    async def late(request: ActivationRequest) -> bytes:
        await together.wait()
        return bytes(tools.honest(request))

    def at_once(request: ActivationRequest) -> bytes:
        together.set()
        return bytes(tools.honest(request))

    await world.add("node-a", late, first=(0, 1))
    await world.add("node-b", at_once, replica=(0, 1))
    await world.add("node-c", silent, first=(7,))
    blocks, calls = await world.layer(HIDDEN_STATES, WORK)
    expect_exact(blocks)
    assert sum(world.rows_of().values()) == sum(call.rows for call in calls) == 5


async def test_late_answer_of_which_a_part_was_replaced_is_asked_for_the_rest_again(
    world: Any, quick: None, tools: Any, expect_exact: Callable[..., None]
) -> None:
    """node-b took expert 0 over; nobody else has expert 1. A receipt is over whole answers, so the late answer of both
    cannot be used in part: node-a, which lives, is asked for expert 1 alone."""
    replaced = asyncio.Event()

    async def late_once(request: ActivationRequest) -> bytes:
        if len(request.work) == 2:
            await replaced.wait()
            for _ in range(5):
                await asyncio.sleep(0)
        return bytes(tools.honest(request))

    def takes_over(request: ActivationRequest) -> bytes:
        replaced.set()
        return bytes(tools.honest(request))

    late = await world.add("node-a", late_once, first=(0, 1))
    await world.add("node-b", takes_over, replica=(0,))
    blocks, calls = await world.layer(HIDDEN_STATES, WORK)
    expect_exact(blocks)
    assert [[expert for expert, _ in each.work] for each in late.asked] == [[0, 1], [1]]
    assert world.rows_of() == {"node-b": 2, "node-a": 3}
    assert world.scope.meter.finish("node-a").used == ((2, 2),)
    assert sum(call.rows for call in calls) == 5
    times = world.scope.meter.times["node-a"]
    assert times._calls == 2, "the answer that was dropped took its time, too"
    assert times.p95_us() == max(times._kept)


async def test_replica_that_is_at_work_is_not_doubled_when_the_late_node_refuses(
    world: Any, quick: None, tools: Any, expect_exact: Callable[..., None]
) -> None:
    refused, replica_asked = asyncio.Event(), asyncio.Event()

    async def refuses_late(request: ActivationRequest) -> bytes:
        await replica_asked.wait()
        refused.set()
        return refuse(request)

    async def steady(request: ActivationRequest) -> bytes:
        replica_asked.set()
        await refused.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        return bytes(tools.honest(request))

    await world.add("node-a", refuses_late, first=(0, 1))
    replica = await world.add("node-b", steady, replica=(0, 1))
    replica.state.answered(1e6, asyncio.get_running_loop().time())
    spare = await world.add("node-c", replica=(0, 1))
    for _ in range(200):
        spare.state.answered(9e6, asyncio.get_running_loop().time())  # the slowest: asked last
    blocks, _ = await world.layer(HIDDEN_STATES, WORK)
    expect_exact(blocks)
    assert (len(replica.asked), len(spare.asked)) == (1, 0)
    assert world.rows_of() == {"node-b": 5}


async def test_parts_of_one_expert_fall_back_each_on_its_own(
    world: Any, quick: None, tools: Any, expect_exact: Callable[..., None]
) -> None:
    """Rows over the message limit: the first part is never answered, the others are."""
    hidden = np.ones((600, 1024), np.float32) * (np.arange(600) % 50).astype(np.float32)[:, None]
    work = work_of({0: list(range(600))})

    async def first_part_lost(request: ActivationRequest) -> bytes | None:
        return None if request.parts[0].sequence == 1 else bytes(tools.honest(request))

    await world.add("node-a", first_part_lost, first=(0,))
    await world.add("node-b", replica=(0,))
    blocks, _ = await world.layer(hidden, work)
    expect_exact(blocks, work, hidden)
    most = tensors.split_limit_rows(1024, tensors.Dtype.F16)
    assert world.rows_of() == {"node-a": 600 - most, "node-b": most}


async def test_takeover_is_recorded_once_with_the_step_and_layer_it_began(world: Any) -> None:
    node = await world.add("node-a", refuse, first=(0, 1))
    await world.add("node-b", replica=(0, 1))
    for step in range(3):
        world.scope.step = step
        node.state.avoid_until_s = 0.0
        await world.layer(HIDDEN_STATES, WORK)
    assert len(node.asked) == 3
    (takeover,) = world.scope.takeovers.values()
    assert (takeover.step, takeover.layer) == (0, LAYER)


async def test_node_that_failed_is_not_asked_again_in_its_back_off(world: Any) -> None:
    node = await world.add("node-a", refuse, first=(0, 1))
    await world.add("node-b", replica=(0, 1))
    for _ in range(3):
        await world.layer(HIDDEN_STATES, WORK)
    assert len(node.asked) == 1


async def test_layer_fails_naming_exactly_the_experts_that_nobody_serves(world: Any) -> None:
    await world.add("node-a", first=(0,))
    with pytest.raises(ExpertUnavailable, match=r"expert 1, 3 .*no node serves them") as error:
        await world.layer(HIDDEN_STATES, work_of({0: [0], 1: [1], 3: [2]}))
    assert error.value.experts == ((LAYER, 1), (LAYER, 3))
    assert error.value.details == {"experts": "2:1 2:3"}


async def test_layer_fails_naming_who_was_tried_and_why(world: Any, tools: Any, quick: None) -> None:
    def unknown(request: ActivationRequest) -> bytes:
        return tensors.encode_error(UnknownExpert("no"))

    await world.add("node-a", None, first=(0, 1))
    await world.add("node-b", unknown, replica=(0, 1))
    with pytest.raises(ExpertUnavailable) as error:
        await world.layer(HIDDEN_STATES, WORK)
    assert "node-a: nobody listens" in error.value.message
    assert "node-b: unknown_expert" in error.value.message
    assert error.value.experts == ((LAYER, 0), (LAYER, 1))
    assert world.rows_of() == {}


async def test_layer_without_any_answer_ends_at_its_timeout(
    world: Any, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "LAYER_TIMEOUT_S", 0.1)
    await world.add("node-a", silent, first=(0, 1))
    with pytest.raises(ExpertUnavailable, match=r"node-a: deadline; no answer within 0\.1 s") as error:
        await world.layer(HIDDEN_STATES, WORK)
    assert error.value.experts == ((LAYER, 0), (LAYER, 1))


async def test_layer_that_ends_before_a_nodes_deadline_names_the_node(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "LAYER_TIMEOUT_S", 0.1)
    monkeypatch.setattr(placement, "DEADLINE_UNMEASURED_S", 10.0)
    await world.add("node-a", silent, first=(0, 1))
    with pytest.raises(ExpertUnavailable, match=r"\(node-a: not answered yet; no answer within 0\.1 s\)"):
        await world.layer(HIDDEN_STATES, WORK)


async def test_connection_that_was_lost_and_is_back_sends_again_and_blames_nobody(
    world: Any, tools: Any, expect_exact: Callable[..., None]
) -> None:
    asked = asyncio.Event()

    def answers_the_second(request: ActivationRequest) -> bytes | None:
        asked.set()
        return None if request.parts[0].sequence == 1 else bytes(tools.honest(request))

    node = await world.add("node-a", answers_the_second, first=(0, 1))
    running = asyncio.create_task(world.layer(HIDDEN_STATES, WORK))
    await asyncio.wait_for(asked.wait(), PATIENCE_S)
    world.gatherer._lose_all()
    blocks, _ = await asyncio.wait_for(running, PATIENCE_S)
    expect_exact(blocks)
    assert (node.state.failures, node.state.gone, world.scope.takeovers) == (0, False, {})
    assert world.rows_of() == {"node-a": 5}
    assert world.scope.meter.finish("node-a").used == ((2, 2),)


async def test_connection_that_is_gone_fails_the_layer_at_once(world: Any) -> None:
    asked = asyncio.Event()
    await world.add("node-a", lambda request: asked.set(), first=(0, 1))
    running = asyncio.create_task(world.layer(HIDDEN_STATES, WORK))
    await asyncio.wait_for(asked.wait(), PATIENCE_S)
    await world.router.close()
    with pytest.raises(ServerUnreachable):
        await asyncio.wait_for(running, PATIENCE_S)


async def test_unit_without_a_replica_is_offered_to_a_node_that_appears(
    world: Any, quick: None, expect_exact: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only node is silent past its deadline, its answer may still come; meanwhile another joins."""
    monkeypatch.setattr(dispatch, "LOOK_AGAIN_S", 0.01)
    asked = asyncio.Event()
    await world.add("node-a", lambda request: asked.set(), first=(0, 1))
    running = asyncio.create_task(world.layer(HIDDEN_STATES, WORK))
    await asyncio.wait_for(asked.wait(), PATIENCE_S)
    await world.add("node-b", first=(0, 1))
    blocks, _ = await asyncio.wait_for(running, PATIENCE_S)
    expect_exact(blocks)
    assert world.rows_of() == {"node-b": 5}
