"""Choosing the next token."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sawyer.engine.sampling import Sampler
from sawyer.errors import VerificationError
from sawyer.schemas.messages import GenerateParams

LOGITS = np.array([1.0, 3.0, 2.0, 3.0, -1.0, 0.5], np.float32)
logit_rows = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40).map(lambda row: np.array(row, np.float32))


def sampler(**params: Any) -> Sampler:
    return Sampler(GenerateParams(prompt="", max_tokens=1, **params))


def test_greedy_picks_the_lowest_of_equal_best() -> None:
    assert sampler().pick(LOGITS) == 1


@given(logit_rows, st.integers(0, 1000))
def test_greedy_ignores_seed_and_limits(row: NDArray[np.float32], seed: int) -> None:
    assert sampler(seed=seed, top_k=3, top_p_milli=500).pick(row) == int(row.argmax())


@given(logit_rows, st.integers(1, 3000), st.integers(0, 50), st.integers(1, 1000), st.integers(0, 2**53 - 1))
def test_same_seed_gives_the_same_choices(
    row: NDArray[np.float32], temperature: int, top_k: int, top_p: int, seed: int
) -> None:
    params = {"temperature_milli": temperature, "top_k": top_k, "top_p_milli": top_p, "seed": seed}
    first, second = sampler(**params), sampler(**params)
    assert [first.pick(row) for _ in range(5)] == [second.pick(row) for _ in range(5)]


@given(logit_rows, st.integers(1, 3000), st.integers(1, 10), st.integers(0, 100))
def test_top_k_picks_among_the_k_best_lowest_ids_first(
    row: NDArray[np.float32], temperature: int, top_k: int, seed: int
) -> None:
    best = sorted(range(len(row)), key=lambda token: (-row[token], token))[:top_k]
    picker = sampler(temperature_milli=temperature, top_k=top_k, seed=seed)
    assert all(picker.pick(row) in best for _ in range(5))


@given(logit_rows, st.integers(100, 3000), st.integers(1, 999), st.integers(0, 100))
def test_top_p_picks_among_the_fewest_tokens_that_reach_p(
    row: NDArray[np.float32], temperature: int, top_p: int, seed: int
) -> None:
    scaled = (row.astype(np.float64) - row.max()) * 1000 / temperature
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    mass = np.cumsum(np.exp(scaled[order]))
    fewest = int((mass < (top_p / 1000 - 1e-9) * mass[-1]).sum()) + 1
    picker = sampler(temperature_milli=temperature, top_p_milli=top_p, seed=seed)
    allowed = (
        order[: fewest + 1]
        if fewest < len(order) and mass[fewest - 1] < (top_p / 1000 + 1e-9) * mass[-1]
        else order[:fewest]
    )
    assert all(picker.pick(row) in allowed for _ in range(5))


def test_tiny_top_p_is_greedy() -> None:
    picker = sampler(temperature_milli=5000, top_p_milli=1)
    assert {picker.pick(LOGITS) for _ in range(50)} == {1}


def test_frequencies_follow_the_softmax_of_scaled_logits() -> None:
    picker = sampler(temperature_milli=2000, seed=4)
    draws = 20_000
    counts = Counter(picker.pick(LOGITS) for _ in range(draws))
    expected = np.exp(LOGITS / 2) / np.exp(LOGITS / 2).sum()
    for token, share in enumerate(expected):
        assert counts[token] / draws == pytest.approx(share, abs=0.015)


def test_other_seeds_give_other_choices() -> None:
    assert len({sampler(temperature_milli=1000, seed=seed).pick(LOGITS) for seed in range(40)}) > 1


def test_minus_infinity_is_never_picked() -> None:
    row = np.array([-np.inf, 0.0, -np.inf], np.float32)
    picker = sampler(temperature_milli=1000, top_k=3)
    assert {picker.pick(row) for _ in range(20)} == {1}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 700])
def test_logits_that_are_not_finite_are_refused(bad: float, temperature: int) -> None:
    row = LOGITS.copy()
    row[3] = bad
    with pytest.raises(VerificationError, match="not finite"):
        sampler(temperature_milli=temperature).pick(row)
