"""What a model family must say about itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sawyer.model.checkpoint import TensorRef
from sawyer.model.graphs import Norm
from sawyer.model.layout import FileShape
from sawyer.model.trunk_graph import LayerGraphs
from sawyer.schemas.models import ModelLayout

Sections = Mapping[str, tuple[TensorRef, ...]]
"""Each section of a file, and the tensors that fill it one after the other."""


@dataclass(frozen=True, slots=True)
class ExpertRefs:
    """The three matrices of one SwiGLU expert: gate and up [F, H], down [H, F]."""

    gate: TensorRef
    up: TensorRef
    down: TensorRef


@dataclass(frozen=True, slots=True)
class TensorMap:
    """Where every weight of a model stands in its checkpoint.

    `layers[l]` maps each section of a trunk layer's file to the tensors that fill it, one after the other; `shared[l]`
    those of its shared expert. `head` is None where it is tied to the embedding. `ignored` are tensors that may be
    there and mean nothing.
    """

    embed: TensorRef
    norm: TensorRef
    head: TensorRef | None
    layers: tuple[Sections, ...]
    experts: Mapping[tuple[int, int], ExpertRefs]
    ignored: frozenset[str]
    shared: Mapping[int, Sections] = field(default_factory=dict)

    def refs(self) -> Iterator[TensorRef]:
        """Every part of every tensor that the split reads."""
        yield from (self.embed, self.norm)
        if self.head is not None:
            yield self.head
        for file in (*self.layers, *self.shared.values()):
            for parts in file.values():
                yield from parts
        for expert in self.experts.values():
            yield from (expert.gate, expert.up, expert.down)


class Family(Protocol):
    """One architecture. `name` is the `model_type` of its config.json and the `family` of its layouts. `norm`: which
    one ends the model. `gated_shared`: a shared expert, where there is one, is multiplied with a gate of its own."""

    name: str
    norm: Norm
    gated_shared: bool

    def layout(self, config: Mapping[str, Any]) -> ModelLayout:
        """Sizes and constants. Raises UnsupportedModel for any option that this code does not compute."""
        ...

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        """Whether the head is the embedding."""
        ...

    def tensors(self, layout: ModelLayout, names: Collection[str], *, tied: bool) -> TensorMap:
        """Where the weights stand, given the tensor names that the checkpoint has."""
        ...

    def check(self, layout: ModelLayout) -> None:
        """Raises UnsupportedModel unless a layout read from a manifest is one that this family can compute."""
        ...

    def trunk_layer(self, layout: ModelLayout, layer: int) -> FileShape:
        """The sections of one trunk layer's file."""
        ...

    def trunk_graphs(self, layout: ModelLayout, layer: int) -> LayerGraphs:
        """One trunk layer as ONNX, its sections as external initializers. The contract is in sawyer.model.trunk_graph.
        All layers with experts have the same graphs, and all layers without."""
        ...
