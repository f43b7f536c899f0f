"""The models that Sawyer knows by name: the demo model inside the package, and the public configs in `catalogue/`.

A file there is `{"hub_id": ..., "config": ...}`: where the model is published, and of its config.json the fields that a
family reads, with the tokens that end an answer where its generation_config.json alone names them. Whatever else is
told of a model is computed from that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from sawyer.ids import ModelId, slug_of

DEMO_MODEL: Final = ModelId("austen-8m")
"""A real Mixtral-architecture model of 8 million parameters, trained on Jane Austen: sawyer/demo_model/README.md."""


@dataclass(frozen=True)
class CatalogueModel:
    """A public model: what it is called here, where it is published, and its config."""

    name: str
    hub_id: str
    config: Mapping[str, Any]

    def is_called(self, name: str) -> bool:
        """Its name, its hub id, or what a split from the hub calls it."""
        published = self.hub_id.rpartition("/")[2]
        return name == self.hub_id or slug_of(name) in (slug_of(self.name), slug_of(published))


def demo_checkpoint() -> Path:
    """The folder of the demo model's checkpoint, in Hugging Face layout: a source for `split`."""
    return Path(str(files("sawyer"))) / "demo_model" / "checkpoint"


@cache
def catalogue() -> tuple[CatalogueModel, ...]:
    """All public models whose configs are in the package, by name."""
    folder = Path(str(files("sawyer"))) / "model" / "catalogue"
    return tuple(_read(file) for file in sorted(folder.glob("*.json"), key=lambda file: file.stem))


def catalogue_model(name: str) -> CatalogueModel | None:
    """The one that is called so; None if there is none."""
    return next((model for model in catalogue() if model.is_called(name)), None)


def _read(file: Path) -> CatalogueModel:
    entry = json.loads(file.read_text(encoding="utf-8"))
    return CatalogueModel(file.stem, entry["hub_id"], entry["config"])
