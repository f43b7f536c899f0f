"""Choosing the next token."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sawyer.engine.sampling import Sampler, logprob
from sawyer.errors import VerificationError
from sawyer.schemas.generation import GenerateParams

LOGITS = np.array([1.0, 3.0, 2.0, 3.0, -1.0, 0.5], np.float32)


def rows_of(reach: int) -> st.SearchStrategy[NDArray[np.float32]]:
    """Logits from -reach to reach, in steps that are exact in float32, as are their differences."""
    logit = st.integers(-reach * 64, reach * 64).map(lambda steps: steps / 64)
    return st.lists(logit, min_size=1, max_size=40).map(lambda row: np.array(row, np.float32))


logit_rows, close_rows = rows_of(50), rows_of(2)
min_ps = st.sampled_from([0, 1, 50, 300, 1000])
GRID = 2000


def sampler(*, seen: list[int] | None = None, **params: Any) -> Sampler:
    return Sampler(GenerateParams(prompt="", max_tokens=1, **params), seen or [])


def softmax(row: NDArray[np.float64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.exp(row - row.max())
    return shares / shares.sum()


def reference(row: NDArray[np.float32], temperature: float, top_k: int, top_p: float, min_p: float) -> dict[int, float]:
    """Id -> probability, by the letter: one limit after the other over plain lists, as transformers' processors are
    defined. A token right on the edge of a limit belongs to neither side here: rounding decides it."""
    scaled = row.astype(np.float64) / temperature
    order = sorted(range(len(row)), key=lambda token: (-scaled[token], token))
    left = order[:top_k] if top_k else order
    if top_p < 1:
        shares = softmax(scaled[left])
        before = [float(shares[:place].sum()) for place in range(len(left))]
        assume(all(abs(each - top_p) > 1e-9 for each in before))
        left = [token for token, mass in zip(left, before, strict=True) if mass < top_p]
    shares = softmax(scaled[left])
    assume(all(abs(share - min_p * shares.max()) > 1e-12 or share == shares.max() for share in shares))
    left = [token for token, share in zip(left, shares, strict=True) if share >= min_p * shares.max()]
    return dict(zip(left, softmax(scaled[left]), strict=True))


class EvenDraws:
    """Instead of random bits: the middles of GRID equal parts of the numbers from 0 to 1, in turn."""

    def __init__(self) -> None:
        self._count = -1

    def random_raw(self) -> int:
        self._count += 1
        return (2 * (self._count % GRID) + 1) * 2**63 // GRID


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


@given(
    logit_rows,
    st.integers(200, 3000),
    st.integers(0, 12),
    st.integers(300, 1000),
    st.sampled_from([0, 1, 50, 300, 1000]),
)
def test_limits_in_order_leave_the_tokens_and_shares_of_the_definition(
    row: NDArray[np.float32], temperature: int, top_k: int, top_p: int, min_p: int
) -> None:
    expected = reference(row, temperature / 1000, top_k, top_p / 1000, min_p / 1000)
    picker = sampler(temperature_milli=temperature, top_k=top_k, top_p_milli=top_p, min_p_milli=min_p)
    picker._bits = EvenDraws()  # type: ignore[assignment]
    counts = Counter(picker.pick(row) for _ in range(GRID))
    assert set(counts) <= set(expected)
    assert all(abs(counts[token] - share * GRID) <= 1.001 for token, share in expected.items())


def test_min_p_keeps_tokens_by_their_share_of_the_best() -> None:
    row = np.log(np.array([0.1, 0.26, 0.5, 0.14], np.float32))
    for min_p, kept in ((0, {0, 1, 2, 3}), (210, {1, 2, 3}), (300, {1, 2}), (1000, {2})):
        picker = sampler(temperature_milli=1000, min_p_milli=min_p)
        assert {picker.pick(row) for _ in range(300)} == kept


def test_draws_of_a_seed_are_these_on_every_machine() -> None:
    """Equal logits, so that no rounding is involved: what is left is the generator, which must never change."""
    picker = sampler(temperature_milli=1000, seed=42)
    assert [picker.pick(np.zeros(1000, np.float32)) for _ in range(8)] == [773, 438, 858, 697, 94, 975, 761, 786]


# --- repetition penalty ---------------------------------------------------------------------------------------------


@given(logit_rows, st.lists(st.integers(0, 39), max_size=8), st.integers(100, 3000))
def test_penalty_divides_positive_and_multiplies_negative_logits_of_ids_seen(
    row: NDArray[np.float32], seen: list[int], penalty: int
) -> None:
    seen = [token % len(row) for token in seen]
    picker = sampler(seen=seen, repetition_penalty_milli=penalty)
    for _ in range(4):
        factor = penalty / 1000
        penalised = [
            float(logit) if token not in seen else (logit / factor if logit > 0 else logit * factor)
            for token, logit in enumerate(row.astype(np.float64))
        ]
        expected = int(np.argmax(penalised))
        assert picker.pick(row) == expected
        seen.append(expected)


def test_penalty_comes_before_temperature_and_limits() -> None:
    picker = sampler(seen=[1, 3], repetition_penalty_milli=2000, temperature_milli=1000, top_k=1)
    assert picker.pick(LOGITS) == 2, "the prompt's ids count as seen"
    assert picker.pick(LOGITS) == 1, "and so does what was picked: 3 / 2 is more than 2 / 2"


def test_penalty_of_one_changes_no_draw() -> None:
    plain = sampler(temperature_milli=900, seed=3)
    same = sampler(seen=[1, 2], temperature_milli=900, seed=3, repetition_penalty_milli=1000)
    assert [plain.pick(LOGITS) for _ in range(20)] == [same.pick(LOGITS) for _ in range(20)]


def test_penalty_below_one_favours_what_was_seen() -> None:
    assert sampler(seen=[2], repetition_penalty_milli=500).pick(LOGITS) == 2


def test_logits_given_are_left_as_they_are() -> None:
    row = LOGITS.copy()
    sampler(seen=[1, 2], repetition_penalty_milli=1500, temperature_milli=700, top_k=2, logprobs=3).sample(row)
    assert row.tolist() == LOGITS.tolist()


def test_huge_logits_under_a_small_penalty_stay_numbers() -> None:
    row = np.array([3e38, 1.0], np.float32)
    assert sampler(seen=[0], repetition_penalty_milli=100).pick(row) == 0


# --- logprobs -------------------------------------------------------------------------------------------------------


@given(logit_rows, st.integers(0, 20), st.integers(0, 2**30))
def test_logprobs_are_the_log_softmax_likeliest_first(row: NDArray[np.float32], top: int, token: int) -> None:
    token %= len(row)
    expected = np.log(softmax(row.astype(np.float64)))
    told = logprob(row, token, top)
    assert told.token == token
    assert told.surprise_micro == pytest.approx(-expected[token] * 1e6, abs=1.5)
    order = sorted(range(len(row)), key=lambda each: (-row[each], each))[:top]
    assert [each for each, _ in told.top] == order
    assert [micro for _, micro in told.top] == pytest.approx([-expected[each] * 1e6 for each in order], abs=1.5)


def test_logprobs_are_of_the_model_itself_whatever_the_options() -> None:
    options: dict[str, Any] = {
        "temperature_milli": 300,
        "top_k": 2,
        "repetition_penalty_milli": 1800,
        "min_p_milli": 90,
    }
    token, told = sampler(seen=[1, 3], logprobs=2, **options).sample(LOGITS)
    assert told == logprob(LOGITS, token, 2)
    assert told is not None
    assert [each for each, _ in told.top] == [1, 3]


def test_sample_without_logprobs_tells_none() -> None:
    assert sampler().sample(LOGITS) == (1, None)


def test_impossible_tokens_are_not_among_the_likeliest() -> None:
    row = np.array([-np.inf, 0.0, -np.inf], np.float32)
    assert logprob(row, 1, 3).top == ((1, 0),)


def test_surprise_beyond_every_integer_of_the_wire_is_the_largest() -> None:
    assert logprob(np.array([3e38, -3e38], np.float32), 1, 0).surprise_micro == 2**53 - 1
