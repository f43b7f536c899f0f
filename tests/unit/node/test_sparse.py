"""Warnings that come in floods fill no log, and none is lost from the count."""

from __future__ import annotations

import logging

import pytest

from sawyer.node.sparse import EVERY_S, SparseWarnings


def test_flood_of_warnings_is_one_line_a_second_that_counts_the_others(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    sparse = SparseWarnings(logging.getLogger("test"), lambda: now[0])
    for number in range(1000):
        sparse.warning("refused: %s", number)
    assert caplog.messages == ["refused: 0"]
    now[0] += EVERY_S
    sparse.warning("refused: %s", 1000)
    assert caplog.messages[1:] == ["refused: 1000 (and 999 more warnings before it)"]
    now[0] += EVERY_S
    sparse.warning("refused: %s", 1001)
    assert caplog.messages[2:] == ["refused: 1001"]
