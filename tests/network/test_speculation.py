"""Guesses change no token, no bill and no receipt, whoever is there to be asked."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from sawyer.engine.drafting import Drafter, Guess
from sawyer.errors import ExpertUnavailable
from sawyer.router import speculating

ROUND = "and the rain fell on the hill, and the rain fell on the sea, " * 6
ORDINARY = '"My dear Mr. Bennet," said his lady to him one day, '
ASKED = [
    {"prompt": ROUND, "max_tokens": 60},
    {"prompt": ORDINARY, "max_tokens": 40},
    {"prompt": ROUND, "max_tokens": 40, "temperature": 0.8, "top_p": 0.9, "seed": 7},
    {"prompt": ROUND, "max_tokens": 40, "repetition_penalty": 1.2, "logprobs": 2},
    {"prompt": ROUND, "max_tokens": 40, "stop": " the"},
    {"prompt": ORDINARY, "max_tokens": 1},
    {"prompt": ORDINARY, "max_tokens": 2},
]


@pytest.fixture
def guesses_always(monkeypatch):
    """As many guesses as may be, however often they are wrong."""
    monkeypatch.setattr(speculating, "RIGHT", {2: 1.0, 3: 1.0, 4: 1.0})
    monkeypatch.setattr(speculating, "LEARNT", 0.0)
    monkeypatch.setattr(speculating.Pace, "row_share", lambda _: 0.0)


@asynccontextmanager
async def streamed(client, model, **options):
    options = dict(options)
    async with client.stream(options.pop("prompt"), model=model, **options) as stream:
        yield stream


async def said(client, model, **options):
    async with streamed(client, model, **options) as stream:
        text = "".join([piece async for piece in stream])
    return text, stream.ids, stream.logprobs, stream.usage


@pytest.mark.usefixtures("guesses_always")
async def test_every_answer_and_bill_is_the_same_with_guesses_and_without(network):
    drafted = accepted = 0
    async with network.client() as client:
        for options in ASKED:
            without = await said(client, network.model, speculate=False, **options)
            guessed = await said(client, network.model, **options)
            assert guessed[:3] == without[:3]
            assert guessed[3].billed_tokens == without[3].billed_tokens
            rows = [sum(node.rows for node in usage.nodes) for usage in (guessed[3], without[3])]
            assert rows[0] == rows[1], "what was guessed wrong is in no receipt"
            assert all(node.receipted for node in guessed[3].nodes)
            assert (without[3].speculative, without[3].drafted_tokens) == (False, 0)
            assert guessed[3].speculative
            drafted += guessed[3].drafted_tokens
            accepted += guessed[3].accepted_tokens
    assert 0 < accepted < drafted, "some were right and some were wrong"
    assert (await network.audit()).ok


@pytest.mark.usefixtures("guesses_always")
async def test_two_requests_at_once_guess_and_say_what_each_says_alone(network):
    async with network.client() as client:
        alone = [await said(client, network.model, speculate=False, **ASKED[n]) for n in (0, 2)]
        both = await asyncio.gather(*(said(client, network.model, **ASKED[n]) for n in (0, 2)))
    assert [each[:3] for each in both] == [each[:3] for each in alone]
    assert (await network.audit()).ok


async def test_router_that_may_not_guess_does_not(founded):
    await founded.add_node("node-1", 0, 1)
    await founded.add_router(speculate=False)
    async with founded.client() as client:
        *_, usage = await said(client, founded.model, **ASKED[0])
    assert (usage.speculative, usage.drafted_tokens) == (False, 0)


@pytest.mark.usefixtures("guesses_always")
async def test_node_that_vanishes_amid_guesses_changes_nothing(network):
    await network.add_node("node-3", 0, 1)
    await network.router_sees("node-1", "node-2", "node-3")
    async with network.client() as client:
        expected = await said(client, network.model, speculate=False, **ASKED[0])
        async with streamed(client, network.model, **ASKED[0]) as stream:
            pieces = []
            async for piece in stream:
                pieces.append(piece)
                if len(pieces) == 3:
                    await network.parts["node-1"].vanish()
    assert ("".join(pieces), stream.ids) == expected[:2]
    assert stream.usage.billed_tokens == expected[3].billed_tokens
    assert (await network.audit()).ok


@pytest.mark.usefixtures("guesses_always")
async def test_expert_that_only_a_wrong_guess_needs_fails_nothing(founded, monkeypatch):
    """The only node with half of the experts refuses rows that nobody will use."""
    await founded.add_node("node-1", 0, 1)
    running = await founded.add_router()
    monkeypatch.setattr(Drafter, "guess", lambda self, most: Guess(4, (1,) * most) if most else None)
    dispatcher = running.part._dispatcher
    answered = dispatcher.layer

    async def without_guesses(shares, layer, hidden, work):
        answers = await answered(shares, layer, hidden, work)
        if len(shares) > 1 and layer == 2:
            answers.failed[1] = ExpertUnavailable("layer 2: no answer for expert 1", experts=((2, 1),))
        return answers

    async with founded.client() as client:
        expected = await said(client, founded.model, speculate=False, **ASKED[1])
        monkeypatch.setattr(dispatcher, "layer", without_guesses)
        got = await said(client, founded.model, **ASKED[1])
    assert got[:3] == expected[:3]
    assert got[3].drafted_tokens > 0
    assert (await founded.audit()).ok
