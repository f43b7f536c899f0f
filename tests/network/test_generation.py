"""The whole path over real sockets: the same answer as one machine, debited once, receipted, and proved."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from sawyer.bus.calls import ask
from sawyer.client.aio import AsyncClient
from sawyer.engine.experts import ExpertPool
from sawyer.engine.local import LocalModel
from sawyer.engine.tokenizer import Tokenizer
from sawyer.engine.trunk import Trunk
from sawyer.errors import (
    AlreadyCompleted,
    BudgetTooSmall,
    ExpertUnavailable,
    NobodyServes,
    PromptEmpty,
    PromptTooLong,
    RequestConflict,
    UnknownAccount,
    UnknownModel,
    UsageError,
)
from sawyer.ids import new_request_id
from sawyer.ledger.entry import decode_entry
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import DEMO_MODEL
from sawyer.schemas.messages import BalanceReply, RouterReply

PROMPTS = ("It was a", "Emma was", '"My dear Mr. Bennet," said')


@pytest.fixture(scope="module")
def one_machine(demo_q4: Artifacts) -> LocalModel:
    """The same model with all experts in this process."""
    layout = demo_q4.layout
    pairs = [(layer, expert) for layer in layout.moe_layers for expert in range(layout.experts)]
    return LocalModel(Trunk(demo_q4), ExpertPool(demo_q4, pairs, device="cpu"), wire_dtype=np.float16)


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_distributed_run_gives_the_ids_of_one_machine(network, one_machine, demo_q4, prompt):
    async with network.client() as client:
        answer = await client.generate(prompt, model=DEMO_MODEL, max_tokens=24)
    tokenizer = Tokenizer(demo_q4)
    expected = one_machine.generate(tokenizer.encode(prompt), 24)
    assert list(answer.ids) == expected
    assert answer.text == tokenizer.decode(expected)


async def test_generation_is_debited_once_and_every_host_is_credited_by_receipt(network):
    async with network.client() as client:
        before = await client.balance()
        answer = await client.generate("It was a", model=DEMO_MODEL, max_tokens=16)
        after = await client.balance()
    usage = answer.usage
    assert usage.billed_tokens == usage.input_tokens + usage.output_tokens
    assert before.available - after.available == usage.billed_tokens
    assert after.held == 0
    rows = (usage.input_tokens + usage.output_tokens - 1) * 4 * 2
    assert sum(node.rows for node in usage.nodes) == rows
    assert all(node.receipted for node in usage.nodes)
    report = await network.audit()
    assert report.ok
    assert sum(host.rows for host in report.hosts) == rows
    assert [row.available for row in report.balances] == [after.available]


async def test_router_that_starts_last_knows_every_node_from_its_first_moment(founded):
    for part in range(3):
        await founded.add_node(f"node-{part + 1}", part, 3)
    await founded.add_router()
    await founded.router_sees("node-1", "node-2", "node-3")
    status = await ask(founded.bus, "router", RouterReply)
    assert status.missing == 0
    assert [(node.node, node.first + node.replica) for node in status.nodes] == [
        ("node-1", 20),
        ("node-2", 24),
        ("node-3", 20),
    ]


async def test_stream_delivers_the_text_in_pieces_and_the_bill_at_the_end(network):
    async with network.client() as client, client.stream("Emma was", model=DEMO_MODEL, max_tokens=8) as stream:
        pieces = [piece async for piece in stream]
    assert len(pieces) > 1
    assert stream.usage is not None
    assert stream.usage.output_tokens == len(stream.ids) == 8


async def test_trace_names_every_layer_of_every_step(network):
    async with (
        network.client() as client,
        client.stream("Emma was", model=DEMO_MODEL, max_tokens=3, trace=True) as stream,
    ):
        await stream.result()
    assert sorted({(each.step, each.layer) for each in stream.traces}) == [(s, n) for s in range(3) for n in range(4)]
    assert sum(call.rows for each in stream.traces for call in each.calls) == sum(n.rows for n in stream.usage.nodes)


async def test_resend_of_a_completed_request_is_answered_whole_and_not_billed_again(network):
    request = new_request_id()
    async with network.client() as client:
        first = await client.generate("It was a", model=DEMO_MODEL, max_tokens=6, request_id=request)
        balance = await client.balance()
        again = await client.generate("It was a", model=DEMO_MODEL, max_tokens=6, request_id=request)
        assert (again.text, again.ids, again.usage) == (first.text, first.ids, first.usage)
        assert (first.repeated, again.repeated) == (False, True)
        assert await client.balance() == balance


async def test_resend_after_the_router_forgot_tells_usage_and_entry(network):
    request = new_request_id()
    async with network.client() as client:
        first = await client.generate("It was a", model=DEMO_MODEL, max_tokens=6, request_id=request)
        balance = await client.balance()
        await network.parts["router-1"].stop()
        await network.add_router()
        with pytest.raises(AlreadyCompleted) as refused:
            await client.generate("It was a", model=DEMO_MODEL, max_tokens=6, request_id=request)
        assert refused.value.details["entry"] == str(first.usage.entry)
        assert refused.value.details["billed_tokens"] == str(first.usage.billed_tokens)
        assert await client.balance() == balance


async def test_resend_while_it_runs_joins_the_same_answer(network):
    request = new_request_id()
    async with network.client() as client:
        both = await asyncio.gather(
            client.generate("It was a", model=DEMO_MODEL, max_tokens=12, request_id=request),
            client.generate("It was a", model=DEMO_MODEL, max_tokens=12, request_id=request),
        )
    assert both[0].text == both[1].text
    assert both[0].usage.entry == both[1].usage.entry


async def test_same_request_id_with_another_prompt_is_refused(network):
    request = new_request_id()
    async with network.client() as client:
        await client.generate("It was a", model=DEMO_MODEL, max_tokens=4, request_id=request)
        with pytest.raises(RequestConflict):
            await client.generate("Emma was", model=DEMO_MODEL, max_tokens=4, request_id=request)


async def test_leaving_the_stream_early_cancels_and_bills_what_was_delivered(network):
    async with network.client() as client:
        before = await client.balance()
        stream = client.stream("It was a", model=DEMO_MODEL, max_tokens=400)
        async with stream:
            async for _ in stream:
                break
            await stream.cancel()
            answer = await stream.result()
        after = await client.balance()
    assert answer.finish == "cancelled"
    assert answer.usage.output_tokens < 400
    assert before.available - after.available == answer.usage.billed_tokens
    assert (await network.audit()).ok


async def test_prompt_of_special_tokens_is_billed_too(network):
    async with network.client() as client:
        before = await client.balance()
        answer = await client.generate("<s>" * 20 + "It was a", model=DEMO_MODEL, max_tokens=4)
        after = await client.balance()
    assert answer.usage.input_tokens == 23 - 7
    assert before.available - after.available == answer.usage.billed_tokens == 16 + 4


async def test_generation_ends_before_its_hold_expires_and_is_billed(network, monkeypatch):
    monkeypatch.setattr("sawyer.router.run.POST_BEFORE_S", 0.1)
    async with network.client() as client:
        answer = await client.generate("It was a", model=DEMO_MODEL, max_tokens=450)
    assert answer.finish == "length"
    assert 0 < answer.usage.output_tokens < 450
    assert answer.usage.billed_tokens == 3 + answer.usage.output_tokens


async def test_many_requests_at_once_each_get_their_own_answer(network):
    async with network.client() as client:
        alone = [await client.generate(prompt, model=DEMO_MODEL, max_tokens=8) for prompt in PROMPTS]
        together = await asyncio.gather(
            *(client.generate(prompt, model=DEMO_MODEL, max_tokens=8) for prompt in PROMPTS * 3)
        )
    assert [each.ids for each in together] == [each.ids for each in alone] * 3


async def test_seeded_sampling_gives_the_same_text_for_the_same_seed(network):
    async with network.client() as client:
        options = {"model": DEMO_MODEL, "max_tokens": 8, "temperature": 0.9, "top_k": 50, "top_p": 0.95}
        first = await client.generate("It was a", seed=7, **options)
        second = await client.generate("It was a", seed=7, **options)
        other = await client.generate("It was a", seed=8, **options)
    assert first.ids == second.ids != other.ids


# --- what is refused ------------------------------------------------------------------------------------------------


def _tokens(balance: BalanceReply) -> tuple[int, int]:
    return balance.available, balance.held


async def _refused_without_a_bill(network, kind: type[Exception], prompt: str, **options: object) -> None:
    async with network.client() as client:
        before = await client.balance()
        with pytest.raises(kind):
            await client.generate(prompt, **{"model": DEMO_MODEL, "max_tokens": 8, **options})
        assert _tokens(await client.balance()) == _tokens(before)
        assert (await client.generate("It was a", model=DEMO_MODEL, max_tokens=2)).usage.output_tokens == 2


async def test_empty_prompt_is_refused_and_nothing_is_billed(network):
    await _refused_without_a_bill(network, PromptEmpty, "")


async def test_prompt_over_the_context_is_refused_and_nothing_is_billed(network):
    await _refused_without_a_bill(network, PromptTooLong, "very " * 600)


async def test_unknown_model_is_refused_and_nothing_is_billed(network):
    await _refused_without_a_bill(network, UnknownModel, "It was a", model="gpt-9")


async def test_request_over_its_own_ceiling_is_refused_and_nothing_is_billed(network):
    await _refused_without_a_bill(network, BudgetTooSmall, "It was a", token_ceiling=5)


async def test_temperature_out_of_range_is_refused_before_anything_is_sent(network):
    await _refused_without_a_bill(network, UsageError, "It was a", temperature=-1.0)


async def test_account_without_a_budget_is_refused(network):
    async with network.client("bob") as client:
        await client.open_account()
        with pytest.raises(BudgetTooSmall):
            await client.generate("It was a", model=DEMO_MODEL, max_tokens=8)


async def test_account_that_was_never_opened_is_refused(network):
    async with network.client("carol") as client:
        with pytest.raises(UnknownAccount):
            await client.generate("It was a", model=DEMO_MODEL, max_tokens=8)


async def test_order_signed_by_another_key_than_the_accounts_is_refused(network, keys):
    async with network.client("alice", keys["mallory"]) as client:
        with pytest.raises(Exception, match="alice"):
            await client.generate("It was a", model=DEMO_MODEL, max_tokens=8)
    async with network.client() as client:
        assert (await client.balance()).held == 0


async def test_request_without_a_router_says_that_nobody_serves(founded):
    async with founded.client() as client:
        with pytest.raises(NobodyServes):
            await client.generate("It was a", model=DEMO_MODEL, max_tokens=8)


async def test_client_outside_its_block_is_told_how_to_use_it(keys):
    with pytest.raises(UsageError, match="not connected"):
        AsyncClient(account="alice", key=keys["alice"]).stream("It was a", model=DEMO_MODEL)


# --- nodes that fail ------------------------------------------------------------------------------------------------


async def test_node_that_vanishes_in_the_middle_changes_nothing(network):
    async with network.client() as client:
        whole = await client.generate("It was a", model=DEMO_MODEL, max_tokens=24)
        stream = client.stream("It was a", model=DEMO_MODEL, max_tokens=24, trace=True)
        async with stream:
            async for _ in stream:
                if len(stream.ids) == 6:
                    await network.parts["node-2"].vanish()
            usage = stream.usage
    assert tuple(stream.ids) == whole.ids
    assert {(each.lost, each.by) for each in usage.takeovers} == {("node-2", "node-1")}
    lost = next(node for node in usage.nodes if node.node == "node-2")
    assert not lost.receipted
    report = await network.audit()
    assert report.ok


async def test_no_replica_left_fails_naming_the_experts_and_bills_nothing(network):
    async with network.client() as client:
        await network.parts["node-1"].vanish()
        await network.parts["node-2"].vanish()
        before = await client.balance()
        with pytest.raises(ExpertUnavailable) as failed:
            await client.generate("It was a", model=DEMO_MODEL, max_tokens=8)
        assert failed.value.experts
        assert all(layer == 0 for layer, _ in failed.value.experts)
        assert _tokens(await client.balance()) == _tokens(before)
    assert (await network.audit()).ok


async def test_draining_node_finishes_its_requests_and_signs_for_them(network, monkeypatch):
    monkeypatch.setattr("sawyer.node.agent.DRAIN_TIMEOUT_S", 30.0)
    async with network.client() as client:
        running = asyncio.create_task(client.generate("It was a", model=DEMO_MODEL, max_tokens=40))
        async with client.stream("Emma was", model=DEMO_MODEL, max_tokens=40) as stream:
            async for _ in stream:
                if len(stream.ids) == 5:
                    network.parts["node-2"].part.stop()
        answer = await running
    for usage in (stream.usage, answer.usage):
        assert all(node.receipted for node in usage.nodes)
    await network.parts["node-2"].task


async def test_latency_of_each_node_is_the_p95_of_the_calls_that_the_router_made_to_it(network):
    async with (
        network.client() as client,
        client.stream("It was a", model=DEMO_MODEL, max_tokens=16, trace=True) as stream,
    ):
        answer = await stream.result()
    took_us: dict[str, list[int]] = {}
    for call in (call for trace in stream.traces for call in trace.calls):
        took_us.setdefault(call.node, []).append(call.round_trip_us)
    body = decode_entry(network.parts["bookkeeper"].part._book.entry_bytes(answer.usage.entry)[0]).body
    assert [each.node for each in body.latencies] == [each.body.node for each in body.receipts] == ["node-1", "node-2"]
    for each in body.latencies:
        calls = sorted(took_us[each.node])
        assert each.p95_us == calls[-(-95 * len(calls) // 100) - 1]
