"""What a host promises is said in milliseconds and kept in whole microseconds."""

from __future__ import annotations

import pytest

from sawyer.cli.register import promised
from sawyer.errors import UsageError


@pytest.mark.parametrize(("text", "promised_us"), [("20", 20_000), ("2.5", 2500), ("0.001", 1), ("60000", 60_000_000)])
def test_promise_is_kept_in_microseconds(text: str, promised_us: int) -> None:
    assert promised(text) == promised_us


@pytest.mark.parametrize("text", ["0", "-1", "0.0001", "60000.001", "fast", "nan", "inf", "20ms", ""])
def test_promise_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no promise"):
        promised(text)
