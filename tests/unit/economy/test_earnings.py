"""The estimate of what hosting earns, by numbers worked by hand from docs/token-economics.md."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.economy.earnings import BILLION, MONTH_MS, Estimate, estimate, monthly, share_of_rows


def test_estimate_equals_the_worked_example() -> None:
    """2,000,000 tokens at price 1000 and quant 800 are 1,600,000 budget tokens, $16.00; 70 % of it is $11.20; a quarter
    of the rows earns $2.80. 100 rows a second are 259,200,000 a month, of 8 a token: 32,400,000 tokens, $259.20, of
    which hosts get $181.44."""
    assert estimate(
        tokens_per_month=2_000_000,
        share_ppb=BILLION // 4,
        rows_per_second=100,
        rows_per_token=8,
        price_milli=1000,
        quant_milli=800,
    ) == Estimate(2_800_000, 181_440_000, BILLION // 4, 2_000_000)


def test_no_traffic_earns_nothing_today() -> None:
    made = estimate(
        tokens_per_month=0, share_ppb=BILLION, rows_per_second=1, rows_per_token=8, price_milli=1000, quant_milli=1000
    )
    assert made.today_uusd == 0
    assert made.most_uusd == 2_268_000, "324,000 tokens, $3.24, 70 %"


def test_machine_earns_nothing_for_rows_that_it_cannot_compute() -> None:
    made = estimate(
        tokens_per_month=10**9,
        share_ppb=BILLION,
        rows_per_second=1,
        rows_per_token=8,
        price_milli=1000,
        quant_milli=1000,
    )
    assert made.today_uusd == made.most_uusd == 2_268_000


@pytest.mark.parametrize(
    ("others", "experts", "share"),
    [
        ([], 32, 0),
        ([0] * 32, 32, BILLION),
        ([1] * 32, 32, BILLION // 2),
        ([0] * 8 + [1] * 8, 32, 375_000_000),
        ([3], 2, 125_000_000),
    ],
)
def test_share_is_one_part_of_each_expert_that_others_serve_too(others: list[int], experts: int, share: int) -> None:
    assert share_of_rows(others, experts) == share


def test_more_experts_than_the_model_has_are_refused() -> None:
    with pytest.raises(ValueError, match="has 1 experts, got 2"):
        share_of_rows([0, 0], 1)


def test_monthly_counts_thirty_days() -> None:
    assert monthly(10, 60_000) == 432_000
    assert monthly(10, 100) == monthly(10, 10_000) == 2_592_000, "a moment counts as ten seconds"
    assert monthly(0, 0) == 0
    assert monthly(7, MONTH_MS) == 7


@pytest.mark.parametrize("wrong", [{"tokens_per_month": -1}, {"share_ppb": -1}, {"rows_per_token": 0}])
def test_negative_amounts_are_refused(wrong: dict[str, int]) -> None:
    right = {"tokens_per_month": 1, "share_ppb": 1, "rows_per_second": 1, "rows_per_token": 1, "price_milli": 1}
    with pytest.raises(ValueError, match="never negative"):
        estimate(**{**right, "quant_milli": 1, **wrong})


@given(tokens=st.integers(0, 10**15), nodes=st.integers(1, 50))
def test_hosts_that_share_everything_never_get_more_than_the_pool(tokens: int, nodes: int) -> None:
    share = share_of_rows([nodes - 1] * 8, 8)
    made = estimate(
        tokens_per_month=tokens,
        share_ppb=share,
        rows_per_second=10**15,
        rows_per_token=2,
        price_milli=1000,
        quant_milli=1000,
    )
    assert made.today_uusd * nodes <= tokens * 7
