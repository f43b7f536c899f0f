"""Splitting a pool: the worked settlement, and that no micro-dollar is made or lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.economy.allocation import host_pool, payable_cents, split

WEIGHTS = {
    "host-a": 1_200_000 * 1000 * 1000,
    "host-b": 700_000 * 1000 * 900,
    "host-c": 33_333 * 1500 * 500,
}


def test_settlement_equals_the_worked_example() -> None:
    pool = host_pool(15_000_000 - 1_335_000)
    parts = split(pool, WEIGHTS)
    assert pool == 9_565_500
    assert parts == {"host-a": 6_187_925, "host-b": 3_248_661, "host-c": 128_914}
    assert {host: payable_cents(part) for host, part in parts.items()} == {
        host: (0, part) for host, part in parts.items()
    }


def test_second_equal_month_pays_whole_cents_and_carries_the_rest() -> None:
    assert payable_cents(2 * 6_187_925) == (1_237, 5_850)


@pytest.mark.parametrize(("accrued", "paid"), [(9_999_999, (0, 9_999_999)), (10_000_000, (1_000, 0))])
def test_payout_begins_at_the_threshold(accrued: int, paid: tuple[int, int]) -> None:
    assert payable_cents(accrued) == paid


@given(st.integers(0, 10**15), st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 10**20), max_size=9))
def test_parts_add_up_to_the_pool_exactly_and_are_fair_to_one_unit(pool: int, weights: dict[str, int]) -> None:
    parts = split(pool, weights)
    total = sum(weights.values())
    assert sum(parts.values()) == (pool if total else 0)
    for name, weight in weights.items():
        assert total == 0 or pool * weight // total <= parts[name] <= pool * weight // total + 1


@given(st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 10**6), min_size=2, max_size=6))
def test_parts_do_not_depend_on_the_order_of_hosts(weights: dict[str, int]) -> None:
    assert split(1_000_003, weights) == split(1_000_003, dict(reversed(weights.items())))


@pytest.mark.parametrize(("pool", "weights"), [(-1, {"a": 1}), (1, {"a": -1, "b": 2})])
def test_negative_pool_or_weight_is_refused(pool: int, weights: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="never negative"):
        split(pool, weights)


def test_deficit_makes_no_pool() -> None:
    assert host_pool(-5) == 0
