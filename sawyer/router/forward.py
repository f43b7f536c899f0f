"""Rows through all layers: one chunk of a prompt, or one new token of each of many sequences. Attention and gates here,
experts on nodes; rows of different requests travel and are computed together, and each is metered by itself.

The straight path of the whole project: layer by layer attend and gate, dispatch, combine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from sawyer.engine.cache import KvCache
from sawyer.engine.combine import combine, group_rows
from sawyer.engine.layer import Attended
from sawyer.engine.offload import Offload
from sawyer.engine.trunk import Trunk, prefill_chunks
from sawyer.errors import SawyerError
from sawyer.router.dispatch import Dispatcher, ExpertRows, LayerAnswers
from sawyer.router.scope import RequestScope, Share
from sawyer.schemas.messages import LayerCall

Hidden = NDArray[np.float32]


@dataclass(eq=False, slots=True)
class Place:
    """Where one request stands in the model: its cache, its scope, and what its layers asked of nodes since it was
    looked at last (only of a traced scope)."""

    scope: RequestScope
    cache: KvCache
    calls: list[tuple[int, tuple[LayerCall, ...]]] = field(default_factory=list)

    def trial(self, ahead: int) -> Place:
        """For a row so many steps ahead of the next one, which may turn out to be of no use."""
        return Place(self.scope.trial(ahead), self.cache)

    def take(self, trial: Place) -> None:
        """Its row is of use, after all."""
        self.scope.meter.add(trial.scope.meter)
        self.calls += trial.calls


class Forward:
    """Runs passes over one trunk and one dispatcher. Passes may run side by side, but one cache in one of them only."""

    def __init__(self, trunk: Trunk, compute: Offload, dispatcher: Dispatcher) -> None:
        self.trunk = trunk
        self.compute = compute
        self._dispatcher = dispatcher

    async def prompt(self, place: Place, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits [V] after the last of `ids`, at least one; all of them enter the cache. Raises ExpertUnavailable."""
        last: Hidden | None = None
        for chunk in prefill_chunks(len(ids)):
            rows = self.trunk.embed(ids[chunk])
            for layer in range(self.trunk.layout.layers):
                kind = _kind([place]) if len(rows) == 1 else ""  # a part of a prompt is never short
                begun_ns = perf_counter_ns()
                attended = await self.compute.run(kind, self.trunk.attend, layer, rows, place.cache)
                attended_ns = perf_counter_ns()
                rows, failed = await self._experts(layer, attended, [Share(place.scope, len(rows))], [place], kind)
                _note([place], layer, begun_ns, attended_ns)
                for error in failed.values():
                    raise error
            last = rows[-1:]
        assert last is not None, "admission lets no empty prompt pass"
        begun_ns = perf_counter_ns()
        logits: NDArray[np.float32] = (await self.compute.run("head 1", self.trunk.logits, last))[0]
        place.scope.times.head_us += _since_us(begun_ns)
        return logits

    async def tokens(self, places: Sequence[Place], ids: Sequence[int]) -> list[NDArray[np.float32] | SawyerError]:
        """For each place the logits [V] after one more token, or why there are none: what one request meets stops no
        other. Each row is bit for bit what it would be alone. Places with one cache come one after the other; where one
        fails, so do those behind it, and the layers of the cache have rows that others have not."""
        told: list[NDArray[np.float32] | SawyerError | None] = [None] * len(places)
        on, rows = list(range(len(places))), self.trunk.embed(ids)
        for layer in range(self.trunk.layout.layers):
            there = [places[at] for at in on]
            kind = _kind(there)
            begun_ns = perf_counter_ns()
            attended = await self.compute.run(
                kind, self.trunk.attend_many, layer, rows, [place.cache for place in there]
            )
            shares = [Share(place.scope, 1) for place in there]
            attended_ns = perf_counter_ns()
            rows, failed = await self._experts(layer, attended, shares, there, kind)
            _note(there, layer, begun_ns, attended_ns)
            if failed:
                failed = _with_those_behind(there, failed)
                for at, error in failed.items():
                    told[on[at]] = error
                kept = [at for at in range(len(on)) if at not in failed]
                on, rows = [on[at] for at in kept], rows[kept]
            if not on:
                break
        if on:
            begun_ns = perf_counter_ns()
            logits = await self.compute.run(f"head {len(on).bit_length()}", self.trunk.logits, rows)
            for times in {places[at].scope.times for at in on}:
                times.head_us += _since_us(begun_ns)
            for at, row in zip(on, logits, strict=True):
                told[at] = row
        return [each for each in told if each is not None]

    async def _experts(
        self, layer: int, attended: Attended, shares: Sequence[Share], places: Sequence[Place], kind: str
    ) -> tuple[Hidden, dict[int, SawyerError]]:
        """The hidden states after the layer, and the shares that some expert was not there for: their rows mean
        nothing."""
        groups = group_rows(attended.experts)
        if not groups:  # a layer without experts
            return attended.residual, {}
        work = [ExpertRows(group.expert, group.rows) for group in groups]
        asked = self._dispatcher.layer(shares, layer, attended.hidden, work)
        if self.trunk.has_shared(layer):
            residual, answers = await self._beside(layer, attended, asked, kind)
        else:
            residual, answers = attended.residual, await asked
        for place, calls in zip(places, answers.calls, strict=True):
            if calls:
                place.calls.append((layer, tuple(calls)))
        return combine(residual, groups, answers.blocks, attended.weights), dict(answers.failed)

    async def _beside(
        self, layer: int, attended: Attended, asked: Awaitable[LayerAnswers], kind: str
    ) -> tuple[Hidden, LayerAnswers]:
        """The shared expert, computed here while the others are asked elsewhere."""
        shared = self.compute.run(f"shared {kind}" if kind else "", self.trunk.shared, layer, attended.hidden)
        answers = asyncio.ensure_future(asked)
        try:
            return attended.residual + await shared, await answers
        finally:
            answers.cancel()  # nobody asks on for a layer that failed here


def _note(places: Sequence[Place], layer: int, begun_ns: int, attended_ns: int) -> None:
    """For each request once: it may have several rows in a pass."""
    attend_us, experts_us = (attended_ns - begun_ns) // 1000, _since_us(attended_ns)
    for times in {place.scope.times for place in places}:
        times.passed(layer, attend_us, experts_us)


def _since_us(begun_ns: int) -> int:
    return (perf_counter_ns() - begun_ns) // 1000


def _with_those_behind(places: Sequence[Place], failed: dict[int, SawyerError]) -> dict[int, SawyerError]:
    """Also the places whose rows come after a failed one of the same sequence."""
    behind: dict[int, SawyerError] = {}
    for at, place in enumerate(places):
        before = behind.get(at - 1) if at and places[at - 1].cache is place.cache else None
        error = before or failed.get(at)
        if error is not None:
            behind[at] = error
    return behind


def _kind(places: Sequence[Place]) -> str:
    """Steps of one kind take about as long: so many rows, and attention takes longer the further back it reaches."""
    reach = max(place.cache.length for place in places)
    return f"rows {len(places).bit_length()} {reach.bit_length()}"
