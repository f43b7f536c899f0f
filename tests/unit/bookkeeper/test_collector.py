"""The collector of a process that keeps a book: out of the way, and only while it does."""

from __future__ import annotations

import gc

import pytest

from sawyer.bookkeeper.collector import SELDOM, calm_collector


def test_collector_looks_seldom_inside_and_as_before_afterwards_even_if_the_program_failed() -> None:
    before, inside = gc.get_threshold(), []

    def failing() -> None:
        with calm_collector():
            inside.extend([gc.get_threshold(), gc.get_freeze_count() > 0])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert inside == [SELDOM, True]
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)
