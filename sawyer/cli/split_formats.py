"""Which formats a split writes, of what a person asked for. Pure."""

from __future__ import annotations

from typing import Final

from sawyer.cli.models import known_format
from sawyer.errors import UsageError
from sawyer.schemas.models import Format

FAST_FORMAT: Final[Format] = "q4"
TRUNK_FORMAT: Final[Format] = "f32"


def formats_of(format: str, trunk_format: str, *, exact: bool, gguf: bool) -> tuple[Format, Format]:
    """Of the experts and of the trunk; "" where nothing was asked for. `exact`: no weight is changed, so a GGUF file's
    experts keep their blocks and all else is float32. Raises UsageError for formats that contradict it, and for what is
    no format."""
    wanted, trunk = known_format(format or FAST_FORMAT), known_format(trunk_format or TRUNK_FORMAT, of_trunk=True)
    if not exact:
        return wanted, trunk
    lossless: Format = "gguf" if gguf else "f32"
    if format not in ("", lossless):
        source = "a GGUF file" if gguf else "a checkpoint that is no GGUF file"
        raise UsageError(
            f"--exact changes no weight, and --format {format} would round them",
            hint=f"Leave out one of both: --exact of {source} gives {lossless}.",
        )
    if trunk != "f32":
        raise UsageError(
            f"--exact changes no weight, and --trunk-format {trunk} would round them",
            hint="Leave out one of both: an exact trunk is f32.",
        )
    return lossless, "f32"
