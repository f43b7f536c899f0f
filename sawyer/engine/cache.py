"""What one sequence leaves behind in each layer for the tokens after it, and attention over that.

Two kinds: keys and values, which ONNX Runtime's attention extends in place; and the latents of DeepSeek, one small row
a token for all heads, which are written here. Attention has no weights, so all layers of a model share one session.
"""

from __future__ import annotations

import math
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from sawyer.engine.session import Session, shared_value
from sawyer.errors import PromptTooLong, UsageError
from sawyer.schemas.models import LatentAttention, ModelLayout

MAX_SCORES: Final = 1 << 24
"""Of heads times new rows times cached ones, in latent attention: 64 MiB each time they are written down. A chunk that
would have more enters in equal parts, which follow from model and position alone: everybody makes the same ones."""
FLOAT_BYTES: Final = 4


class LayerCache(Protocol):
    """One layer's part of a cache. `length`: the rows it has seen. Rows [T, W] and what comes of them [T, A] are those
    of the attention graphs in sawyer.model.trunk_graph."""

    length: int

    def attend(self, session: Session, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Attention of T new rows over all before them and themselves, which is valid until the next call. Keeps what
        later ones need. The caller has asked KvCache.check_room."""


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

    @staticmethod
    def bytes_for(layout: ModelLayout, rows: int) -> int:
        """What a cache of this capacity takes in memory once it is full."""
        if layout.latent is None:
            width = 2 * layout.kv_heads * layout.head_dim
        else:
            width = layout.latent.kv_rank + layout.latent.rope_dim
        return FLOAT_BYTES * layout.layers * width * rows

    @property
    def length(self) -> int:
        """Rows that every layer has seen."""
        return min(layer.length for layer in self.layers)

    def check_room(self, layer: int, rows: int) -> None:
        """Raises PromptTooLong unless this layer has room for so many more rows."""
        end = self.layers[layer].length + rows
        if end > self.capacity:
            raise PromptTooLong(f"the cache holds {self.capacity} rows, and {end} are needed")

    def truncate(self, length: int) -> None:
        """Back to the first `length` rows, as if no layer had seen a later one. Raises UsageError for more rows than
        every layer has seen."""
        if not 0 <= length <= self.length:
            raise UsageError(f"a cache of {self.length} rows cannot go back to {length}")
        for layer in self.layers:
            layer.length = length


class _KeysAndValues:
    """One layer's keys and values, and the binding that decodes single rows without an allocation."""

    def __init__(self, layout: ModelLayout, capacity: int) -> None:
        shape = (1, layout.kv_heads, capacity, layout.head_dim)
        self.length = 0
        self._layout = layout
        self._keys, self._values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self._one: _OneRow | None = None

    def attend(self, session: Session, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """See LayerCache.attend."""
        end = self.length + len(rows)
        if len(rows) == 1:
            if self._one is None:
                self._one = _OneRow(session, self._layout, self._keys, self._values)
            attended = self._one.run(rows, end)
        else:
            attended = _many_rows(session, rows, end, self._keys, self._values)
        self.length = end
        return attended


class _Latents:
    """One layer's latents and rotated keys, side by side and without heads."""

    def __init__(self, layout: ModelLayout, sizes: LatentAttention, capacity: int) -> None:
        self.length = 0
        self._heads = layout.heads
        self._rows = np.zeros((capacity, sizes.kv_rank + sizes.rope_dim), np.float32)

    def attend(self, session: Session, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """See LayerCache.attend."""
        end = self.length + len(rows)
        count = min(len(rows), math.ceil(self._heads * len(rows) * end / MAX_SCORES))
        if count == 1:
            return self._attend(session, rows)
        return np.concatenate([self._attend(session, part) for part in np.array_split(rows, count)])

    def _attend(self, session: Session, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        end = self.length + len(rows)
        attended: NDArray[np.float32] = session.run({"rows": rows, "past_rows": self._rows[: self.length]})[0]
        self._rows[self.length : end] = rows[:, -self._rows.shape[1] :]
        self.length = end
        return attended


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
    session: Session, rows: NDArray[np.float32], end: int, keys: NDArray[np.float32], values: NDArray[np.float32]
) -> NDArray[np.float32]:
    """A chunk of a prompt. `end` counts the rows in the cache with these."""
    binding = _binding(session, keys, values)
    past_length, total_length = np.array([end - 1], np.int32), np.array(end, np.int32)
    binding.bind_cpu_input("rows", np.ascontiguousarray(rows[None]))
    binding.bind_cpu_input("past_length", past_length)
    binding.bind_cpu_input("total_length", total_length)
    binding.bind_output("attended", "cpu")
    session.raw.run_with_iobinding(binding)
    attended: NDArray[np.float32] = binding.get_outputs()[-1].numpy()[0]
    return attended


class _OneRow:
    """A decoding step: every input and output is bound once and reused, which halves its time for a small model."""

    def __init__(
        self, session: Session, layout: ModelLayout, keys: NDArray[np.float32], values: NDArray[np.float32]
    ) -> None:
        self._session = session
        width = layout.heads * layout.head_dim
        self._rows = np.zeros((1, 1, width + 2 * layout.kv_heads * layout.head_dim), np.float32)
        self._attended = np.zeros((1, 1, width), np.float32)
        self._past_length, self._total_length = np.zeros(1, np.int32), np.zeros((), np.int32)
        self._binding = _binding(session, keys, values)
        inputs = {"rows": self._rows, "past_length": self._past_length, "total_length": self._total_length}
        for name, array in inputs.items():
            self._binding.bind_ortvalue_input(name, shared_value(array))
        self._binding.bind_ortvalue_output("attended", shared_value(self._attended))

    def run(self, row: NDArray[np.float32], end: int) -> NDArray[np.float32]:
        self._rows[0] = row
        self._past_length[0] = end - 1
        self._total_length[()] = end
        self._session.raw.run_with_iobinding(self._binding)
        attended: NDArray[np.float32] = self._attended[0]
        return attended
