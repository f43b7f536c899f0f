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
    price = ModelPrice(model="m", format="q4", price_milli=price_milli, quant_milli=quant_milli)
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
    assert price_tokens(sheet(price_milli, quant_milli), "m", "q4", input_tokens, output_tokens) == debit


@given(counts, counts, millis, millis, millis, millis)
def test_debit_is_the_exact_price_rounded_up_once(
    i: int, o: int, w_in: int, w_out: int, price: int, quant: int
) -> None:
    exact = (i * Fraction(w_in, 1000) + o * Fraction(w_out, 1000)) * Fraction(price, 1000) * Fraction(quant, 1000)
    debit = debit_tokens(
        i, o, input_weight_milli=w_in, output_weight_milli=w_out,
        price=ModelPrice(model="m", format="q4", price_milli=price, quant_milli=quant),
    )  # fmt: skip
    assert exact <= debit < exact + 1


@given(counts, counts, counts, millis, millis)
def test_fewer_output_tokens_never_cost_more(i: int, o: int, less: int, price: int, quant: int) -> None:
    prices = sheet(price, quant)
    assert price_tokens(prices, "m", "q4", i, min(o, less)) <= price_tokens(prices, "m", "q4", i, o)


@pytest.mark.parametrize(("model", "fmt"), [("other", "q4"), ("m", "f32")])
def test_model_and_format_without_a_price_are_refused(model: str, fmt: str) -> None:
    with pytest.raises(UnknownModel, match=f"no price for model {model} in format {fmt}"):
        price_tokens(sheet(), model, fmt, 1, 1)


def test_each_format_of_a_model_has_its_own_price() -> None:
    cheap, dear = (
        ModelPrice(model="m", format=f, price_milli=1000, quant_milli=q) for f, q in (("q4", 800), ("f32", 1000))
    )
    both = sheet().changed(prices=(cheap, dear))
    assert [price_tokens(both, "m", fmt, 100, 0) for fmt in ("q4", "f32")] == [80, 100]


def test_sheets_with_other_prices_have_other_hashes() -> None:
    assert sheet_hash(sheet(1000)) == sheet_hash(sheet(1000)) != sheet_hash(sheet(1001))
