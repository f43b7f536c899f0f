"""An expert of random weights, in a model's own shape and format: shows what this machine can do with such experts
before any of them is here."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sawyer.engine.experts import FAST
from sawyer.engine.session import CUDA, Device, Session, running_provider
from sawyer.errors import MissingExtra
from sawyer.model.graphs import expert_graph
from sawyer.model.layout import Array, Section, expert_shape
from sawyer.schemas.models import Format, ModelLayout

_SCALE: Final = np.float32(0.02)
"""About as large as trained weights are."""


class ExpertProbe:
    """Takes the memory of one expert. `provider`: where it really runs."""

    def __init__(
        self, layout: ModelLayout, format: Format, *, accuracy_level: int = FAST, device: Device = "auto"
    ) -> None:
        """Raises MissingExtra if experts in this format cannot run on this device, UnsupportedModel."""
        self.hidden = layout.hidden
        random = np.random.default_rng(0)
        weights = {each.name: _drawn(each, random) for each in expert_shape(layout, format).sections}
        self._session = Session(expert_graph(layout, format, accuracy_level=accuracy_level), weights, device=device)
        self.provider = running_provider(self._session)
        if format == "f16" and self.provider != CUDA:
            raise MissingExtra(
                f"experts in f16 run on CUDA alone, and sessions run here on {self.provider}",
                hint="A network that publishes this model in q4 or q8 can be served here; for CUDA: pip uninstall "
                "onnxruntime; pip install 'sawyer[gpu]'.",
            )

    def run(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """[T, H] float32 -> [T, H] float32. Blocking."""
        return self._session.run({"x": rows})[0]


def _drawn(section: Section, random: np.random.Generator) -> Array:
    if section.kind == "u8":
        return random.integers(0, 256, section.shape, np.uint8)
    drawn = random.standard_normal(section.shape, np.float32) * _SCALE
    return drawn.astype(section.dtype)
