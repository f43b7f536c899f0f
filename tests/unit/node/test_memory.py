"""How much memory there is: by the machine, by containers around it, and by limits of the process; whatever the files
say."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.node.memory import (
    NO_LIMIT_BYTES,
    Memory,
    MiB,
    cgroup_levels,
    fields,
    memory_mb,
    number,
    of_machine,
    read_memory,
)

MEMINFO = "MemTotal:       4194304 kB\nMemFree:  1 kB\nMemAvailable:   2097152 kB\nHugePages_Total:       0\n"
V1 = "12:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n0::/docker/ab\n"
V2 = "0::/user.slice/sawyer.service\n"


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A /proc and a /sys/fs/cgroup that hold MEMINFO and nothing else; no rlimits."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", MEMINFO)
    return proc, cgroups


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def test_machine_without_limits_tells_its_own_memory(roots: tuple[Path, Path]) -> None:
    assert read_memory(*roots) == Memory(4096 * MiB, 2048 * MiB)


def test_container_of_cgroup_v2_has_its_own_limit_less_what_it_needs(roots: tuple[Path, Path]) -> None:
    proc, cgroups = roots
    write(proc / "self" / "cgroup", V2)
    own = cgroups / "user.slice" / "sawyer.service"
    write(own / "memory.max", f"{512 * MiB}\n")
    write(own / "memory.high", "max\n")
    write(own / "memory.current", f"{300 * MiB}\n")
    cache = f"file {95 * MiB}\ninactive_file {40 * MiB}\nactive_file {45 * MiB}\nslab_reclaimable {5 * MiB}\n"
    write(own / "memory.stat", f"anon {200 * MiB}\n{cache}")
    assert read_memory(*roots) == Memory(512 * MiB, 302 * MiB)
    write(own / "memory.high", f"{256 * MiB}\n")
    assert read_memory(*roots) == Memory(256 * MiB, 46 * MiB)


def test_limit_of_a_slice_above_counts_too(roots: tuple[Path, Path]) -> None:
    proc, cgroups = roots
    write(proc / "self" / "cgroup", V2)
    write(cgroups / "user.slice" / "sawyer.service" / "memory.max", f"{512 * MiB}\n")
    write(cgroups / "user.slice" / "memory.max", f"{1024 * MiB}\n")
    write(cgroups / "user.slice" / "memory.current", f"{1000 * MiB}\n")
    assert read_memory(*roots) == Memory(512 * MiB, 24 * MiB)


def test_container_of_cgroup_v1_is_found_at_its_mount(roots: tuple[Path, Path]) -> None:
    proc, cgroups = roots
    write(proc / "self" / "cgroup", V1)
    write(cgroups / "memory" / "memory.limit_in_bytes", f"{512 * MiB}\n")
    write(cgroups / "memory" / "memory.usage_in_bytes", f"{400 * MiB}\n")
    write(
        cgroups / "memory" / "memory.stat",
        f"inactive_file 1\ntotal_inactive_file {70 * MiB}\ntotal_active_file {30 * MiB}\n",
    )
    assert read_memory(*roots) == Memory(512 * MiB, 212 * MiB)


def test_cgroup_without_a_limit_takes_nothing_away(roots: tuple[Path, Path]) -> None:
    proc, cgroups = roots
    write(proc / "self" / "cgroup", V1 + V2)
    write(cgroups / "memory" / "memory.limit_in_bytes", "9223372036854771712\n")
    write(cgroups / "memory" / "memory.usage_in_bytes", f"{10**12}\n")
    write(cgroups / "user.slice" / "sawyer.service" / "memory.max", "max\n")
    assert read_memory(*roots) == Memory(4096 * MiB, 2048 * MiB)


def test_limit_of_the_process_counts(roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_AS: 1024 * MiB, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], limits[kind]))
    pages = 1000 * MiB // resource.getpagesize()
    write(roots[0] / "self" / "statm", f"{pages} 5 5 5 0 {pages // 2} 0\n")
    assert read_memory(*roots) == Memory(1024 * MiB, 24 * MiB)
    limits[resource.RLIMIT_DATA] = 400 * MiB
    assert read_memory(*roots) == Memory(400 * MiB, 0), "more than all of it is used"


def test_machine_that_tells_nothing_has_a_total_all_of_it_free(tmp_path: Path) -> None:
    found = read_memory(tmp_path, tmp_path)
    assert found.total_bytes == found.free_bytes > 0


def test_memory_of_this_machine_is_told_in_mebibytes() -> None:
    total, free = memory_mb()
    assert 0 <= free <= total
    assert total > 0


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        (V2, ["user.slice/sawyer.service", "user.slice", "."]),
        (V1, ["memory/docker/ab", "memory/docker", "memory", "docker/ab", "docker", "."]),
        ("0::/\n", ["."]),
        ("4:memory:/\n", ["memory"]),
        ("4:hugetlb,memory:/a\n", ["memory/a", "memory"]),
        ("4:name=memory:/a\n0\n:\n::\n", []),
        ("0::/../../etc\n4:memory:/a/../b\n", []),
    ],
)
def test_every_cgroup_above_a_process_is_looked_at(text: str, levels: list[str]) -> None:
    assert [str(each) for each in cgroup_levels(text)] == levels


GARBAGE = st.text(max_size=60) | st.lists(
    st.sampled_from(["MemTotal:", "MemAvailable:", "-1", "1", "9" * 30, "max", "kB", "0::/a", "1:memory:/b", "\n", " "])
).map("".join)


@given(GARBAGE)
def test_garbage_is_never_more_than_no_limit(text: str) -> None:
    assert all(value >= 0 for value in fields(text).values())
    assert number(text) >= 0
    found = of_machine(text)
    assert found is None or 0 <= found.free_bytes <= found.total_bytes
    assert all(".." not in each.parts for each in cgroup_levels(text))


@given(texts=st.lists(GARBAGE, min_size=6, max_size=6))
def test_files_of_garbage_leave_the_memory_of_the_machine(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("garbage")
    write(root / "proc" / "meminfo", MEMINFO)
    write(root / "proc" / "self" / "cgroup", V2 + texts[0].replace("\0", ""))
    write(root / "proc" / "self" / "statm", texts[1])
    own = root / "cgroup" / "user.slice" / "sawyer.service"
    for name, text in zip(("max", "high", "current", "stat"), texts[2:], strict=True):
        write(own / f"memory.{name}", text)
    found = read_memory(root / "proc", root / "cgroup")
    assert 0 <= found.free_bytes <= found.total_bytes <= 4096 * MiB


def test_limits_are_read_as_numbers_or_not_at_all() -> None:
    assert [number(text) for text in ("12\n", "max\n", "", "-5", "1e3", "\N{ARABIC-INDIC DIGIT ONE}")] == [
        12, *[NO_LIMIT_BYTES] * 5,
    ]  # fmt: skip
