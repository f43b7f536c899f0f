"""What the sampling options mean together."""

from __future__ import annotations

from typing import Any

import pytest

from sawyer.cli.sampling import Sampling, chosen_sampling, described
from sawyer.errors import UsageError
from sawyer.schemas.models import GenerationDefaults


def chosen(default: float = 0.0, **given: Any) -> Sampling:
    plain: dict[str, Any] = {
        "max_tokens": 64, "temperature": None, "greedy": False, "top_k": None, "top_p": None, "min_p": None,
        "repetition_penalty": None, "stop": None, "seed": None,
    }  # fmt: skip
    return chosen_sampling(**{**plain, **given}, default_temperature=default)


@pytest.mark.parametrize(
    ("given", "default", "temperature"),
    [
        ({}, 0.0, 0.0),
        ({}, 0.8, 0.8),
        ({"greedy": True}, 0.8, 0.0),
        ({"greedy": True, "seed": 7}, 0.8, 0.0),
        ({"temperature": 0.0}, 0.8, 0.0),
        ({"temperature": 0.3}, 0.8, 0.3),
        ({"seed": 7}, 0.0, 1.0),
        ({"top_k": 5}, 0.0, 1.0),
        ({"top_p": 0.9}, 0.0, 1.0),
        ({"min_p": 0.1}, 0.0, 1.0),
        ({"top_k": 5}, 0.8, 0.8),
        ({"repetition_penalty": 1.2}, 0.0, 0.0),
    ],
)
def test_temperature_follows_from_what_was_given(given: dict[str, Any], default: float, temperature: float) -> None:
    assert chosen(default, **given).temperature == temperature


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"greedy": True, "temperature": 1.0}, "exclude each other"),
        ({"greedy": True, "top_p": 0.5}, "--top-p"),
        ({"temperature": 0.0, "min_p": 0.5}, "--min-p"),
    ],
)
def test_options_that_exclude_each_other_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        chosen(**given)


def test_seed_is_drawn_only_where_none_was_given() -> None:
    assert chosen(seed=7).options()["seed"] == 7
    drawn = {chosen(temperature=1.0).options()["seed"] for _ in range(8)}
    assert len(drawn) > 1


def test_only_what_nobody_chose_is_left_to_the_model_and_only_where_it_may() -> None:
    sampling = chosen(0.8, top_p=1.0, repetition_penalty=1.2)
    assert sampling.left == ("min_p", "temperature", "top_k")
    assert sampling.options(model_defaults=True)["model_defaults"] == sampling.left
    assert sampling.options()["model_defaults"] == ()
    assert "temperature" not in chosen(greedy=True).left
    assert (sampling.temperature, sampling.top_p, sampling.repetition_penalty) == (0.8, 1.0, 1.2)


def test_what_a_maker_recommends_is_said_in_a_few_words() -> None:
    assert described(GenerationDefaults(temperature_milli=600, top_k=20, top_p_milli=950)) == (
        "temperature 0.6, top-k 20, top-p 0.95"
    )
    assert described(GenerationDefaults()) == described(None) == ""
