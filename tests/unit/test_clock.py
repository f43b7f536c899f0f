"""Clocks: one that moves by itself, one that does not."""

from __future__ import annotations

import time

from sawyer.clock import ManualClock, SystemClock, iso


def test_system_clock_reads_milliseconds_of_the_wall_clock() -> None:
    before = time.time_ns() // 1_000_000
    now = SystemClock().now_ms()
    assert before <= now <= time.time_ns() // 1_000_000


def test_manual_clock_moves_only_when_told_to() -> None:
    clock = ManualClock(1000)
    assert (clock.now_ms(), clock.now_ms()) == (1000, 1000)
    clock.advance(250)
    assert clock.now_ms() == 1250


def test_iso_is_utc_without_a_fraction() -> None:
    assert iso(0) == "1970-01-01T00:00:00Z"
    assert iso(1_769_860_800_999) == "2026-01-31T12:00:00Z"
