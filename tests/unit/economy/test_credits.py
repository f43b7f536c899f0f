"""What a host's work weighs: rows, parameters and the step that its latency reached."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.economy.credits import FULL_MILLI, rows_of, sla_milli, work_of
from sawyer.economy.pricing import UUSD_PER_TOKEN
from sawyer.economy.tiers import TIERS

latencies_us = st.integers(1, 2**53 - 1)


def test_work_counts_whole_thousands_of_parameters() -> None:
    assert work_of(rows=7, expert_parameters=221_999) == 7 * 221


def test_rows_are_fed_tokens_times_layers_times_experts_a_token() -> None:
    assert rows_of(7, moe_layers=4, top_k=2) == 56


@pytest.mark.parametrize(
    ("measured_us", "milli"),
    [
        (1, 1000), (999, 1000), (1000, 1000), (1001, 900), (2000, 900), (2001, 500), (4000, 500), (4001, 0),
        (2**53 - 1, 0),
    ],
)  # fmt: skip
def test_steps_are_once_twice_and_four_times_what_was_promised(measured_us: int, milli: int) -> None:
    assert sla_milli(measured_us, 1000) == milli


@given(latencies_us)
def test_who_promises_nothing_is_not_held_to_anything(measured_us: int) -> None:
    assert sla_milli(measured_us, 0) == FULL_MILLI


@given(latencies_us, latencies_us, latencies_us)
def test_slower_never_counts_for_more(promised_us: int, one_us: int, other_us: int) -> None:
    fast, slow = sorted((one_us, other_us))
    assert sla_milli(slow, promised_us) <= sla_milli(fast, promised_us)


@pytest.mark.parametrize(
    ("name", "price_uusd", "tokens"),
    [("explorer", 5_000_000, 500_000), ("builder", 20_000_000, 2_000_000), ("operator", 50_000_000, 5_000_000)],
)
def test_tier_is_as_published_and_exactly_10_uusd_a_token(name: str, price_uusd: int, tokens: int) -> None:
    tier = TIERS[name]
    assert (tier.price_uusd, tier.tokens) == (price_uusd, tokens)
    assert tier.price_uusd == tier.tokens * UUSD_PER_TOKEN
    assert len(TIERS) == 3
