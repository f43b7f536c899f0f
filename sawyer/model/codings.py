"""Format gguf: which of a GGUF file's blocks the experts of each layer keep, without being quantised again. Pure.

A matrix keeps its blocks where those of all experts of its layer are of one type and stand in the file in rows. What is
not quantised, what the converter rearranged, and what differs from expert to expert is stored in float32, which holds
each of its weights exactly.
"""

from __future__ import annotations

from collections.abc import Iterable

from sawyer.errors import UsageError
from sawyer.model.checkpoint import Source, TensorRef
from sawyer.model.families.family import TensorMap
from sawyer.model.gguf import Gguf
from sawyer.schemas.models import Coding, ExpertCodings, ModelLayout


def coded(layout: ModelLayout, checkpoint: Source, tensors: TensorMap) -> ModelLayout:
    """The layout with the codings of this file's experts. Raises UsageError unless it is a GGUF file."""
    if not isinstance(checkpoint, Gguf):
        raise UsageError(
            "format gguf is for .gguf files: this checkpoint has no blocks to keep",
            hint="f32 holds its weights exactly; q4 and q8 are smaller.",
        )
    codings = []
    for layer in layout.moe_layers:
        own = [tensors.experts[layer, expert] for expert in range(layout.experts)]
        gate, up, down = (
            _of_all(checkpoint, refs)
            for refs in ((each.gate for each in own), (each.up for each in own), (each.down for each in own))
        )
        codings.append(ExpertCodings(gate=gate, up=up, down=down))
    return layout.model_copy(update={"codings": tuple(codings)})


def _of_all(file: Gguf, refs: Iterable[TensorRef]) -> Coding:
    found = {file.coding(ref) for ref in refs}
    return found.pop() if len(found) == 1 else "f32"
