"""What a request costs in budget tokens. Owns the one debit formula; not who pays, nor from which bucket."""

from __future__ import annotations

import hashlib
from typing import Final

from sawyer.errors import UnknownModel
from sawyer.money import ceil_div
from sawyer.schemas.events import ModelPrice, PricingPublished

UUSD_PER_TOKEN: Final = 10
"""Every tier is exactly 10 micro-USD a budget token."""
_MILLI_CUBED: Final = 1000**3


def debit_tokens(
    input_tokens: int, output_tokens: int, *, input_weight_milli: int, output_weight_milli: int, price: ModelPrice
) -> int:
    """Budget tokens for so many text tokens: one ceiling a request (docs/token-economics.md, rule 5)."""
    weighted = input_tokens * input_weight_milli + output_tokens * output_weight_milli
    return ceil_div(weighted * price.price_milli * price.quant_milli, _MILLI_CUBED)


def price_tokens(sheet: PricingPublished, model: str, fmt: str, input_tokens: int, output_tokens: int) -> int:
    """Budget tokens that this sheet asks for a request to this model in the format `fmt`, which is its manifest's.
    Raises UnknownModel if it names no price."""
    for price in sheet.prices:
        if price.model == model and price.format == fmt:
            return debit_tokens(
                input_tokens,
                output_tokens,
                input_weight_milli=sheet.input_weight_milli,
                output_weight_milli=sheet.output_weight_milli,
                price=price,
            )
    raise UnknownModel(
        f"price sheet {sheet.sheet} has no price for model {model} in format {fmt}",
        hint="Ask the network for its current price sheet and models.",
        details={"model": model, "sheet": sheet.sheet},
    )


def sheet_hash(sheet: PricingPublished) -> str:
    """The name by which a client's signed order pins this sheet: SHA-256 of its canonical bytes."""
    return hashlib.sha256(sheet.canonical()).hexdigest()
