"""What processes hold while a benchmark runs: memory and open files, and whether that grows. Reads /proc; where
there is none, nothing is told."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Held:
    """Of one process at one time: `at_s` of perf_counter, resident bytes, open files."""

    name: str
    pid: int
    at_s: float
    resident_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Holding:
    """Of the process of this name that lived longest: medians over a fifth of its samples, after its start (the second
    fifth: a program fills its caches first) and at its end, and the most. `files_grown`: by how many between the
    two."""

    seconds: float
    early_mb: float
    late_mb: float
    most_mb: float
    files_grown: int


def held(name: str, pid: int, at_s: float) -> Held | None:
    """None if the process is gone, or nothing can be told of it."""
    try:
        pages = int((PROC / str(pid) / "statm").read_text().split()[1])
        files = sum(1 for _ in (PROC / str(pid) / "fd").iterdir())
    except (OSError, IndexError, ValueError):
        return None
    return Held(name, pid, at_s, pages * os.sysconf("SC_PAGE_SIZE"), files)


def holdings(samples: Iterable[Held]) -> dict[str, Holding]:
    """By name, of samples in the order of their times. Names with fewer than five samples of one process are left
    out."""
    lives: defaultdict[str, defaultdict[int, list[Held]]] = defaultdict(lambda: defaultdict(list))
    for each in samples:
        lives[each.name][each.pid].append(each)
    longest = {name: max(by_pid.values(), key=len) for name, by_pid in lives.items()}
    return {name: _holding(life) for name, life in sorted(longest.items()) if len(life) >= 5}


def _holding(life: list[Held]) -> Holding:
    fifth = len(life) // 5
    early, late = life[fifth : 2 * fifth], life[-fifth:]
    return Holding(
        seconds=round(life[-1].at_s - life[0].at_s, 1),
        early_mb=_mb(median(each.resident_bytes for each in early)),
        late_mb=_mb(median(each.resident_bytes for each in late)),
        most_mb=_mb(max(each.resident_bytes for each in life)),
        files_grown=int(median(each.files for each in late) - median(each.files for each in early)),
    )


def _mb(size_bytes: float) -> float:
    return round(size_bytes / 1e6, 1)
