"""Main memory: how much this process may use and how much of that is free, by what the machine, its cgroup (that of a
container or a systemd unit) and its own limits say. Owns what is read and how; what is done about it is
sawyer.node.pressure.

What a cgroup's own files take in the page cache counts as free, and kernel caches that can be dropped: that is how the
kernel makes up MemAvailable for a machine (si_mem_available in mm/show_mem.c), there less a reserve that cgroups do not
have. Pages that were read twice, and are "active", are no less droppable than others.

Linux tells all of it in /proc and /sys/fs/cgroup (proc(5), and cgroup-v2.rst and cgroup-v1/memory.rst of the kernel's
documentation). Elsewhere only the total is known, and all of it counts as free.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")
NO_LIMIT_BYTES: Final = 1 << 60
"""A limit from here on is none: cgroup v1 writes 2^63 less a page, rlimits 2^64 - 1."""
RECLAIMABLE: Final = ("inactive_file", "active_file", "slab_reclaimable")
"""In memory.stat; memory on tmpfs is in none of them."""
RECLAIMABLE_V1: Final = ("total_inactive_file", "total_active_file")
MiB: Final = 2**20

Fields = dict[str, int]


@dataclass(frozen=True, slots=True)
class Memory:
    """What this process may use, and what of it is free, in bytes; file pages that nobody needs count as free."""

    total_bytes: int
    free_bytes: int

    def within(self, limit_bytes: int, used_bytes: int) -> Memory:
        """As a limit on top of it leaves it, of which so much is used."""
        return Memory(min(self.total_bytes, limit_bytes), max(0, min(self.free_bytes, limit_bytes - used_bytes)))


def read_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> Memory:
    """As it is now; takes some tens of microseconds. Raises nothing: what cannot be read does not limit."""
    found = of_machine(_text(proc / "meminfo")) or _of_system()
    for level in cgroup_levels(_text(proc / "self" / "cgroup")):
        folder = cgroups.joinpath(*level.parts)
        v1 = level.parts[:1] == ("memory",)
        limits = ["memory.limit_in_bytes"] if v1 else ["memory.max", "memory.high"]
        limit = min((number(_text(folder / name)) for name in limits), default=NO_LIMIT_BYTES)
        if limit < NO_LIMIT_BYTES:
            used = number(_text(folder / ("memory.usage_in_bytes" if v1 else "memory.current")), otherwise=0)
            told = fields(_text(folder / "memory.stat"))
            reclaimable = sum(told.get(name, 0) for name in (RECLAIMABLE_V1 if v1 else RECLAIMABLE))
            found = found.within(limit, max(0, used - reclaimable))
    sizes = _text(proc / "self" / "statm").split()
    for kind, at in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
        limit = resource.getrlimit(kind)[0]
        if 0 <= limit < NO_LIMIT_BYTES and len(sizes) > at and sizes[at].isdecimal():
            found = found.within(limit, int(sizes[at]) * resource.getpagesize())
    return found


def memory_mb() -> tuple[int, int]:
    """(total, free) of what this process may use, in MiB."""
    found = read_memory()
    return found.total_bytes // MiB, found.free_bytes // MiB


def of_machine(meminfo: str) -> Memory | None:
    """From the text of /proc/meminfo; None if it does not tell."""
    told = fields(meminfo)
    try:
        total, free = told["MemTotal"] * 1024, told["MemAvailable"] * 1024
    except KeyError:
        return None
    return Memory(total, min(total, free)) if total else None


def fields(text: str) -> Fields:
    """Of lines `name number` or `name: number kB`; other lines say nothing."""
    found: Fields = {}
    for line in text.splitlines():
        name, *rest = line.replace(":", " ", 1).split()[:2] or ("",)
        if rest and _is_number(rest[0]):
            found[name] = int(rest[0])
    return found


def number(text: str, otherwise: int = NO_LIMIT_BYTES) -> int:
    """Of a file that holds one; `otherwise` for "max", and for what is no number."""
    text = text.strip()
    return int(text) if _is_number(text) else otherwise


def cgroup_levels(text: str) -> Iterator[PurePosixPath]:
    """From the text of /proc/self/cgroup: the folders, below the mount of cgroups, whose limits are this process's: its
    own cgroup's and those of all above it. Inside a container the paths may be those of the host: what is not there
    says nothing, and the mount itself is the container's own."""
    for line in text.splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if not colon or ".." in path.split("/") or "\0" in path:
            continue
        own = PurePosixPath(path.lstrip("/"))
        if hierarchy == "0" and not controllers:
            yield from (own, *own.parents) if own.parts else (own,)
        elif "memory" in controllers.split(","):
            below = PurePosixPath("memory") / own
            yield from (each for each in (below, *below.parents) if each.parts)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 20


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


def _of_system() -> Memory:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Memory(total, total)
