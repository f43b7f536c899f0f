"""The dense part of a model: embedding, attention and gates layer by layer, head. Experts are elsewhere.

The trunk runs on the CPU: ONNX Runtime has no float32 kernel of GroupQueryAttention for CUDA. Weights stored in float16
are float32 here, except for the embedding, whose rows are looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sawyer.engine.cache import KvCache
from sawyer.engine.experts import FAST
from sawyer.engine.layer import Attended, Gated, Rows, TrunkLayer
from sawyer.engine.session import Session
from sawyer.errors import PromptTooLong, UsageError
from sawyer.model.artifacts import Artifacts
from sawyer.model.families import family_named
from sawyer.model.graphs import head_graph, shared_graph, stored_graph
from sawyer.model.layout import BITS, Array, head_shape, shared_shape
from sawyer.model.trunk_graph import LayerPart, rope_tables
from sawyer.schemas.models import Format

PREFILL_CHUNK: Final = 128
"""Rows that a prompt enters the model by. Everybody who computes uses the same, and so gets the same bits."""


class Trunk:
    """The loaded trunk of one model. Immutable; many threads may use it, each with a cache of its own."""

    def __init__(self, artifacts: Artifacts, device: str = "cpu", *, accuracy_level: int = FAST) -> None:
        """Verifies and loads. `accuracy_level` as in sawyer.engine.experts, for a trunk in q4 or q8. Raises
        ArtifactCorrupt, UsageError for a device other than "cpu"."""
        if device != "cpu":
            raise UsageError(
                f"the trunk cannot run on {device!r}", hint="The trunk runs on the CPU; experts can use CUDA."
            )
        self.layout = layout = artifacts.layout
        self._embed: NDArray[np.floating[Any]] = artifacts.read_embed()
        family, rope = family_named(layout.family), rope_tables(layout)
        format: Format = "f32" if artifacts.manifest.trunk == "f16" else artifacts.manifest.trunk
        in_format = partial(stored_graph, accuracy_level=accuracy_level)
        one_row_is_like_many = format not in BITS or accuracy_level == FAST
        rows = partial(Rows, pairs_lone_rows=not one_row_is_like_many)

        def part(of: LayerPart, weights: Mapping[str, Array], shared: Mapping[str, Array]) -> Rows:
            file = of.file.in_format(format)
            own = {section.name: weights[section.name] for section in file.sections}
            return rows(Session(in_format(of.graph, file), own, shared=shared))

        before, within = ({}, rope) if layout.latent is None else (rope, {})
        self._layers: list[TrunkLayer] = []
        self._gates: dict[int, Callable[[], Rows]] = {}
        attention: Session | None = None
        for number in range(layout.layers):
            graphs = family.trunk_graphs(layout, number)
            attention = attention or Session(graphs.attention, {}, shared=within)
            weights = _widened(artifacts.read_trunk_layer(number))
            project, finish = part(graphs.project, weights, before), part(graphs.finish, weights, {})
            if graphs.gate is not None:
                own = _kept(graphs.gate, format, weights)
                self._gates[number] = cache(partial(part, graphs.gate, own, {}))
            self._layers.append(TrunkLayer(number, project, attention, finish))
        self._shared: dict[int, Rows] = {}
        shared = shared_shape(layout, gated=family.gated_shared)
        if shared is not None:
            graph = in_format(shared_graph(layout, gated=family.gated_shared), shared.in_format(format))
            self._shared = {n: rows(Session(graph, _widened(artifacts.read_shared(n)))) for n in layout.moe_layers}
        head, graph = artifacts.read_head(), head_graph(layout, family.norm)
        if head is None:
            head = {"head": self._embed}
        else:
            graph = in_format(graph, head_shape(layout).in_format(format))
        self._head = rows(Session(graph, _widened(head) | {"norm": artifacts.read_norm()}))

    def embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """T token ids -> [T, H]. Raises UsageError for an id outside the vocabulary."""
        if not ids or min(ids) < 0 or max(ids) >= self.layout.vocab:
            raise UsageError(f"token ids must be 0 to {self.layout.vocab - 1}, and at least one")
        return self._embed[list(ids)].astype(np.float32, copy=False)

    def new_cache(self, capacity: int | None = None) -> KvCache:
        """A cache for `capacity` rows, all that a request will ever compute; without it, for the model's whole context.
        Raises PromptTooLong if that is more than the context."""
        wanted = self.layout.context if capacity is None else capacity
        if not 1 <= wanted <= self.layout.context:
            raise PromptTooLong(f"{wanted} tokens do not fit the model's context of {self.layout.context}")
        return KvCache(self.layout, wanted)

    def attend(self, layer: int, x: NDArray[np.float32], cache: KvCache) -> Attended:
        """Attention and gate of one layer over T new rows `x` [T, H], which the cache's layer takes in. Raises
        PromptTooLong if they do not fit."""
        return self._layers[layer].attend(x, cache)

    def attend_many(self, layer: int, x: NDArray[np.float32], caches: Sequence[KvCache]) -> Attended:
        """Decoding steps of many sequences: row b of `x` [B, H] is a new row of the sequence of `caches[b]`, which may
        have several, in their order. Each row is bit for bit what `attend` gives for it alone. Raises PromptTooLong if
        a cache is full, and then leaves all as they were."""
        return self._layers[layer].attend_many(x, caches)

    def gate(self, layer: int, hidden: NDArray[np.float32]) -> Gated:
        """What the gate of a layer with experts says of rows [T, H] that enter experts: bit for bit what `attend` says
        with them. For rows that came from elsewhere; the first call loads it."""
        weights, experts = self._gates[layer]().run({"hidden": hidden})
        return Gated(weights, experts)

    def has_shared(self, layer: int) -> bool:
        """Whether every token of this layer passes a shared expert."""
        return layer in self._shared

    def shared(self, layer: int, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the shared expert of such a layer adds to the residual: [T, H] of the rows [T, H] that enter experts.
        Apart from `attend`, so that it can run while the others are asked elsewhere."""
        added: NDArray[np.float32] = self._shared[layer].run({"x": hidden})[0]
        return added

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hidden states after the last layer [T, H] -> [T, V]."""
        logits: NDArray[np.float32] = self._head.run({"x": x})[0]
        return logits


def _kept(part: LayerPart, format: Format, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Copies of the weights that this part takes: views would keep the whole file in memory."""
    return {section.name: weights[section.name].copy() for section in part.file.in_format(format).sections}


def _widened(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Float16 as float32: the CPU has no kernels for less. What is float32 beside it is copied, or its views would keep
    the whole file in memory."""
    if not any(one.dtype == np.float16 for one in weights.values()):
        return dict(weights)
    return {name: one.astype(np.float32) for name, one in weights.items()}


def prefill_chunks(count: int) -> list[slice]:
    """The slices of PREFILL_CHUNK rows in which `count` prompt rows enter the model."""
    return [slice(a, b) for a, b in pairwise([*range(0, count, PREFILL_CHUNK), count])]
