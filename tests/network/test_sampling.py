"""Every way to sample, over a real network: the text, ids and logprobs of one machine, and a bill for each token."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from sawyer.engine.answer import Sampled
from sawyer.engine.experts import ExpertPool
from sawyer.engine.local import LocalModel
from sawyer.engine.tokenizer import Tokenizer
from sawyer.engine.trunk import Trunk
from sawyer.errors import AlreadyCompleted
from sawyer.ids import new_request_id
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import DEMO_MODEL
from sawyer.model.layout import all_experts
from sawyer.schemas.generation import GenerateParams
from sawyer.schemas.messages import Trace

PROMPT = "Emma was"


@pytest.fixture(scope="module")
def tokenizer(demo_q4: Artifacts) -> Tokenizer:
    return Tokenizer(demo_q4)


@pytest.fixture(scope="module")
def one_machine(demo_q4: Artifacts) -> LocalModel:
    """The same model with all experts in this process."""
    pool = ExpertPool(demo_q4, all_experts(demo_q4.layout), device="cpu")
    return LocalModel(Trunk(demo_q4), pool, wire_dtype=np.float16)


def local_answer(one_machine: LocalModel, tokenizer: Tokenizer, max_tokens: int, **params: object) -> list[Sampled]:
    asked = GenerateParams(prompt=PROMPT, max_tokens=max_tokens, **params)
    return [*one_machine.answer(tokenizer.encode(PROMPT), asked, tokenizer)]


def text_of(steps: list[Sampled]) -> str:
    return "".join(step.text for step in steps)


@pytest.mark.parametrize(
    ("remote", "local"),
    [
        ({}, {}),
        ({"temperature": 0.9, "seed": 7}, {"temperature_milli": 900, "seed": 7}),
        ({"temperature": 0.8, "min_p": 0.05, "seed": 8}, {"temperature_milli": 800, "min_p_milli": 50, "seed": 8}),
        ({"repetition_penalty": 1.3}, {"repetition_penalty_milli": 1300}),
        (
            {"temperature": 1.1, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2, "seed": 9},
            {
                "temperature_milli": 1100, "top_k": 40, "top_p_milli": 900, "min_p_milli": 20,
                "repetition_penalty_milli": 1200, "seed": 9,
            },
        ),
    ],
    ids=["greedy", "temperature", "min-p", "penalty", "everything"],
)  # fmt: skip
async def test_same_options_and_seed_give_the_text_of_one_machine(network, one_machine, tokenizer, remote, local):
    async with network.client() as client:
        answer = await client.generate(PROMPT, model=DEMO_MODEL, max_tokens=24, **remote)
    steps = local_answer(one_machine, tokenizer, 24, **local)
    assert answer.text == text_of(steps)
    assert list(answer.ids) == [step.token for step in steps if step.billed]


async def test_stop_string_ends_the_text_before_it_and_its_tokens_are_billed(network, one_machine, tokenizer):
    whole = local_answer(one_machine, tokenizer, 40)
    stop = text_of(whole)[40:46]
    steps = local_answer(one_machine, tokenizer, 40, stop=(stop,))
    async with network.client() as client:
        before = await client.balance()
        async with client.stream(PROMPT, model=DEMO_MODEL, max_tokens=40, stop=stop) as stream:
            pieces = [piece async for piece in stream]
        after = await client.balance()
    assert "".join(pieces) == text_of(whole).partition(stop)[0] == text_of(steps)
    assert stream.finish == "stop"
    assert stream.ids == [step.token for step in whole[: len(steps)]], "each once, those of the stop string too"
    usage = stream.usage
    assert usage.output_tokens == len(stream.ids) < 40
    assert before.available - after.available == usage.billed_tokens == usage.input_tokens + len(stream.ids)
    assert after.held == 0
    assert all(node.receipted for node in usage.nodes)
    assert sum(node.rows for node in usage.nodes) == (usage.input_tokens + usage.output_tokens - 1) * 4 * 2
    assert (await network.audit()).ok


async def test_stop_string_in_the_first_token_gives_no_text_and_is_billed(network, one_machine, tokenizer):
    first = local_answer(one_machine, tokenizer, 1)[0].text
    async with network.client() as client:
        answer = await client.generate(PROMPT, model=DEMO_MODEL, max_tokens=8, stop=[first, "never"])
    assert (answer.text, answer.finish, len(answer.ids)) == ("", "stop", 1)
    assert answer.usage.billed_tokens == answer.usage.input_tokens + 1
    assert (await network.audit()).ok


async def test_text_held_back_for_a_stop_string_comes_when_the_tokens_are_spent(network, one_machine, tokenizer):
    whole = text_of(local_answer(one_machine, tokenizer, 6))
    async with (
        network.client() as client,
        client.stream(PROMPT, model=DEMO_MODEL, max_tokens=6, stop=whole + "!") as stream,
    ):
        pieces = [piece async for piece in stream]
    assert (pieces, stream.finish, len(stream.ids)) == ([whole], "length", 6)


async def test_text_held_back_for_a_stop_string_comes_when_cancelled(network, one_machine, tokenizer):
    stop = text_of(local_answer(one_machine, tokenizer, 100))[:255] + "!"
    cancelling: list[asyncio.Task[None]] = []
    async with (
        network.client() as client,
        client.stream(PROMPT, model=DEMO_MODEL, max_tokens=400, stop=stop, trace=True) as stream,
    ):

        def cancel_once(trace: Trace) -> None:
            if trace.step == 3 and not cancelling:
                cancelling.append(asyncio.create_task(stream.cancel()))

        stream.on_trace = cancel_once
        answer = await stream.result()
    assert answer.finish == "cancelled"
    assert answer.text == tokenizer.decode(list(answer.ids))
    assert answer.usage.output_tokens == len(answer.ids) < 400


async def test_logprobs_are_those_of_one_machine(network, one_machine, tokenizer):
    steps = local_answer(one_machine, tokenizer, 12, temperature_milli=900, seed=5, logprobs=4)
    async with network.client() as client:
        answer = await client.generate(PROMPT, model=DEMO_MODEL, max_tokens=12, temperature=0.9, seed=5, logprobs=4)
        without = await client.generate(PROMPT, model=DEMO_MODEL, max_tokens=2)
        alone = await client.generate(PROMPT, model=DEMO_MODEL, max_tokens=2, logprobs=0)
    assert len(answer.logprobs) == len(answer.ids) == 12
    for told, step in zip(answer.logprobs, steps, strict=True):
        assert told.token == step.token == step.logprob.token
        assert told.logprob == pytest.approx(-step.logprob.surprise_micro / 1e6, abs=1e-4)
        assert [token for token, _ in told.top] == [token for token, _ in step.logprob.top]
        assert [each for _, each in told.top] == pytest.approx(
            [-micro / 1e6 for _, micro in step.logprob.top], abs=1e-4
        )
    assert without.logprobs == ()
    assert [each.top for each in alone.logprobs] == [(), ()]


async def test_resend_of_a_stopped_answer_gives_the_same_and_bills_nothing(network, one_machine, tokenizer):
    stop = text_of(local_answer(one_machine, tokenizer, 20))[20:24]
    request = new_request_id()
    options = {"model": DEMO_MODEL, "max_tokens": 20, "stop": [stop], "logprobs": 2, "request_id": request}
    async with network.client() as client:
        first = await client.generate(PROMPT, **options)
        balance = await client.balance()
        again = await client.generate(PROMPT, **options)
        assert (again.text, again.ids, again.logprobs, again.finish) == (
            first.text, first.ids, first.logprobs, first.finish,
        )  # fmt: skip
        assert (first.finish, again.usage, again.repeated) == ("stop", first.usage, True)
        await network.parts["router-1"].stop()
        await network.add_router()
        with pytest.raises(AlreadyCompleted) as refused:
            await client.generate(PROMPT, **options)
        assert refused.value.details["output_tokens"] == str(len(first.ids))
        assert await client.balance() == balance
