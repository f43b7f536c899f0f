"""Conversations on any network, real or stub: answered as the model's template writes them, billed like any prompt."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sawyer.engine.conversing import TemplateProcess
from sawyer.errors import (
    ChatTemplateBroken,
    ConversationRefused,
    NoChatTemplate,
    PromptTooLong,
    RequestConflict,
    SawyerError,
)
from sawyer.ids import new_request_id
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import DEMO_MODEL, demo_checkpoint
from sawyer.model.split import split
from sawyer.testing import StubNetwork

from .conftest import Network, founding
from .worlds import PROMPT, RealWorld, StubWorld, World, tokens

TALK = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who was Emma?"},
    {"role": "assistant", "content": "A heroine."},
    {"role": "user", "content": "And her father?"},
)
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' and loop.first %}{{ raise_exception('no') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
)
TALK_TEXT = "system: Be brief.\nuser: Who was Emma?\nassistant: A heroine.\nuser: And her father?\nassistant: "


@pytest.fixture(scope="session")
def talking_demo(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """The demo model, as if it had been taught to read conversations."""
    folder = tmp_path_factory.mktemp("talking")
    checkpoint = Path(shutil.copytree(demo_checkpoint(), folder / "checkpoint"))
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    (checkpoint / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.5, "eos_token_id": 0}')
    split(checkpoint, folder / "split", model=DEMO_MODEL, format="q4")
    return Artifacts.open(folder / "split")


@pytest.fixture(params=["stub", "real"])
async def talker(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """A world whose model has a chat template."""
    if request.param == "stub":
        with StubNetwork(context_tokens=512) as stub:
            yield StubWorld(stub)
        return
    artifacts = request.getfixturevalue("talking_demo")
    async with founding(request.getfixturevalue("tmp_path"), artifacts) as network:
        await network.add_node("node-1", 0, 1)
        await network.add_router()
        yield RealWorld(network)


async def test_conversation_is_answered_as_the_text_that_the_template_makes_of_it(talker: World) -> None:
    async with talker.client() as client:
        before, _ = await tokens(client)
        answer = await client.chat(TALK, model=talker.model, max_tokens=6, temperature=0)
        as_text = await client.generate(TALK_TEXT, model=talker.model, max_tokens=6)
        async with client.stream(TALK, model=talker.model, max_tokens=6, temperature=0) as stream:
            streamed = await stream.result()
        after, held = await tokens(client)
    assert answer.text == streamed.text == as_text.text
    assert answer.usage.input_tokens == as_text.usage.input_tokens > 10
    assert (before - after, held) == (3 * answer.usage.billed_tokens, 0)


async def test_text_alone_is_one_turn_of_the_user(talker: World) -> None:
    async with talker.client() as client:
        one = await client.chat("Who was Emma?", model=talker.model, max_tokens=4, seed=3)
        same = await client.chat(
            [{"role": "user", "content": "Who was Emma?"}], model=talker.model, max_tokens=4, seed=3
        )
    assert (one.text, one.usage.input_tokens) == (same.text, same.usage.input_tokens)


async def test_turns_that_the_template_does_not_take_are_refused_and_cost_nothing(talker: World) -> None:
    async with talker.client() as client:
        before = await tokens(client)
        with pytest.raises(ConversationRefused) as refused:
            await client.chat([{"role": "assistant", "content": "I"}], model=talker.model)
        assert refused.value.hint
        with pytest.raises(PromptTooLong):
            await client.chat("very " * 600, model=talker.model)
        assert await tokens(client) == before


async def test_conversation_sent_again_is_not_billed_again_and_another_one_is_a_conflict(talker: World) -> None:
    request = new_request_id()
    async with talker.client() as client:
        first = await client.chat(TALK, model=talker.model, max_tokens=4, request_id=request)
        again = await client.chat(TALK, model=talker.model, max_tokens=4, request_id=request)
        assert (again.text, again.usage, again.repeated) == (first.text, first.usage, True)
        with pytest.raises(RequestConflict):
            await client.chat(TALK[:2], model=talker.model, max_tokens=4, request_id=request)


def test_stub_of_a_model_without_a_template_refuses_conversations_and_goes_on_with_prompts() -> None:
    with StubNetwork(chats=False) as stub, stub.client() as client:
        with pytest.raises(NoChatTemplate):
            client.chat("Hi", model=stub.model)
        assert client.generate("Hi", model=stub.model).text == "Hi"


async def test_model_without_a_template_refuses_conversations_and_goes_on_with_prompts(network) -> None:
    async with network.client() as client:
        with pytest.raises(NoChatTemplate) as refused:
            await client.chat("Hi", model=DEMO_MODEL)
        assert "sawyer generate" in refused.value.hint
        (router,) = await client.routers()
        assert (router.chat, router.generation) == (False, None)
        assert (await client.generate("Hi", model=DEMO_MODEL, max_tokens=2)).usage.output_tokens == 2


async def test_conversations_are_sampled_as_the_maker_recommends_and_options_decide(
    founded_with, talking_demo: Artifacts
) -> None:
    network = await founded_with(talking_demo)
    await network.add_node("node-1", 0, 1)
    await network.add_router()
    async with network.client() as client:

        async def text(asked: object, **options: object) -> str:
            return (await client.generate(asked, model=DEMO_MODEL, max_tokens=8, seed=7, **options)).text

        assert await text(TALK) == await text(TALK_TEXT, temperature=0.5)
        assert await text(TALK, temperature=0) == await text(TALK, model_defaults=False) == await text(TALK_TEXT)
        assert await text(PROMPT, model_defaults=True) == await text(PROMPT, temperature=0.5)
        assert await text(PROMPT, model_defaults=["temperature"], temperature=9) == await text(PROMPT, temperature=0.5)
        (router,) = await client.routers()
    assert router.chat
    assert router.generation is not None
    assert router.generation.temperature_milli == 500


@pytest.fixture
async def talking(founded_with, talking_demo: Artifacts) -> Network:
    """A network of the model that reads conversations."""
    network = await founded_with(talking_demo)
    await network.add_node("node-1", 0, 1)
    await network.add_router()
    return network


async def test_router_that_fails_at_a_conversation_says_so_and_takes_the_request_again(talking, monkeypatch) -> None:
    def fail(*_: object) -> str:
        raise ValueError("nobody thought of this")

    request = new_request_id()
    async with talking.client() as client:
        before = await tokens(client)
        with monkeypatch.context() as broken:
            broken.setattr(TemplateProcess, "render", fail)
            with pytest.raises(SawyerError, match=r"internal error \(ValueError\)"):
                await client.chat(TALK, model=DEMO_MODEL, max_tokens=2, request_id=request)
        assert await tokens(client) == before
        answer = await client.chat(TALK, model=DEMO_MODEL, max_tokens=2, request_id=request)
        assert (answer.usage.output_tokens, answer.repeated) == (2, False)


async def test_template_that_is_broken_is_run_once_for_a_request(talking, monkeypatch) -> None:
    asked = []

    def refuse(*_: object) -> str:
        asked.append(1)
        raise ChatTemplateBroken("it never worked")

    monkeypatch.setattr(TemplateProcess, "render", refuse)
    async with talking.client() as client:
        with pytest.raises(ChatTemplateBroken):
            await client.chat(TALK, model=DEMO_MODEL, max_tokens=2)
    assert asked == [1]


async def test_conversation_that_leaves_no_stand_in_is_refused_and_others_are_answered(talking) -> None:
    engine = talking.parts["router-1"].part._engine
    special = engine.tokenizer.raw.id_to_token(min(engine.tokenizer.special))
    evil = special + "".join(map(chr, range(0xF0000, 0xFFFFE)))
    object.__setattr__(engine, "layout", engine.layout.model_copy(update={"context": 4096}))
    async with talking.client() as client:
        with pytest.raises(ConversationRefused, match="too many special tokens"):
            await client.chat(evil, model=DEMO_MODEL, max_tokens=1)
        assert (await client.chat(TALK, model=DEMO_MODEL, max_tokens=2)).usage.output_tokens == 2
