"""What processes hold while a benchmark runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sawyer.bench import memory
from sawyer.bench.memory import Held, Holding, held, holdings


def life(name: str, pid: int, *megabytes: float, files: int = 10) -> list[Held]:
    return [Held(name, pid, float(at), int(each * 1e6), files + at) for at, each in enumerate(megabytes)]


def test_growth_is_between_the_second_and_the_last_fifth_of_the_longest_life() -> None:
    short = life("node-1", 7, *[900] * 5)
    whole = life("node-1", 8, 10, 20, 50, 51, 52, 60, 54, 55, 56, 57)
    assert holdings([*short, *whole]) == {"node-1": Holding(9.0, 50.5, 56.5, 60.0, 6)}


def test_program_that_was_seen_too_rarely_is_left_out() -> None:
    assert holdings(life("node-1", 7, 1, 2, 3, 4)) == {}


def test_this_process_holds_memory_and_files_and_one_that_is_gone_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = held("me", os.getpid(), 1.0)
    if not memory.PROC.exists():
        assert mine is None
        return
    assert mine is not None
    assert mine.resident_bytes > 1e6
    assert mine.files >= 1
    monkeypatch.setattr(memory, "PROC", Path("/nowhere"))
    assert held("me", os.getpid(), 1.0) is None
