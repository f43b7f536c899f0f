"""Price sheets as the operator changes them: the next one, from the one in force. Pure; publishes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Final

from sawyer.economy.pricing import debit_tokens
from sawyer.errors import UsageError
from sawyer.schemas.events import ModelPrice, PricingPublished
from sawyer.schemas.messages import NetworkReply

BASE_MILLI: Final = 1000
"""One budget token a text token."""
MOST_MILLI: Final = 1_000_000_000
EXAMPLE_TOKENS: Final = (1000, 500)
"""A request by which prices are compared: text tokens in and out."""
EXAMPLE: Final = f"{EXAMPLE_TOKENS[0]:,} tokens in + {EXAMPLE_TOKENS[1]:,} out"
"""The same in words."""


def next_sheet(network: NetworkReply, prices: Iterable[ModelPrice]) -> PricingPublished:
    """The sheet with these prices, named after the size of the book; weights as in the sheet in force."""
    held = network.pricing
    return PricingPublished(
        network=network.network,
        sheet=f"sheet-{network.size}",
        input_weight_milli=held.input_weight_milli if held else BASE_MILLI,
        output_weight_milli=held.output_weight_milli if held else BASE_MILLI,
        prices=tuple(sorted(prices, key=lambda price: (price.model, price.format))),
    )


def price_in(sheet: PricingPublished | None, model: str, fmt: str) -> ModelPrice | None:
    """The price of a model in a format; None if the sheet names none."""
    prices = sheet.prices if sheet is not None else ()
    return next((each for each in prices if (each.model, each.format) == (model, fmt)), None)


def with_price(sheet: PricingPublished | None, price: ModelPrice) -> list[ModelPrice]:
    """All prices of a sheet, with this one in the place of its model's and format's."""
    prices = sheet.prices if sheet is not None else ()
    return [each for each in prices if (each.model, each.format) != (price.model, price.format)] + [price]


def example_cost(sheet: PricingPublished, price: ModelPrice) -> int:
    """Budget tokens of the request by which prices are compared, under this sheet's weights."""
    return debit_tokens(
        *EXAMPLE_TOKENS,
        input_weight_milli=sheet.input_weight_milli,
        output_weight_milli=sheet.output_weight_milli,
        price=price,
    )


def per_mille(name: str, text: str) -> int:
    """`2.5` -> 2500. Raises UsageError for what is no number above 0, or finer than a thousandth."""
    try:
        milli = Decimal(text) * 1000
    except InvalidOperation as error:
        raise UsageError(f"{name} must be a number such as 2.5, got {text!r}", hint="1 is the base price.") from error
    if not milli.is_finite() or not 0 < milli <= MOST_MILLI:
        raise UsageError(f"{name} must be above 0, and at most {MOST_MILLI // 1000:,}; got {text}")
    if milli != int(milli):
        raise UsageError(f"{name} goes down to a thousandth, got {text}", hint="Prices are kept exactly, per mille.")
    return int(milli)


def factor(milli: int) -> str:
    """2500 -> `2.5`."""
    whole, part = divmod(milli, 1000)
    return f"{whole}.{part:03d}".rstrip("0").rstrip(".")
