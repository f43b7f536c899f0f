"""Which models there are: published on the network, split in this home, in the package. Owns how these are joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Final

from sawyer.errors import SawyerError
from sawyer.home import Home
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import DEMO_MODEL
from sawyer.schemas.events import ModelPublished, PricingPublished
from sawyer.schemas.messages import NetworkReply
from sawyer.schemas.models import MANIFEST_FILE, Manifest

CATALOGUE: Final = (DEMO_MODEL,)
"""Models whose checkpoint comes with the package."""


@dataclass(frozen=True)
class Price:
    """Budget tokens for one text token that goes in, and for one that comes out."""

    input: Decimal
    output: Decimal

    def __str__(self) -> str:
        return f"{self.input}" if self.input == self.output else f"{self.input} in, {self.output} out"


@dataclass(frozen=True)
class Local:
    """A split model in this home. `missing` counts files of its manifest that are not here."""

    folder: Path
    manifest: Manifest
    missing: int

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.manifest.files)


@dataclass(frozen=True)
class KnownModel:
    """One model in one format. `digest` names its weights; "" for what is only in the catalogue."""

    model: str
    format: str = ""
    digest: str = ""
    published: ModelPublished | None = None
    price: Price | None = None
    local: Local | None = None
    in_catalogue: bool = False


def local_models(home: Home) -> tuple[list[Local], list[SawyerError]]:
    """The split models of this home, by folder, and what is wrong with those that cannot be used."""
    found: list[Local] = []
    wrong: list[SawyerError] = []
    for file in sorted(home.models.glob(f"*/{MANIFEST_FILE}")):
        try:
            manifest = Artifacts.open(file.parent).manifest
        except SawyerError as error:
            wrong.append(error)
            continue
        missing = sum(not (file.parent / each.path).is_file() for each in manifest.files)
        found.append(Local(file.parent, manifest, missing))
    return found, wrong


def join(network: NetworkReply | None, local: Sequence[Local]) -> list[KnownModel]:
    """One row for each model and weights: the published ones first, then what is only here."""
    rows: dict[tuple[str, str], KnownModel] = {}
    for each in network.models if network is not None else ():
        price = price_of(network.pricing, each.model, each.format) if network is not None and network.pricing else None
        rows[each.model, each.manifest] = KnownModel(each.model, each.format, each.manifest, each, price)
    for here in local:
        manifest = here.manifest
        key = (manifest.model, manifest.digest())
        known = rows.get(key) or KnownModel(manifest.model, manifest.format, manifest.digest())
        rows[key] = replace(known, local=here)
    named = {row.model for row in rows.values()}
    catalogue = [KnownModel(model, in_catalogue=True) for model in CATALOGUE if model not in named]
    return [replace(row, in_catalogue=row.model in CATALOGUE) for row in rows.values()] + catalogue


def price_of(sheet: PricingPublished, model: str, fmt: str) -> Price | None:
    """What this sheet asks for a model in a format; None if it names no price."""
    for each in sheet.prices:
        if (each.model, each.format) == (model, fmt):
            factor = Decimal(each.price_milli * each.quant_milli) / 10**9
            return Price(_plain(factor * sheet.input_weight_milli), _plain(factor * sheet.output_weight_milli))
    return None


def _plain(number: Decimal) -> Decimal:
    """Without trailing zeros, and without an exponent."""
    return Decimal(f"{number.normalize():f}")
