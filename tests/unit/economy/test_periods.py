"""Calendar arithmetic without a calendar: judged by datetime, and by the periods that people are billed for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.economy.periods import (
    DAY_MS,
    LONGEST_MONTH_MS,
    civil,
    day_of,
    days_from_civil,
    month_later,
    month_of,
    paid_period,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST_DAY = (datetime(9999, 12, 31, tzinfo=UTC) - EPOCH).days
days = st.integers(0, LAST_DAY)
moments_ms = st.integers(0, (LAST_DAY - 62) * DAY_MS)


def ms(text: str) -> int:
    return int((datetime.fromisoformat(text).replace(tzinfo=UTC) - EPOCH) // timedelta(milliseconds=1))


def ends(start: str, count: int, anchor: int = 0) -> list[str]:
    """The days on which the periods end that follow each other from here."""
    found, at_ms = [], ms(start)
    anchor = anchor or int(start[8:10])
    for _ in range(count):
        at_ms = paid_period(at_ms, anchor)[0]
        found.append(day_of(at_ms))
    return found


@given(days)
def test_civil_dates_are_those_of_datetime(day: int) -> None:
    date = EPOCH + timedelta(days=day)
    assert civil(day) == (date.year, date.month, date.day)
    assert days_from_civil(date.year, date.month, date.day) == day


@given(st.integers(0, LAST_DAY * DAY_MS))
def test_day_and_month_of_a_moment_are_those_of_datetime_in_utc(at_ms: int) -> None:
    date = EPOCH + timedelta(milliseconds=at_ms)
    assert (day_of(at_ms), month_of(at_ms)) == (f"{date:%Y-%m-%d}".zfill(10), f"{date:%Y-%m}".zfill(7))


def test_day_changes_at_midnight_utc() -> None:
    midnight = ms("2026-03-01")
    assert (day_of(midnight - 1), day_of(midnight)) == ("2026-02-28", "2026-03-01")


@given(moments_ms, st.integers(1, 31))
def test_month_later_is_in_the_next_month_at_the_same_time_of_day(at_ms: int, anchor: int) -> None:
    before, after = EPOCH + timedelta(milliseconds=at_ms), EPOCH + timedelta(milliseconds=month_later(at_ms, anchor))
    assert (after.year * 12 + after.month) - (before.year * 12 + before.month) == 1
    assert after.time() == before.time()
    last = (after.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
    assert after.day == min(anchor, last.day)


@given(moments_ms)
def test_paid_period_is_a_month_at_most_and_rolls_over_for_a_month_at_most(start_ms: int) -> None:
    end_ms, rolled_ms = paid_period(start_ms)
    assert 28 * DAY_MS <= end_ms - start_ms <= LONGEST_MONTH_MS
    assert 28 * DAY_MS <= rolled_ms - end_ms <= LONGEST_MONTH_MS


@given(moments_ms)
def test_grant_expires_exactly_where_the_period_after_next_begins(start_ms: int) -> None:
    """So the third period's grant finds two live at most, whatever the months' lengths."""
    anchor = civil(start_ms // DAY_MS)[2]
    end_ms, rolled_ms = paid_period(start_ms, anchor)
    assert paid_period(end_ms, anchor)[0] == rolled_ms


def test_subscription_of_the_31st_ends_on_the_last_day_of_shorter_months_and_comes_back() -> None:
    assert ends("2026-01-31", 5) == ["2026-02-28", "2026-03-31", "2026-04-30", "2026-05-31", "2026-06-30"]


def test_subscription_of_the_31st_ends_on_the_29th_of_february_in_a_leap_year() -> None:
    assert ends("2028-01-31", 2) == ["2028-02-29", "2028-03-31"]


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2000-01-30", "2000-02-29"), ("2100-01-30", "2100-02-28"), ("2024-01-29", "2024-02-29"),
        ("2400-01-31", "2400-02-29"),
    ],
)  # fmt: skip
def test_leap_years_are_every_fourth_but_for_centuries_that_400_does_not_divide(start: str, end: str) -> None:
    assert ends(start, 1) == [end]


def test_period_over_the_turn_of_a_year() -> None:
    assert ends("2026-12-15", 2) == ["2027-01-15", "2027-02-15"]


def test_period_keeps_its_time_of_day() -> None:
    assert paid_period(ms("2026-01-31T23:59:59.999")) == (ms("2026-02-28T23:59:59.999"), ms("2026-03-31T23:59:59.999"))


def test_anchor_of_a_subscription_that_began_on_the_31st_outlives_a_short_february() -> None:
    """Its February begins on the 28th; without the anchor March would end there too."""
    assert day_of(paid_period(ms("2026-02-28"), 31)[0]) == "2026-03-31"
    assert day_of(paid_period(ms("2026-02-28"))[0]) == "2026-03-28"
