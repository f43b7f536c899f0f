"""What the sampling options mean together."""

from __future__ import annotations

from typing import Any

import pytest

from sawyer.cli.sampling import Sampling, chosen_sampling
from sawyer.errors import UsageError


def chosen(default: float = 0.0, **given: Any) -> Sampling:
    plain: dict[str, Any] = {
        "max_tokens": 64, "temperature": None, "greedy": False, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
        "repetition_penalty": 1.0, "stop": None, "seed": None,
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
