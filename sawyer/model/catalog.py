"""The models that Sawyer knows by name. Today that is the demo model inside the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from sawyer.ids import ModelId

DEMO_MODEL: Final = ModelId("austen-8m")
"""A real Mixtral-architecture model of 8 million parameters, trained on Jane Austen: sawyer/demo_model/README.md."""


def demo_checkpoint() -> Path:
    """The folder of the demo model's checkpoint, in Hugging Face layout: a source for `split`."""
    return Path(str(files("sawyer"))) / "demo_model" / "checkpoint"
