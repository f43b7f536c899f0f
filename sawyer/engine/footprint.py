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
| gguf Q8_0 and Q5_0, 4 | 1.27 to 1.44 | 2.84 |
| gguf Q5_1 and Q5_K, 4 | 1.25 to 1.37 | 2.77 |
| gguf Q4_K, Q4_1 and Q6_K, 4 | 1.41 to 1.62 | 3.10 |
| gguf Q4_0, 4 | 1.47 to 1.79 | 2.93 |
| gguf Q2_K, 4 | 1.56 to 1.71 | 3.08 |
| gguf Q3_K, 4 | 1.73 to 1.99 | 3.48 |
| gguf, 0 (exact) | 1.13 to 1.14 | 3.16 |

Of gguf the first number is of files of 31 to 63 MB, the second of 3 to 5 MB, whose sessions alone weigh more.

ONNX Runtime copies weights, packs them for its kernels, and lets go of the copies; the fast kernels keep packed weights
beside their scales. A session without weights takes about 200 kB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from sawyer.model.layout import expert_shape
from sawyer.schemas.models import Coding, Format, ModelLayout

SESSION_BYTES: Final = 256 * 1024
KEPT_PERCENT: Final[Mapping[str, int]] = MappingProxyType({"f32": 102, "f16": 102, "q8": 127, "q4": 150})
"""Of the file's size."""
GGUF_PERCENT: Final[Mapping[Coding, int]] = MappingProxyType(
    {"f32": 102, "Q5_1": 134, "Q5_K": 134, "Q5_0": 141, "Q8_0": 141, "Q4_1": 157, "Q4_K": 157, "Q6_K": 157,
     "Q2_K": 166, "Q4_0": 170, "Q3_K": 192}
)  # fmt: skip
"""Of files in format gguf: an expert is counted as the hungriest coding of its model."""
EXACT_PERCENT: Final = 105
"""Where rows are multiplied in float32 (accuracy_level 0), in every format but gguf."""
EXACT_GGUF_PERCENT: Final = 115
LOADING_PERCENT: Final = 300
LOADING_GGUF_PERCENT: Final = 350


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
    if format == "gguf":
        most, exact = LOADING_GGUF_PERCENT, EXACT_GGUF_PERCENT
        fast = max(GGUF_PERCENT[coding] for each in layout.codings or () for coding in (each.gate, each.up, each.down))
    else:
        most, exact, fast = LOADING_PERCENT, EXACT_PERCENT, KEPT_PERCENT[format]
    kept = file_bytes * (fast if accuracy_level else exact) // 100
    return Footprint(kept + SESSION_BYTES, file_bytes * most // 100 - kept)
