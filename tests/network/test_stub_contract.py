"""What a client meets on any network, run over the real one and over `sawyer.testing.StubNetwork`: the double says what
the network says, bills what it bills and refuses what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from sawyer.client.aio import AsyncClient
from sawyer.errors import (
    AlreadyCompleted,
    BudgetTooSmall,
    ExpertUnavailable,
    NobodyServes,
    NotAuthorised,
    PromptEmpty,
    PromptTooLong,
    RequestConflict,
    UnknownAccount,
    UnknownModel,
)
from sawyer.identity.keys import Key
from sawyer.ids import new_request_id
from sawyer.testing import StubNetwork

from .worlds import LONG, PROMPT, RealWorld, StubWorld, World, tokens


@pytest.fixture(params=["stub", "real"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    if request.param == "real":
        monkeypatch.setattr(
            "sawyer.router.dispatch.LAYER_TIMEOUT_S", 5.0
        )  # what a layer in flight waits for lost nodes
        yield RealWorld(request.getfixturevalue("network"))
        return
    with StubNetwork(context_tokens=512) as stub:
        yield StubWorld(stub)


async def nothing_held(client: AsyncClient) -> int:
    """What the account has left, once no request holds anything."""
    async with asyncio.timeout(30):
        while (balance := await client.balance()).held:
            pass
    return balance.available


# --- what is told -----------------------------------------------------------------------------------------------------


async def test_offer_names_shape_and_the_price_that_is_billed(world: World) -> None:
    async with world.client() as client:
        (offer,) = await client.models()
        answer = await client.generate(PROMPT, model=world.model, max_tokens=6)
    assert offer.model == world.model
    assert min(offer.moe_layers, offer.experts, offer.top_k, offer.expert_parameters) > 0
    assert offer.price(answer.usage.input_tokens, answer.usage.output_tokens) == answer.usage.billed_tokens > 0


async def test_account_tells_key_balance_and_grants(world: World) -> None:
    async with world.client() as client:
        billed = (await client.generate(PROMPT, model=world.model, max_tokens=6)).usage.billed_tokens
        account = await client.account()
        balance = await client.balance()
    assert (account.account, account.balance, account.grants) == ("alice", balance, 1)
    (bucket,) = account.buckets
    assert (bucket.granted, bucket.held, bucket.consumed) == (balance.granted, 0, billed)
    assert bucket.available == balance.available == balance.granted - billed
    assert account.opened < bucket.seq < balance.seq


async def test_account_opened_again_is_the_same_and_another_key_is_refused(world: World) -> None:
    async with world.client("bob") as client:
        first, again = await client.open_account(), await client.open_account()
        assert first == again
        account = await client.account()
        assert (account.opened, account.grants, account.buckets) == (first.seq, 0, ())
    async with world.client("bob", Key.generate()) as thief:
        with pytest.raises(NotAuthorised, match="another key"):
            await thief.open_account()


async def test_account_that_was_never_opened_is_unknown(world: World) -> None:
    async with world.client("carol") as client:
        for asking in (client.account, client.balance):
            with pytest.raises(UnknownAccount) as refused:
                await asking()
            assert refused.value.details == {"account": "carol"}
        with pytest.raises(UnknownAccount):
            await client.generate(PROMPT, model=world.model)


# --- what is said and billed ------------------------------------------------------------------------------------------


async def test_answer_comes_in_pieces_and_is_billed_once(world: World) -> None:
    async with world.client() as client:
        before, _ = await tokens(client)
        async with client.stream(PROMPT, model=world.model, max_tokens=8) as stream:
            pieces = [piece async for piece in stream]
        again = await client.generate(PROMPT, model=world.model, max_tokens=8)
        after, held = await tokens(client)
    usage = stream.usage
    assert stream.accepted is not None
    assert stream.accepted.held_tokens == usage.billed_tokens, "all that was held is used: the answer has max_tokens"
    assert (stream.finish, len(stream.ids), usage.input_tokens) == ("length", 8, 3)
    assert "".join(pieces) == again.text
    assert (before - after, held) == (usage.billed_tokens * 2, 0)
    assert sum(node.rows for node in usage.nodes) > 0
    assert all(node.receipted for node in usage.nodes)


async def test_trace_tells_every_row_that_is_billed(world: World) -> None:
    async with world.client() as client, client.stream(PROMPT, model=world.model, max_tokens=3, trace=True) as stream:
        (offer,) = await client.models()
        await stream.result()
    places = [(each.step, each.layer) for each in stream.traces]
    assert len(set(places)) == len(places) == 3 * offer.moe_layers
    assert places == sorted(places)
    assert sum(call.rows for each in stream.traces for call in each.calls) == sum(n.rows for n in stream.usage.nodes)


async def test_stop_string_ends_the_text_before_it_and_logprobs_come_one_a_token(world: World) -> None:
    async with world.client() as client:
        whole = await client.generate(PROMPT, model=world.model, max_tokens=12)
        stop = whole.text[8:11]
        answer = await client.generate(PROMPT, model=world.model, max_tokens=12, stop=stop, logprobs=1)
    assert (answer.text, answer.finish) == (whole.text.partition(stop)[0], "stop")
    assert len(answer.logprobs) == len(answer.ids) == answer.usage.output_tokens < 12
    assert [each.token for each in answer.logprobs] == list(answer.ids)
    assert all(len(each.top) == 1 for each in answer.logprobs)


async def test_cancel_bills_what_was_delivered(world: World) -> None:
    world.pause_after(1)
    async with world.client() as client:
        before, _ = await tokens(client)
        async with client.stream(PROMPT, model=world.model, max_tokens=LONG) as stream:
            async for _ in stream:
                break
            await stream.cancel()
            world.go_on()
            answer = await stream.result()
        after, held = await tokens(client)
    assert answer.finish == "cancelled"
    assert len(answer.ids) == answer.usage.output_tokens < LONG
    assert (before - after, held) == (answer.usage.billed_tokens, 0)


async def test_leaving_the_block_cancels(world: World) -> None:
    world.pause_after(1)
    async with world.client() as client:
        before, _ = await tokens(client)
        async with client.stream(PROMPT, model=world.model, max_tokens=LONG) as stream:
            async for _ in stream:
                break
        world.go_on()
        assert 0 < before - await nothing_held(client) < LONG


# --- sent again -------------------------------------------------------------------------------------------------------


async def test_resend_is_answered_whole_and_not_billed_again(world: World) -> None:
    request = new_request_id()
    async with world.client() as client:
        first = await client.generate(PROMPT, model=world.model, max_tokens=6, request_id=request)
        balance = await client.balance()
        again = await client.generate(PROMPT, model=world.model, max_tokens=6, request_id=request)
        assert (again.text, again.ids, again.usage) == (first.text, first.ids, first.usage)
        assert (first.repeated, again.repeated) == (False, True)
        assert await client.balance() == balance


async def test_resend_while_it_runs_joins_the_same_answer(world: World) -> None:
    request = new_request_id()
    async with world.client() as client:
        both = await asyncio.gather(
            *(client.generate(PROMPT, model=world.model, max_tokens=12, request_id=request) for _ in range(2))
        )
    assert both[0].text == both[1].text
    assert both[0].usage == both[1].usage


async def test_resend_after_the_router_forgot_tells_usage_and_entry(world: World) -> None:
    request = new_request_id()
    async with world.client() as client:
        usage = (await client.generate(PROMPT, model=world.model, max_tokens=6, request_id=request)).usage
        await world.stop_router()
        await world.start_router()
        with pytest.raises(AlreadyCompleted) as refused:
            await client.generate(PROMPT, model=world.model, max_tokens=6, request_id=request)
    assert refused.value.details == {
        "entry": str(usage.entry),
        "input_tokens": str(usage.input_tokens),
        "output_tokens": str(usage.output_tokens),
        "billed_tokens": str(usage.billed_tokens),
    }


async def test_request_id_with_another_prompt_is_a_conflict(world: World) -> None:
    request = new_request_id()
    async with world.client() as client:
        await client.generate(PROMPT, model=world.model, max_tokens=4, request_id=request)
        with pytest.raises(RequestConflict):
            await client.generate("Emma was", model=world.model, max_tokens=4, request_id=request)


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "prompt", "options"),
    [
        (PromptEmpty, "", {}),
        (PromptTooLong, "very " * 600, {}),
        (PromptTooLong, PROMPT, {"max_tokens": 511}),
        (BudgetTooSmall, PROMPT, {"token_ceiling": 5}),
        (UnknownModel, PROMPT, {"model": "gpt-9"}),
    ],
    ids=["empty", "long", "long with its answer", "over its ceiling", "unknown model"],
)
async def test_refusal_is_typed_hints_and_bills_nothing(
    world: World, error: type[Exception], prompt: str, options: dict[str, object]
) -> None:
    async with world.client() as client:
        before = await tokens(client)
        with pytest.raises(error) as refused:
            await client.generate(prompt, **{"model": world.model, "max_tokens": 8, **options})
        assert refused.value.hint
        assert await tokens(client) == before
        assert (await client.generate(PROMPT, model=world.model, max_tokens=2)).usage.output_tokens == 2


async def test_account_without_a_budget_is_refused_and_told_the_price(world: World) -> None:
    async with world.client("bob") as client:
        await client.open_account()
        with pytest.raises(BudgetTooSmall) as refused:
            await client.generate(PROMPT, model=world.model, max_tokens=8)
    assert refused.value.details == {"needed": "11", "available": "0"}


async def test_order_signed_by_another_key_than_the_accounts_is_refused(world: World) -> None:
    async with world.client() as alice:
        before = await tokens(alice)
        async with world.client("alice", Key.generate()) as thief:
            with pytest.raises(NotAuthorised, match="alice"):
                await thief.generate(PROMPT, model=world.model, max_tokens=8)
        assert await tokens(alice) == before


# --- what fails -------------------------------------------------------------------------------------------------------


async def test_experts_that_nobody_serves_are_named_and_nothing_is_billed(world: World) -> None:
    async with world.client() as client:
        before = await tokens(client)
        await world.break_experts()
        with pytest.raises(ExpertUnavailable) as failed:
            await client.generate(PROMPT, model=world.model, max_tokens=8)
        assert failed.value.experts
        assert failed.value.hint
        assert await tokens(client) == before


async def test_break_in_the_middle_comes_after_the_text_so_far_and_nothing_is_billed(world: World) -> None:
    world.pause_after(1)
    async with world.client() as client:
        before = await tokens(client)
        async with client.stream(PROMPT, model=world.model, max_tokens=LONG) as stream:
            pieces = aiter(stream)
            assert await anext(pieces)
            await world.break_experts()
            world.go_on()
            with pytest.raises(ExpertUnavailable):
                await stream.result()
        assert stream.usage is None
        assert await tokens(client) == before


async def test_model_without_a_router_says_that_nobody_serves(world: World) -> None:
    async with world.client() as client:
        await world.stop_router()
        with pytest.raises(NobodyServes, match=world.model) as failed:
            await client.generate(PROMPT, model=world.model, max_tokens=8)
        assert failed.value.hint
        await world.start_router()
        assert (await client.generate(PROMPT, model=world.model, max_tokens=2)).usage.output_tokens == 2
