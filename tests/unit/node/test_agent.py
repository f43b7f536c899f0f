"""What a node refuses before it serves."""

from __future__ import annotations

import pytest

from sawyer.clock import ManualClock
from sawyer.errors import ClockWrong
from sawyer.node.agent import MAX_CLOCK_ERROR_MS, check_clock

DAY_MS = 86_400_000


@pytest.mark.parametrize("by_ms", [0, 1, -1, MAX_CLOCK_ERROR_MS, -MAX_CLOCK_ERROR_MS])
def test_clock_near_the_bookkeepers_is_good_enough(by_ms: int) -> None:
    here, there = ManualClock(), ManualClock()
    here.advance(by_ms)
    check_clock(here.now_ms(), there.now_ms())


@pytest.mark.parametrize(
    ("by_ms", "says"),
    [
        (DAY_MS, "1 day, 0:00:00 ahead of"),
        (-DAY_MS, "1 day, 0:00:00 behind"),
        (MAX_CLOCK_ERROR_MS + 1, "0:05:00 ahead of"),
        (-3 * 3_600_000 - 90_000, "3:01:30 behind"),
    ],
)
def test_clock_that_is_far_off_is_refused_with_how_far_and_in_which_direction(by_ms: int, says: str) -> None:
    here, there = ManualClock(), ManualClock()
    here.advance(by_ms)
    with pytest.raises(ClockWrong, match=says) as error:
        check_clock(here.now_ms(), there.now_ms())
    assert "2023-11-14T22:13:20Z" in error.value.message
    assert "clock" in error.value.hint
