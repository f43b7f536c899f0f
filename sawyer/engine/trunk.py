"""The dense part of a model: embedding, attention and gates layer by layer, head. Experts are elsewhere.

The trunk runs on the CPU: ONNX Runtime has no float32 kernel of GroupQueryAttention for CUDA. Weights stored in float16
are float32 here, except for the embedding, whose rows are looked up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sawyer.engine.cache import Attended, KvCache
from sawyer.engine.experts import FAST
from sawyer.engine.session import Session
from sawyer.errors import PromptTooLong, UsageError
from sawyer.model.artifacts import Artifacts
from sawyer.model.families import family_named
from sawyer.model.graphs import head_graph, shared_graph, stored_graph
from sawyer.model.layout import Array, head_shape, shared_shape
from sawyer.model.trunk_graph import rope_tables
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
        graph_of: dict[int, bytes] = {}
        for kind in filter(None, (layout.moe_layers, layout.dense_layers)):
            file = family.trunk_layer(layout, kind[0]).in_format(format)
            graph_of |= dict.fromkeys(kind, in_format(family.trunk_graph(layout, kind[0]), file))
        self._layers = [
            Session(graph_of[n], _widened(artifacts.read_trunk_layer(n)), shared=rope) for n in range(layout.layers)
        ]
        self._shared: dict[int, Session] = {}
        shared = shared_shape(layout, gated=family.gated_shared)
        if shared is not None:
            graph = in_format(shared_graph(layout, gated=family.gated_shared), shared.in_format(format))
            self._shared = {n: Session(graph, _widened(artifacts.read_shared(n))) for n in layout.moe_layers}
        head, graph = artifacts.read_head(), head_graph(layout, family.norm)
        if head is None:
            head = {"head": self._embed}
        else:
            graph = in_format(graph, head_shape(layout).in_format(format))
        self._head = Session(graph, _widened(head) | {"norm": artifacts.read_norm()})

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
        return cache.layers[layer].attend(self._layers[layer], x)

    def has_shared(self, layer: int) -> bool:
        """Whether every token of this layer passes a shared expert."""
        return layer in self._shared

    def shared(self, layer: int, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the shared expert of such a layer adds to the residual: [T, H] of the rows [T, H] that enter experts.
        Apart from `attend`, so that it can run while the others are asked elsewhere."""
        return self._shared[layer].run({"x": hidden})[0]

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hidden states after the last layer [T, H] -> [T, V]."""
        return self._head.run({"x": x})[0]


def _widened(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Float16 as float32: the CPU has no kernels for less. What is float32 beside it is copied, or its views would keep
    the whole file in memory."""
    if not any(one.dtype == np.float16 for one in weights.values()):
        return dict(weights)
    return {name: one.astype(np.float32) for name, one in weights.items()}


def prefill_chunks(count: int) -> list[slice]:
    """The slices of PREFILL_CHUNK rows in which `count` prompt rows enter the model."""
    return [slice(a, b) for a, b in pairwise([*range(0, count, PREFILL_CHUNK), count])]
