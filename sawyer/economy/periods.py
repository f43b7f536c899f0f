"""Calendar arithmetic in UTC, on milliseconds since 1970: days, months and the periods of a subscription. Pure
integers.

Source of the day arithmetic: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms" (civil_from_days).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

DAY_MS: Final = 86_400_000
LONGEST_MONTH_MS: Final = 31 * DAY_MS
_ERA_DAYS: Final = 146_097
_TO_MARCH_0000: Final = 719_468
_MONTH_DAYS: Final = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@lru_cache(maxsize=1024)
def civil(day: int) -> tuple[int, int, int]:
    """(year, month, day of the month) of so many days since 1970-01-01."""
    era, of_era = divmod(day + _TO_MARCH_0000, _ERA_DAYS)
    year_of_era = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    return year_of_era + era * 400 + (month <= 2), month, of_year - (153 * shifted + 2) // 5 + 1


def days_from_civil(year: int, month: int, day: int) -> int:
    """The inverse of `civil`."""
    year -= month <= 2
    era, of_era = divmod(year, 400)
    of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * _ERA_DAYS + of_era * 365 + of_era // 4 - of_era // 100 + of_year - _TO_MARCH_0000


def day_of(at_ms: int) -> str:
    """`2026-01-31`."""
    return _text(at_ms // DAY_MS)


@lru_cache(maxsize=64)
def _text(day: int) -> str:
    year, month, of_month = civil(day)
    return f"{year:04d}-{month:02d}-{of_month:02d}"


def month_of(at_ms: int) -> str:
    """`2026-01`."""
    return day_of(at_ms)[:7]


def month_later(at_ms: int, anchor_day: int) -> int:
    """The same time of day a month later, on `anchor_day` (1 to 31) or on the last day of a month that has no such day:
    how a subscription's periods follow each other."""
    day, of_day = divmod(at_ms, DAY_MS)
    year, month, _ = civil(day)
    year, month = (year + 1, 1) if month == 12 else (year, month + 1)
    leap = month == 2 and (year % 4 == 0) and (year % 100 != 0 or year % 400 == 0)
    return days_from_civil(year, month, min(anchor_day, _MONTH_DAYS[month - 1] + leap)) * DAY_MS + of_day


def paid_period(start_ms: int, anchor_day: int = 0) -> tuple[int, int]:
    """(end of the period that starts here, end of the one after it: until then its grant may be spent). The anchor is
    the start's own day unless the subscription began on another one."""
    anchor = anchor_day or civil(start_ms // DAY_MS)[2]
    end_ms = month_later(start_ms, anchor)
    return end_ms, month_later(end_ms, anchor)
