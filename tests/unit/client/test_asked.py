"""What a program asks with is read whole, or refused in plain words before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

from sawyer.client.asked import messages_of, params_of
from sawyer.errors import EXIT_USAGE, UsageError
from sawyer.schemas.generation import MAX_MESSAGES, MAX_PROMPT_CHARS, GenerateParams

LONG, HALF = "x" * (MAX_PROMPT_CHARS + 1), "a\udcff"


def asked(what: Any, model_defaults: Any = None) -> GenerateParams:
    sampling = {"temperature": None, "top_k": 5}
    return params_of(what, model_defaults=model_defaults, stop=(), sampling=sampling, options={"max_tokens": 1})


@pytest.mark.parametrize(
    ("conversation", "says"),
    [
        (LONG, "over 1,000,000 characters"),
        (HALF, "no characters"),
        ([{"role": "user", "content": LONG}], "over 1,000,000 characters"),
        ([{"role": "user", "content": HALF}], "no characters"),
        ([{"role": "nobody", "content": "x"}], "role"),
        (b"abc", "not a conversation"),
        ({"role": "user", "content": "x"}, "not a conversation"),
        (7, "not a conversation"),
    ],
)
def test_what_is_no_conversation_is_refused_in_plain_words(conversation: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        messages_of(conversation)
    assert refused.value.exit_code == EXIT_USAGE
    assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (LONG, "over 1,000,000 characters"),
        (HALF, "no characters"),
        ([{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1), "1,024 at most"),
        ([], "messages"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_plain_words(what: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        asked(what)
    assert len(refused.value.message) < 200


@pytest.mark.parametrize("names", [5, [[]], [1, "top_k"], "top_k", {"top_k": 1, 2: 3}])
def test_model_defaults_that_are_no_names_are_refused(names: Any) -> None:
    with pytest.raises(UsageError, match="model_defaults"):
        asked("Hi", names)


def test_model_defaults_are_names_or_all_that_nobody_chose() -> None:
    assert asked("Hi").from_model is None
    assert asked("Hi", True).from_model == asked([{"role": "user", "content": "Hi"}]).from_model == ("temperature",)
    assert asked("Hi", {"top_k", "min_p"}).from_model == ("min_p", "top_k")
