"""Where a checkpoint's files come from while it is split: they are all here, or they come one after the other and go
again. Owns in which order files are then written, and how much room that takes; moving bytes is in model.downloads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

from sawyer.model.checkpoint import StoredTensor, TensorRef


class Supply(Protocol):
    """What a split tells about its work, and when."""

    def schedule(self, out: Path, sizes: Mapping[str, int], refs: Mapping[str, tuple[TensorRef, ...]]) -> Sequence[str]:
        """The order in which to write these files of the split, which will have these sizes, into `out`. `refs`: what
        each weights file is made of."""
        ...

    def before(self, path: str) -> None:
        """This file is written next: what it is made of must be here when this returns."""
        ...

    def after(self, path: str) -> None:
        """This file is whole, and stays so."""
        ...


class AllHere:
    """The supply of a checkpoint whose files are all on this machine, and stay."""

    def schedule(self, out: Path, sizes: Mapping[str, int], refs: Mapping[str, tuple[TensorRef, ...]]) -> Sequence[str]:
        """As planned."""
        del out, refs
        return tuple(sizes)

    def before(self, path: str) -> None:
        """Nothing to do."""

    def after(self, path: str) -> None:
        """Nothing to do."""


@dataclass(frozen=True, slots=True)
class Step:
    """One file of the split, and the shards that it is made of, as positions in the row of shards. `written`: it was
    there before this run, as far as its size tells."""

    path: str
    size_bytes: int
    shards: frozenset[int]
    written: bool = False


def in_order_of_shards(
    sizes: Mapping[str, int],
    refs: Mapping[str, tuple[TensorRef, ...]],
    stored: Mapping[str, StoredTensor],
    shards: Sequence[Path],
    written: Collection[str] = (),
) -> list[Step]:
    """The files as steps, each as soon as the last shard that it needs is there. A file that `refs` does not know needs
    none: it is no weights file."""
    number = {shard: n for n, shard in enumerate(shards)}
    needs = {path: frozenset(number[stored[ref.name].file] for ref in of_file) for path, of_file in refs.items()}
    steps = [Step(path, size, needs.get(path, frozenset()), path in written) for path, size in sizes.items()]
    return sorted(steps, key=lambda step: max(step.shards, default=-1))


def last_uses(steps: Iterable[Step]) -> dict[str, frozenset[int]]:
    """The shards that nothing needs any more once this file is written, by its path."""
    last = {shard: step.path for step in steps for shard in step.shards}
    return {path: frozenset(shard for shard, at in last.items() if at == path) for path in last.values()}


def missing_shards(steps: Iterable[Step]) -> frozenset[int]:
    """The shards of which something is still to be written."""
    return frozenset(chain.from_iterable(step.shards for step in steps if not step.written))


def most_added(steps: Sequence[Step], sizes: Sequence[int], here: Sequence[int]) -> int:
    """By how many bytes shards take more of the disk than now, at the worst moment, if each comes when it is first
    needed and goes after its last use. `sizes` by shard, and what is `here` of each: that stays until its turn."""
    last = last_uses(steps)
    held = list(here)
    most = added = 0
    for step in steps:
        for shard in () if step.written else step.shards:
            added += sizes[shard] - held[shard]
            held[shard] = sizes[shard]
        most = max(most, added)
        for shard in last.get(step.path, ()):
            added -= held[shard]
            held[shard] = 0
    return most
