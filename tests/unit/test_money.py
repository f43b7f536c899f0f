"""Integer money: rounding goes up, never through a float, and text shows every micro-dollar."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.money import UUSD_PER_CENT, UUSD_PER_USD, ceil_div, format_usd

HUGE = st.integers(-(10**40), 10**40)


@given(HUGE, st.integers(1, 10**40))
def test_ceil_div_is_the_smallest_integer_that_is_not_less(numerator: int, denominator: int) -> None:
    quotient = ceil_div(numerator, denominator)
    assert (quotient - 1) * denominator < numerator <= quotient * denominator


@pytest.mark.parametrize(
    ("numerator", "denominator", "quotient"), [(0, 3, 0), (1, 3, 1), (3, 3, 1), (4, 3, 2), (-1, 3, 0)]
)
def test_ceil_div_of_small_numbers(numerator: int, denominator: int, quotient: int) -> None:
    assert ceil_div(numerator, denominator) == quotient


@pytest.mark.parametrize("denominator", [0, -1])
def test_ceil_div_by_nothing_or_less_is_refused(denominator: int) -> None:
    with pytest.raises(ValueError, match=f"denominator must be positive, got {denominator}"):
        ceil_div(1, denominator)


def test_a_dollar_is_a_hundred_cents() -> None:
    assert UUSD_PER_USD == 100 * UUSD_PER_CENT


@pytest.mark.parametrize(
    ("amount_uusd", "text"),
    [
        (0, "$0.00"), (12_500_000, "$12.50"), (1_234, "$0.001234"), (10, "$0.000010"), (1_000_000, "$1.00"),
        (-1, "-$0.000001"), (-5_000_000, "-$5.00"), (1_234_567_890_123, "$1,234,567.890123"),
    ],
)  # fmt: skip
def test_format_usd_of_examples(amount_uusd: int, text: str) -> None:
    assert format_usd(amount_uusd) == text


@given(HUGE)
def test_format_usd_loses_nothing(amount_uusd: int) -> None:
    text = format_usd(amount_uusd)
    assert Fraction(text.replace("$", "").replace(",", "")) * UUSD_PER_USD == amount_uusd
    assert len(text.partition(".")[2]) in (2, 6)
