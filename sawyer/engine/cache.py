"""What one sequence leaves behind in each layer for the tokens after it, and attention over that.

Two kinds: keys and values, which ONNX Runtime's attention extends in place; and the latents of DeepSeek, one small row
a token for all heads, which are written here.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sawyer.engine.session import Session, shared_value
from sawyer.errors import PromptTooLong
from sawyer.schemas.models import LatentAttention, ModelLayout

MAX_SCORES: Final = 1 << 24
"""Of heads times new rows times cached ones, in latent attention: 64 MiB each time they are written down. A chunk that
would have more enters in equal parts, which follow from model and position alone: everybody makes the same ones."""


class Attended(NamedTuple):
    """What a layer says before its experts: `residual` [T, H], `hidden` [T, H] (rows that enter experts), gate
    `weights` [T, k] float32 and chosen `experts` [T, k] int32. Of a layer without experts `residual` is the end, and
    the others have no rows or columns."""

    residual: NDArray[np.float32]
    hidden: NDArray[np.float32]
    weights: NDArray[np.float32]
    experts: NDArray[np.int32]


class LayerCache(Protocol):
    """One layer's part of a cache. `length`: the rows it has seen."""

    length: int

    def attend(self, session: Session, x: NDArray[np.float32]) -> Attended:
        """Run the layer over T new rows [T, H], and keep what later ones need. Raises PromptTooLong."""


class KvCache:
    """What is kept of one sequence: for each layer, buffers of `capacity` rows.

    Belongs to one request; not to be used by two threads at once. Memory becomes real as rows are written.
    """

    def __init__(self, layout: ModelLayout, capacity: int) -> None:
        self.capacity = capacity
        self.layers: list[LayerCache] = [
            _KeysAndValues(layout, capacity) if layout.latent is None else _Latents(layout, layout.latent, capacity)
            for _ in range(layout.layers)
        ]

    @property
    def length(self) -> int:
        """Rows that every layer has seen."""
        return min(layer.length for layer in self.layers)


class _KeysAndValues:
    """One layer's keys and values, and the binding that decodes single rows without an allocation."""

    def __init__(self, layout: ModelLayout, capacity: int) -> None:
        shape = (1, layout.kv_heads, capacity, layout.head_dim)
        self.length = 0
        self._capacity = capacity
        self._layout = layout
        self._keys, self._values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self._one: _OneRow | None = None

    def attend(self, session: Session, x: NDArray[np.float32]) -> Attended:
        """See LayerCache.attend."""
        end = _end(self.length, x, self._capacity)
        if len(x) == 1:
            if self._one is None:
                self._one = _OneRow(session, self._layout, self._keys, self._values)
            attended = self._one.run(x, end)
        else:
            attended = _many_rows(session, x, end, self._keys, self._values)
        self.length = end
        return attended


class _Latents:
    """One layer's latents and rotated keys, side by side and without heads."""

    def __init__(self, layout: ModelLayout, sizes: LatentAttention, capacity: int) -> None:
        self.length = 0
        self._capacity = capacity
        self._heads = layout.heads
        self._rows = np.zeros((capacity, sizes.kv_rank + sizes.rope_dim), np.float32)

    def attend(self, session: Session, x: NDArray[np.float32]) -> Attended:
        """See LayerCache.attend."""
        end = _end(self.length, x, self._capacity)
        count = min(len(x), math.ceil(self._heads * len(x) * end / MAX_SCORES))
        if count == 1:
            return self._attend(session, x)
        parts = [self._attend(session, part) for part in np.array_split(x, count)]
        return Attended(*map(np.concatenate, zip(*parts, strict=True)))

    def _attend(self, session: Session, x: NDArray[np.float32]) -> Attended:
        end = self.length + len(x)
        inputs = {"x": np.ascontiguousarray(x), "past_rows": self._rows[: self.length]}
        outputs = dict(zip(session.outputs, session.run(inputs), strict=True))
        self._rows[self.length : end] = outputs.pop("new_rows")
        self.length = end
        return _attended(outputs)


def _end(length: int, x: NDArray[np.float32], capacity: int) -> int:
    """The rows in the cache with these. Raises PromptTooLong if they do not fit."""
    end = length + len(x)
    if end > capacity:
        raise PromptTooLong(f"the cache holds {capacity} rows, and {end} are needed")
    return end


def _attended(outputs: dict[str, NDArray[Any]]) -> Attended:
    """What the graph gave; of a layer without experts only the residual."""
    residual = outputs["residual"]
    if "experts" in outputs:
        return Attended(residual, outputs["hidden"], outputs["weights"], outputs["experts"])
    rows = len(residual)
    return Attended(residual, residual[:0], np.zeros((rows, 0), np.float32), np.zeros((rows, 0), np.int32))


def _binding(session: Session, keys: NDArray[np.float32], values: NDArray[np.float32]) -> Any:
    """Past and present are one buffer: attention appends in place instead of copying the past."""
    binding = session.raw.io_binding()
    for name, array in session.shared.items():
        binding.bind_ortvalue_input(name, shared_value(array))
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
    names = [name for name in session.outputs if name in Attended._fields]
    for name in names:
        binding.bind_output(name, "cpu")
    session.raw.run_with_iobinding(binding)
    _, _, *outputs = binding.get_outputs()
    return _attended({name: output.numpy() for name, output in zip(names, outputs, strict=True)})


class _OneRow:
    """A decoding step: every input and output is bound once and reused, which halves its time for a small model."""

    def __init__(
        self, session: Session, layout: ModelLayout, keys: NDArray[np.float32], values: NDArray[np.float32]
    ) -> None:
        self._session = session
        self._x = np.zeros((1, layout.hidden), np.float32)
        self._past_length, self._total_length = np.zeros(1, np.int32), np.zeros((), np.int32)
        out: dict[str, NDArray[Any]] = {
            "residual": np.zeros((1, layout.hidden), np.float32),
            "hidden": np.zeros((1, layout.hidden), np.float32),
            "weights": np.zeros((1, layout.top_k), np.float32),
            "experts": np.zeros((1, layout.top_k), np.int32),
        }
        self._out = {name: array for name, array in out.items() if name in session.outputs}
        self._binding = _binding(session, keys, values)
        inputs = {"x": self._x, "past_length": self._past_length, "total_length": self._total_length}
        self._bound = [shared_value(array) for array in (*inputs.values(), *self._out.values())]
        for name, value in zip(inputs, self._bound, strict=False):
            self._binding.bind_ortvalue_input(name, value)
        for name, value in zip(self._out, self._bound[len(inputs) :], strict=True):
            self._binding.bind_ortvalue_output(name, value)

    def run(self, x: NDArray[np.float32], end: int) -> Attended:
        self._x[:] = x
        self._past_length[0] = end - 1
        self._total_length[()] = end
        self._session.raw.run_with_iobinding(self._binding)
        return _attended({name: array.copy() for name, array in self._out.items()})
