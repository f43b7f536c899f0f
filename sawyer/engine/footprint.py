"""What an expert takes in memory. Pure: from its layout and format to bytes.

Measured with ONNX Runtime 1.32 on Linux (RssAnon and VmHWM, after malloc_trim), in multiples of the expert's file:
hidden 192 to 4096, files of 0.1 to 110 MB.

| format, accuracy_level | kept when loaded | at the most while it loads |
| --- | --- | --- |
| f32 | 1.00 | 2.66 |
| q8, 4 (fast) | 1.22 to 1.25 | 2.81 |
| q8, 0 (exact) | 1.02 | 2.6 |
| q4, 4 (fast) | 1.40 to 1.49 | 3.00 |
| q4, 0 (exact) | 1.00 to 1.04 | 2.53 |

ONNX Runtime copies weights, packs them for its kernels, and lets go of the copies; the fast kernels keep packed weights
beside their scales. A session without weights takes about 200 kB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from sawyer.model.layout import expert_shape
from sawyer.schemas.models import Format, ModelLayout

SESSION_BYTES: Final = 256 * 1024
KEPT_PERCENT: Final[Mapping[str, int]] = MappingProxyType({"f32": 102, "f16": 102, "q8": 127, "q4": 150})
"""Of the file's size. What is not named here takes what the hungriest of them does."""
EXACT_PERCENT: Final = 105
"""Where rows are multiplied in float32 (accuracy_level 0), in every format."""
LOADING_PERCENT: Final = 300


@dataclass(frozen=True)
class Footprint:
    """Of one expert: what it takes while it is loaded, and what its loading takes for a moment on top of that."""

    kept_bytes: int
    loading_bytes: int

    def fit(self, limit_bytes: int) -> int:
        """How many experts can be loaded within a limit, the room for loading one among them counted. At least one:
        nothing runs without it."""
        return max(1, (limit_bytes - self.loading_bytes) // self.kept_bytes)

    def room_for(self, experts: int) -> int:
        """The smallest limit, in bytes, within which so many are loaded."""
        return experts * self.kept_bytes + self.loading_bytes


def expert_footprint(layout: ModelLayout, format: Format, *, accuracy_level: int) -> Footprint:
    """In main memory, or in that of the GPU on which experts run. `accuracy_level` as in sawyer.engine.experts."""
    file_bytes = expert_shape(layout, format).size_bytes
    percent = KEPT_PERCENT.get(format, max(KEPT_PERCENT.values())) if accuracy_level else EXACT_PERCENT
    kept_bytes = file_bytes * percent // 100 + SESSION_BYTES
    return Footprint(kept_bytes, file_bytes * LOADING_PERCENT // 100 - file_bytes * percent // 100)
