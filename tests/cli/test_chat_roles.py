"""Conversations with a model that was taught to read them: the demo model with a chat template of its own."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sawyer.model.catalog import demo_checkpoint

from .conftest import Done, Zygote, runner

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and m.content == 'refuse' %}{{ raise_exception('no') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
)


@pytest.fixture(scope="module")
def talking(sawyer: Callable[..., Done], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a network that runs while this module's tests do; alice has a budget there."""
    folder = tmp_path_factory.mktemp("talking")
    checkpoint, home = shutil.copytree(demo_checkpoint(), folder / "checkpoint"), folder / "home"
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    (checkpoint / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.5, "eos_token_id": 0}')
    done = sawyer("models", "split", checkpoint, "--name", "austen-chat", "--out", folder / "split")
    assert done.code == 0, done.err
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    done = sawyer("up", "-d", folder / "split", "--listen", listen, "--account", "alice", "--home", home)
    assert done.code == 0, done.err
    yield home
    sawyer("down", "--home", home)


@pytest.fixture
def alice(zygote: Zygote, talking: Path, tmp_path: Path) -> Callable[..., Done]:
    return runner(zygote, tmp_path, SAWYER_HOME=str(talking), SAWYER_ACCOUNT="alice")


def test_chat_keeps_roles_and_shows_the_model_what_its_template_makes_of_them(alice, tmp_path):
    file = tmp_path / "saved.txt"
    said = f"Who was Emma?\nAnd you?\n/save {file}\n"
    done = alice("chat", "--greedy", "--max-tokens", 6, "--system", "Be brief.", text=said)
    assert done.code == 0, done.err
    prompt = "system: Be brief.\nuser: Who was Emma?\nassistant:"
    first = alice("generate", prompt, "--max-tokens", 6).out
    second = alice("generate", f"{prompt} {first}\nuser: And you?\nassistant:", "--max-tokens", 6).out
    assert done.out == f"{first}\n{second}\n"
    assert "it answers in turns; its maker recommends temperature 0.5" in done.err
    saved = file.read_text()
    assert saved.startswith(f"System: Be brief.\n\nUser: Who was Emma?\n\nAssistant: {first.strip()}\n\nUser: And you?")


def test_generate_chat_answers_one_message_as_the_maker_recommends(alice):
    sampled = ("--max-tokens", 6, "--seed", 7)
    answer = alice("generate", "--chat", "Who was Emma?", *sampled).out
    assert answer == alice("generate", "user: Who was Emma?\nassistant:", "--temperature", 0.5, *sampled).out


def test_message_that_is_too_long_is_refused_in_plain_words(alice):
    done = alice("generate", "--chat", "-", text="x" * 1_000_001)
    assert (done.code, done.out) == (2, "")
    assert "the text is over 1,000,000 characters" in done.err


def test_conversation_that_the_template_refuses_says_why(alice):
    done = alice("generate", "--chat", "Hi", "--system", "refuse")
    assert (done.code, done.out) == (2, "")
    assert "takes no conversation like this: no" in done.err
    assert "hint:" in done.err


def test_chat_over_a_full_context_forgets_the_oldest_turns_and_keeps_the_system_message(alice):
    line = "She went to the house and looked at the garden of her uncle, and thought of nothing else.\n"
    done = alice("chat", "--max-tokens", 8, "--system", "Be brief.", text=(line[:-1] * 8 + "\n") * 4)
    assert done.code == 0, done.err
    assert "the context is full: the oldest turn" in done.err


def test_system_message_without_a_conversation_is_refused(alice):
    done = alice("generate", "x", "--system", "Be brief.")
    assert done.code == 2
    assert "Add --chat" in done.err


def test_status_tells_what_the_model_was_taught(alice):
    (router,) = alice("status", "--json").json["routers"]
    assert router["chat"] is True
    assert {name: said for name, said in router["generation"].items() if said is not None} == {"temperature_milli": 500}
