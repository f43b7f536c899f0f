"""What a base model is shown of a conversation, and what is forgotten when it no longer fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.cli.conversation import Conversation, Dialogue, Turn
from sawyer.errors import EXIT_USAGE, PromptTooLong, UsageError
from sawyer.schemas.generation import MAX_MESSAGES, MAX_PROMPT_CHARS, GenerateParams


def _refused(prompt_tokens: int, context: int) -> PromptTooLong:
    return PromptTooLong("too long", details={"prompt_tokens": str(prompt_tokens), "context": str(context)})


def _talk(turns: int, length: int = 10) -> Conversation:
    return Conversation([Turn("x" * (length // 2), "y" * (length // 2)) for _ in range(turns)])


def test_prompt_is_all_turns_and_what_is_said_now() -> None:
    talk = Conversation([Turn("It was", " late.\n"), Turn("She", " slept.")])
    assert talk.prompt("He") == "It was late.\n\nShe slept.\n\nHe"


def test_transcript_of_nothing_is_empty() -> None:
    assert Conversation().transcript() == ""


def test_forgotten_turns_are_not_shown_and_stay_in_the_transcript() -> None:
    talk = Conversation([Turn("a", "b"), Turn("c", "d")], forgotten=1)
    assert talk.prompt("e") == "cd\n\ne"
    assert talk.transcript() == "ab\n\ncd\n"


def test_take_back_removes_the_last_turn_and_nothing_when_there_is_none() -> None:
    talk = Conversation([Turn("a", "b")], forgotten=1)
    assert talk.take_back() == Turn("a", "b")
    assert talk.forgotten == 0
    assert talk.take_back() is None


def test_shorten_forgets_as_many_turns_as_the_tokens_ask_for() -> None:
    talk = _talk(10)  # 10 turns of 12 characters with what is between them, and 12 that are said now
    assert len(talk.prompt("z" * 12)) == 132
    assert talk.shorten(_refused(132, 110), "z" * 12, max_tokens=8) == 3  # 30 tokens over, a character each
    assert talk.forgotten == 3


def test_shorten_without_numbers_forgets_half() -> None:
    talk = _talk(10)
    assert talk.shorten(PromptTooLong("too long"), "z" * 12, max_tokens=8) == 6


def test_shorten_of_a_single_line_forgets_nothing() -> None:
    assert Conversation().shorten(_refused(600, 512), "very long", max_tokens=8) == 0


@pytest.mark.parametrize(
    "details", [{"prompt_tokens": "many", "context": "512"}, {"prompt_tokens": "0", "context": "1"}]
)
def test_shorten_survives_numbers_that_are_none(details: dict[str, str]) -> None:
    assert _talk(4).shorten(PromptTooLong("too long", details=details), "z", max_tokens=8) > 0


@given(turns=st.integers(1, 30), tokens=st.integers(1, 10_000), context=st.integers(1, 10_000))
def test_shorten_always_comes_to_an_end(turns: int, tokens: int, context: int) -> None:
    talk = _talk(turns)
    calls = 0
    while talk.shorten(_refused(tokens, context), "z", max_tokens=1):
        calls += 1
    assert 1 <= calls <= turns
    assert talk.forgotten == turns


# --- with roles -------------------------------------------------------------------------------------------------------


def test_dialogue_is_the_system_message_the_turns_shown_and_what_is_said_now() -> None:
    talk = Dialogue([Turn("a", "b"), Turn("c", "d")], forgotten=1, system="be brief")
    shown = [(each.role, each.content) for each in talk.prompt("e")]
    assert shown == [("system", "be brief"), ("user", "c"), ("assistant", "d"), ("user", "e")]
    assert [each.role for each in Dialogue().prompt("e")] == ["user"]


def test_transcript_of_a_dialogue_names_who_said_what() -> None:
    talk = Dialogue([Turn("a", " b\n"), Turn("c", "d")], forgotten=1, system="be brief")
    assert talk.transcript() == "System: be brief\n\nUser: a\n\nAssistant: b\n\nUser: c\n\nAssistant: d\n"
    assert Dialogue().transcript() == ""


def test_shorten_of_a_dialogue_forgets_the_oldest_turns_and_never_the_system_message() -> None:
    talk = Dialogue([Turn("x" * 50, "y" * 50) for _ in range(4)], system="be brief")
    while talk.shorten(_refused(500, 100), "z", max_tokens=8):
        pass
    assert [each.role for each in talk.prompt("z")] == ["system", "user"]
    assert len(talk.turns) == 4


@pytest.mark.parametrize("system", ["", "be brief"])
def test_dialogue_of_more_turns_than_can_be_asked_shows_the_last_and_keeps_the_system_message(system: str) -> None:
    talk = Dialogue([Turn(str(n), "b") for n in range(MAX_MESSAGES)], system=system)
    shown = GenerateParams(messages=talk.prompt("z"), max_tokens=1).messages or ()
    roles = [each.role for each in shown]
    assert MAX_MESSAGES - 2 <= len(shown) <= MAX_MESSAGES
    assert roles[: len(roles) % 2 == 0] == ["system"] * bool(system)
    assert [each.content for each in shown[-3:]] == [str(MAX_MESSAGES - 1), "b", "z"]
    assert talk.shorten(_refused(500, 400), "z", max_tokens=1)
    assert len(talk.prompt("z")) < len(shown)


@pytest.mark.parametrize(
    ("said", "says"), [("a\udcff", "no characters"), ("x" * (MAX_PROMPT_CHARS + 1), "over 1,000,000 characters")]
)
def test_what_is_no_message_is_told_in_plain_words(said: str, says: str) -> None:
    for talk, line in ((Dialogue(), said), (Dialogue(system=said), "Hi")):
        with pytest.raises(UsageError, match=says) as refused:
            talk.prompt(line)
        assert refused.value.exit_code == EXIT_USAGE
