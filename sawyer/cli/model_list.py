"""Which models there are: published on the network, split in this home, in the package, in the catalogue of public
models. Owns how these are joined, and found by a name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from difflib import get_close_matches
from typing import Final

from sawyer.cli.model_here import Local
from sawyer.errors import UsageError
from sawyer.model.catalog import DEMO_MODEL, catalogue, catalogue_model
from sawyer.schemas.events import ModelPublished, PricingPublished
from sawyer.schemas.messages import NetworkReply
from sawyer.schemas.models import Format

IN_PACKAGE: Final = (DEMO_MODEL,)
"""Models whose checkpoint comes with the package."""
MAX_NEAR: Final = 3
"""Names that are offered instead of an unknown one."""


@dataclass(frozen=True)
class Price:
    """Budget tokens for one text token that goes in, and for one that comes out."""

    input: Decimal
    output: Decimal

    def __str__(self) -> str:
        return f"{self.input}" if self.input == self.output else f"{self.input} in, {self.output} out"


@dataclass(frozen=True)
class KnownModel:
    """One model in one format. `digest` names its weights; "" for what is not split yet. `hub_id` is where a model of
    the catalogue is published. `offered`: the network's store has its files."""

    model: str
    format: str = ""
    digest: str = ""
    published: ModelPublished | None = None
    price: Price | None = None
    local: Local | None = None
    in_package: bool = False
    hub_id: str = ""
    offered: bool = False


def join(network: NetworkReply | None, local: Sequence[Local], offered: Collection[str] = ()) -> list[KnownModel]:
    """One row for each model and weights: the published ones first, then what is only here. `offered`: the manifests
    whose files the network's store has. Of a split and a pulled copy the split is shown."""
    rows: dict[tuple[str, str], KnownModel] = {}
    for each in network.models if network is not None else ():
        price = price_of(network.pricing, each.model, each.format) if network is not None and network.pricing else None
        row = KnownModel(each.model, each.format, each.manifest, each, price, offered=each.manifest in offered)
        rows[each.model, each.manifest] = row
    for here in local:
        manifest = here.manifest
        key = (manifest.model, manifest.digest())
        known = rows.get(key) or KnownModel(manifest.model, manifest.format, manifest.digest())
        rows[key] = replace(known, local=known.local or here)
    named = {row.model for row in rows.values()}
    packaged = [KnownModel(model, in_package=True) for model in IN_PACKAGE if model not in named]
    return [replace(row, in_package=row.model in IN_PACKAGE) for row in rows.values()] + packaged


def catalogue_rows() -> list[KnownModel]:
    """The public models whose configs come with the package."""
    return [KnownModel(model.name, hub_id=model.hub_id) for model in catalogue()]


def find(name: str, format: Format | None, known: Sequence[KnownModel]) -> KnownModel:
    """The model of this name, rather the one that is split here than a published one, rather that than the one of the
    catalogue. Raises UsageError, which offers names that are near."""
    public = catalogue_model(name)
    rows = [row for row in known if row.model == name]
    rows = rows or [row for row in known if public is not None and public.is_called(row.model)]
    if not rows and public is not None:
        return KnownModel(public.name, hub_id=public.hub_id)
    found = [row for row in rows if format is None or row.format in (format, "")]
    if found:
        return next((each for each in found if each.local), found[0])
    listed = "`sawyer models ls` and `sawyer models ls --catalogue` list them."
    if rows:
        formats = " or ".join(sorted({row.format for row in rows}))
        raise UsageError(f"there is no model {name} in format {format} here or on the network",
                         hint=f"It is there in {formats}.")  # fmt: skip
    near = near_names(name, [row.model for row in known])
    raise UsageError(
        f"there is no model {name} here, on the network or in the catalogue",
        hint=f"Near: {', '.join(near)}. {listed[0].upper()}{listed[1:]}" if near else listed,
    )


def near_names(name: str, known: Sequence[str]) -> list[str]:
    """Names that a person may have meant: those that hold this one, then those with most letters in common."""
    wanted, names = name.lower(), sorted({*known, *(model.name for model in catalogue())})
    holding = [each for each in names if len(wanted) > 1 and wanted in each.lower()]
    alike = get_close_matches(wanted, [each for each in names if each not in holding], MAX_NEAR, 0.5)
    return (holding + alike)[:MAX_NEAR]


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
