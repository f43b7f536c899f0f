"""The dense part of a model: embedding, attention and gates layer by layer, head. Experts are elsewhere.

The trunk runs on the CPU: ONNX Runtime has no float32 kernel of GroupQueryAttention for CUDA.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sawyer.engine.session import Session, shared_value
from sawyer.errors import PromptTooLong, UsageError
from sawyer.model.artifacts import Artifacts
from sawyer.model.families import family_named
from sawyer.model.graphs import head_graph, rope_tables
from sawyer.schemas.models import ModelLayout

PREFILL_CHUNK: Final = 128
"""Rows that a prompt enters the model by. Everybody who computes uses the same, and so gets the same bits."""


class Attended(NamedTuple):
    """What a layer says before its experts: `residual` [T, H], `hidden` [T, H] (rows that enter experts), gate
    `weights` [T, k] float32 and chosen `experts` [T, k] int32."""

    residual: NDArray[np.float32]
    hidden: NDArray[np.float32]
    weights: NDArray[np.float32]
    experts: NDArray[np.int32]


class KvCache:
    """Keys and values of one sequence: for each layer two buffers of `capacity` rows that attention extends in place.

    Belongs to one request; not to be used by two threads at once. Memory becomes real as rows are written.
    """

    def __init__(self, layout: ModelLayout, capacity: int) -> None:
        self.capacity = capacity
        self.layers = [_LayerCache(layout, capacity) for _ in range(layout.layers)]

    @property
    def length(self) -> int:
        """Rows that every layer has seen."""
        return min(layer.length for layer in self.layers)


class Trunk:
    """The loaded trunk of one model. Immutable; many threads may use it, each with a cache of its own."""

    def __init__(self, artifacts: Artifacts, device: str = "cpu") -> None:
        """Verifies and loads. Raises ArtifactCorrupt, UsageError for a device other than "cpu"."""
        if device != "cpu":
            raise UsageError(
                f"the trunk cannot run on {device!r}", hint="The trunk runs on the CPU; experts can use CUDA."
            )
        self.layout = artifacts.layout
        self._embed: NDArray[np.float32] = artifacts.read_embed()
        rope = rope_tables(self.layout)
        graph = family_named(self.layout.family).trunk_graph(self.layout)
        self._layers = [Session(graph, artifacts.read_trunk_layer(n) | rope) for n in range(self.layout.layers)]
        head = artifacts.read_head()
        weights = {"norm": artifacts.read_norm(), "head": self._embed if head is None else head}
        self._head = Session(head_graph(self.layout), weights)

    def embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """T token ids -> [T, H]. Raises UsageError for an id outside the vocabulary."""
        if not ids or min(ids) < 0 or max(ids) >= self.layout.vocab:
            raise UsageError(f"token ids must be 0 to {self.layout.vocab - 1}, and at least one")
        return self._embed[list(ids)]

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

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hidden states after the last layer [T, H] -> [T, V]."""
        return self._head.run({"x": x})[0]


def prefill_chunks(count: int) -> list[slice]:
    """The slices of PREFILL_CHUNK rows in which `count` prompt rows enter the model."""
    return [slice(a, b) for a, b in pairwise([*range(0, count, PREFILL_CHUNK), count])]


class _LayerCache:
    """One layer's keys and values, and the binding that decodes single rows without an allocation."""

    def __init__(self, layout: ModelLayout, capacity: int) -> None:
        shape = (1, layout.kv_heads, capacity, layout.head_dim)
        self.length = 0
        self._capacity = capacity
        self._layout = layout
        self._keys, self._values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self._one: _OneRow | None = None

    def attend(self, session: Session, x: NDArray[np.float32]) -> Attended:
        end = self.length + len(x)
        if end > self._capacity:
            raise PromptTooLong(f"the cache holds {self._capacity} rows, and {end} are needed")
        if len(x) == 1:
            if self._one is None:
                self._one = _OneRow(session, self._layout, self._keys, self._values)
            attended = self._one.run(x, end)
        else:
            attended = _many_rows(session, x, end, self._keys, self._values)
        self.length = end
        return attended


def _binding(session: Session, keys: NDArray[np.float32], values: NDArray[np.float32]) -> Any:
    """Past and present are one buffer: attention appends in place instead of copying the past."""
    binding = session.raw.io_binding()
    for name, buffer in (("key", keys), ("value", values)):
        shared = shared_value(buffer)
        binding.bind_ortvalue_input(f"past_{name}", shared)
        binding.bind_ortvalue_output(f"present_{name}", shared)
    return binding


def _many_rows(
    session: Session, x: NDArray[np.float32], end: int, keys: NDArray[np.float32], values: NDArray[np.float32]
) -> Attended:
    """A chunk of a prompt. `end` counts the rows in the cache with these."""
    binding = _binding(session, keys, values)
    past_length, total_length = np.array([end - 1], np.int32), np.array(end, np.int32)
    binding.bind_cpu_input("x", np.ascontiguousarray(x))
    binding.bind_cpu_input("past_length", past_length)
    binding.bind_cpu_input("total_length", total_length)
    for name in Attended._fields:
        binding.bind_output(name, "cpu")
    session.raw.run_with_iobinding(binding)
    _, _, *outputs = binding.get_outputs()
    return Attended(*(output.numpy() for output in outputs))


class _OneRow:
    """A decoding step: every input and output is bound once and reused, which halves its time for a small model."""

    def __init__(
        self, session: Session, layout: ModelLayout, keys: NDArray[np.float32], values: NDArray[np.float32]
    ) -> None:
        self._session = session
        self._x = np.zeros((1, layout.hidden), np.float32)
        self._past_length, self._total_length = np.zeros(1, np.int32), np.zeros((), np.int32)
        self._out = Attended(
            residual=np.zeros((1, layout.hidden), np.float32),
            hidden=np.zeros((1, layout.hidden), np.float32),
            weights=np.zeros((1, layout.top_k), np.float32),
            experts=np.zeros((1, layout.top_k), np.int32),
        )
        self._binding = _binding(session, keys, values)
        inputs = {"x": self._x, "past_length": self._past_length, "total_length": self._total_length}
        self._bound = [shared_value(array) for array in (*inputs.values(), *self._out)]
        for name, value in zip(inputs, self._bound, strict=False):
            self._binding.bind_ortvalue_input(name, value)
        for name, value in zip(Attended._fields, self._bound[len(inputs) :], strict=True):
            self._binding.bind_ortvalue_output(name, value)

    def run(self, x: NDArray[np.float32], end: int) -> Attended:
        self._x[:] = x
        self._past_length[0] = end - 1
        self._total_length[()] = end
        self._session.raw.run_with_iobinding(self._binding)
        out = self._out
        return Attended(out.residual.copy(), out.hidden.copy(), out.weights.copy(), out.experts.copy())
