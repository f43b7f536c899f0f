"""Models on this machine: split, or pulled from the network. Owns how they are found by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sawyer.errors import SawyerError
from sawyer.home import Home
from sawyer.schemas.models import MANIFEST_FILE, Manifest

if TYPE_CHECKING:
    from sawyer.model.cache import ModelCache
    from sawyer.settings import Settings


@dataclass(frozen=True)
class Local:
    """A model in this home, split or pulled."""

    folder: Path
    manifest: Manifest
    pulled: bool = False

    @property
    def here(self) -> list[str]:
        """The files of its manifest that are here."""
        return [file.path for file in self.manifest.files if (self.folder / file.path).is_file()]

    @property
    def missing(self) -> int:
        return len(self.manifest.files) - len(self.here)

    @property
    def size_bytes(self) -> int:
        """Of all its files, whether they are here or not."""
        return sum(file.size_bytes for file in self.manifest.files)

    @property
    def told(self) -> str:
        """In a line."""
        here = len(self.here)
        what = f"pulled, {here} of {len(self.manifest.files)} files" if self.pulled else f"split, {here} files"
        return f"{self.manifest.model} ({self.manifest.format}), {what}, {self.folder}"


def local_models(home: Home) -> tuple[list[Local], list[SawyerError]]:
    """The models of this home, split ones first, by folder, and what is wrong with those that cannot be used."""
    from sawyer.model.artifacts import Artifacts

    found: list[Local] = []
    wrong: list[SawyerError] = []
    for place in (home.models, home.cache):
        for file in sorted(place.glob(f"*/{MANIFEST_FILE}")):
            try:
                found.append(Local(file.parent, Artifacts.open(file.parent).manifest, pulled=place == home.cache))
            except SawyerError as error:
                wrong.append(error)
    return found, wrong


def pulled_models(home: Home, model: str, format: str = "") -> list[Local]:
    """The pulled copies of this model that can be used, in this format if one is named: last the one that the network
    named last."""
    from sawyer.model.cache import named_last_ns

    found = [each for each in local_models(home)[0] if each.pulled and each.manifest.model == model]
    fitting = [each for each in found if format in ("", each.manifest.format)]
    return sorted(fitting, key=lambda each: named_last_ns(each.folder))


def split_formats(home: Home, model: str) -> list[str]:
    """The formats in which this home has a split of this name."""
    return sorted(format for name, format in split_names(home) if name == model)


def split_names(home: Home) -> list[tuple[str, str]]:
    """Name and format of every split in this home: its folder is NAME-FORMAT."""
    folders = sorted(file.parent.name.rpartition("-") for file in home.models.glob(f"*/{MANIFEST_FILE}"))
    return [(model, format) for model, _, format in folders if model]


def cache_of(settings: Settings) -> ModelCache:
    """Where this home keeps what it pulled."""
    from sawyer.model.cache import ModelCache

    return ModelCache(settings.home.cache, settings.cache_limit_bytes)
