"""Where the files of a split model come from: they are all in a folder, or a network hands them out (sawyer.bus)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from sawyer.model.artifacts import Artifacts


class ModelFiles(Protocol):
    """The files of one model, for those who run it."""

    artifacts: Artifacts

    async def bring(self, paths: Iterable[str], *, suspect: bool = False) -> None:
        """Returns when these files are here and whole; one that is here with wrong bytes is replaced. `suspect`:
        somebody has read wrong bytes, so nothing that was found out before counts. Raises ArtifactCorrupt, which names
        the file, and UnreachableError."""


class FilesHere:
    """A model whose files are all in its folder: what is wrong there stays wrong."""

    def __init__(self, artifacts: Artifacts) -> None:
        self.artifacts = artifacts

    async def bring(self, paths: Iterable[str], *, suspect: bool = False) -> None:
        """Nothing to do: they are here, and reading verifies."""
