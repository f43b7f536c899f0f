"""What a node measures of itself."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.bus.service import Counts
from sawyer.node.health import WINDOW, Health


def test_quantiles_are_those_of_the_last_answers() -> None:
    measured = Health()
    latencies_us = list(range(1, 101))
    random.Random(1).shuffle(latencies_us)
    for each in latencies_us:
        measured.answered(2, each / 1e6 + 1e-9)
    assert (measured.latency_us(0.0), measured.latency_us(0.5), measured.latency_us(0.95)) == (1, 51, 96)
    assert measured.latency_us(1.0) == 100
    assert (measured.answers, measured.rows) == (100, 200)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=50), st.floats(0, 1), st.floats(0, 1))
def test_quantile_is_a_measured_value_and_grows(latencies_us: list[int], low: float, high: float) -> None:
    measured = Health()
    for each in latencies_us:
        measured.answered(1, (each + 0.5) / 1e6)
    low, high = sorted((low, high))
    assert {measured.latency_us(low), measured.latency_us(high)} <= set(latencies_us)
    assert measured.latency_us(low) <= measured.latency_us(high)


def test_before_the_first_answer_all_is_zero() -> None:
    measured = Health()
    assert (measured.latency_us(0.5), measured.rows_per_second(), measured.answers) == (0, 0, 0)


def test_old_answers_leave_the_window_and_stay_counted() -> None:
    measured = Health()
    for _ in range(10):
        measured.answered(1, 9.0)
        measured.computed(1, 9.0)
    for _ in range(WINDOW):
        measured.answered(1, 0.001)
        measured.computed(4, 0.001)
    assert measured.latency_us(1.0) == 1000
    assert measured.rows_per_second() == pytest.approx(4000, rel=0.01)
    assert measured.answers == WINDOW + 10


def test_rows_per_second_weighs_by_time_not_by_answer() -> None:
    measured = Health()
    measured.computed(10, 1.0)
    measured.computed(90, 0.25)
    assert measured.rows_per_second() == 80


def test_runs_refusals_and_compute_time_are_counted_for_discovery() -> None:
    measured = Health()
    measured.computed(8, 0.5, 3)
    measured.computed(1, 0.25)
    measured.answered(9, 0.001)
    measured.refuse(ValueError("first"))
    measured.refuse(ValueError("last"))
    assert measured.runs == 4
    assert measured.counts() == Counts(requests=3, errors=2, busy_ns=750_000_000, last_error="last")
    assert measured.data()["runs"] == 4
    assert measured.data()["rows"] == 9
