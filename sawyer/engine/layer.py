"""One layer of a trunk: its matrices over the rows of many sequences at once, attention for each sequence by itself.

A row's results do not depend on the rows beside it, bit for bit: the kernels of matrices, norms and gates see to that,
and those that multiply a lone row otherwise are given two. So a sequence may decode alone or with others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sawyer.engine.cache import KvCache
from sawyer.engine.session import Session
from sawyer.errors import UsageError


class Attended(NamedTuple):
    """What a layer says before its experts: `residual` [T, H], `hidden` [T, H] (rows that enter experts), gate
    `weights` [T, k] float32 and chosen `experts` [T, k] int32. Of a layer without experts `residual` is the end, and
    the others have no rows or columns."""

    residual: NDArray[np.float32]
    hidden: NDArray[np.float32]
    weights: NDArray[np.float32]
    experts: NDArray[np.int32]


class Gated(NamedTuple):
    """What a gate says of rows that enter experts: `weights` [T, k] float32 and chosen `experts` [T, k] int32."""

    weights: NDArray[np.float32]
    experts: NDArray[np.int32]


class Rows:
    """A session over rows that do not know each other. `pairs_lone_rows`: a row alone runs as two, where the kernel of
    one row has other last bits than that of many."""

    def __init__(self, session: Session, *, pairs_lone_rows: bool) -> None:
        self.session = session
        self._pairs_lone_rows = pairs_lone_rows

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Inputs and outputs have as many rows."""
        if not self._pairs_lone_rows or any(len(each) > 1 for each in inputs.values()):
            return self.session.run(inputs)
        twice = {name: np.repeat(each, 2, axis=0) for name, each in inputs.items()}
        return [output[:1] for output in self.session.run(twice)]


class TrunkLayer:
    """The three graphs of sawyer.model.trunk_graph. Immutable; many threads may use it. Every method raises
    PromptTooLong if a cache has no room, and then leaves all as they were."""

    def __init__(self, number: int, project: Rows, attention: Session, finish: Rows) -> None:
        self._number = number
        self._project, self._attention, self._finish = project, attention, finish
        self._needs_places = "places" in project.session.inputs

    def attend(self, x: NDArray[np.float32], cache: KvCache) -> Attended:
        """T new rows [T, H] of one sequence. More than one are attended to in one go, to other last bits than one by
        one: for prompts, which always enter in the same chunks."""
        cache.check_room(self._number, len(x))
        layer = cache.layers[self._number]
        rows = self._rows(x, range(layer.length, layer.length + len(x)))
        return self._finished(x, layer.attend(self._attention, rows))

    def attend_many(self, x: NDArray[np.float32], caches: Sequence[KvCache]) -> Attended:
        """Row b of `x` [B, H] is a new one of the sequence of `caches[b]`; a sequence with several gets them in their
        order, and all have the bits that they have one by one. Raises UsageError unless each row has a cache."""
        if len(x) != len(caches):
            raise UsageError(f"{len(x)} rows for {len(caches)} caches; each row needs one")
        new: Counter[KvCache] = Counter()
        places = []
        for cache in caches:
            places.append(cache.layers[self._number].length + new[cache])
            new[cache] += 1
        for cache, count in new.items():
            cache.check_room(self._number, count)
        rows = self._rows(x, places)
        parts = []
        for b, cache in enumerate(caches):
            part = cache.layers[self._number].attend(self._attention, rows[b : b + 1])
            parts.append(part if new[cache] == 1 else part.copy())  # its next row is written over it
        return self._finished(x, np.concatenate(parts))

    def _rows(self, x: NDArray[np.float32], places: Sequence[int]) -> NDArray[np.float32]:
        inputs: dict[str, NDArray[Any]] = {"x": x}
        if self._needs_places:
            inputs["places"] = np.array(places, np.int64)
        return self._project.run(inputs)[0]

    def _finished(self, x: NDArray[np.float32], attended: NDArray[np.float32]) -> Attended:
        residual, *others = self._finish.run({"x": x, "attended": attended})
        if others:
            return Attended(residual, *others)
        rows = len(residual)
        return Attended(residual, residual[:0], np.zeros((rows, 0), np.float32), np.zeros((rows, 0), np.int32))
