"""Prices: the worked examples of docs/token-economics.md, and what must hold for all numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.economy.pricing import debit_tokens, price_tokens, sheet_hash
from sawyer.errors import UnknownModel
from sawyer.schemas.events import ModelPrice, PricingPublished

counts = st.integers(0, 10**7)
millis = st.integers(1, 10**5)


def sheet(price_milli: int = 1000, quant_milli: int = 1000, input_milli: int = 1000, output_milli: int = 1000):
    price = ModelPrice(model="m", price_milli=price_milli, quant_milli=quant_milli)
    return PricingPublished(
        network="net/1", sheet="s", input_weight_milli=input_milli, output_weight_milli=output_milli, prices=(price,)
    )


@pytest.mark.parametrize(
    ("input_tokens", "output_tokens", "price_milli", "quant_milli", "debit"),
    [(512, 128, 1000, 1000, 640), (512, 128, 1000, 800, 512), (1, 1, 2500, 800, 4), (1, 0, 1000, 800, 1)],
)
def test_price_equals_worked_example(
    input_tokens: int, output_tokens: int, price_milli: int, quant_milli: int, debit: int
) -> None:
    assert price_tokens(sheet(price_milli, quant_milli), "m", input_tokens, output_tokens) == debit


@given(counts, counts, millis, millis, millis, millis)
def test_debit_is_the_exact_price_rounded_up_once(
    i: int, o: int, w_in: int, w_out: int, price: int, quant: int
) -> None:
    exact = (i * Fraction(w_in, 1000) + o * Fraction(w_out, 1000)) * Fraction(price, 1000) * Fraction(quant, 1000)
    debit = debit_tokens(
        i, o, input_weight_milli=w_in, output_weight_milli=w_out,
        price=ModelPrice(model="m", price_milli=price, quant_milli=quant),
    )  # fmt: skip
    assert exact <= debit < exact + 1


@given(counts, counts, counts, millis, millis)
def test_fewer_output_tokens_never_cost_more(i: int, o: int, less: int, price: int, quant: int) -> None:
    prices = sheet(price, quant)
    assert price_tokens(prices, "m", i, min(o, less)) <= price_tokens(prices, "m", i, o)


def test_model_without_a_price_is_refused() -> None:
    with pytest.raises(UnknownModel, match="no price for model other"):
        price_tokens(sheet(), "other", 1, 1)


def test_sheets_with_other_prices_have_other_hashes() -> None:
    assert sheet_hash(sheet(1000)) == sheet_hash(sheet(1000)) != sheet_hash(sheet(1001))
