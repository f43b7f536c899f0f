"""Which reader takes a checkpoint: a folder of safetensors or a GGUF file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from sawyer.ids import slug_of
from sawyer.model.checkpoint import Checkpoint, Source
from sawyer.model.gguf import SUFFIX, Gguf

_PART: Final = re.compile(r"-\d{5}-of-\d{5}$")
"""How the names of a model in several GGUF files end."""


def model_name(path: Path) -> str:
    """The folder's or file's name as a model id."""
    place = path.resolve()
    return slug_of(_PART.sub("", place.stem) if place.suffix == SUFFIX else place.name)


def open_source(path: Path) -> Source:
    """Reads the headers. Raises UsageError (no checkpoint there), UnsupportedModel, CheckpointCorrupt."""
    return Gguf.open(path) if path.suffix == SUFFIX and not path.is_dir() else Checkpoint.open(path)
