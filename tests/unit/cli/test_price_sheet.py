"""The next price sheet: one price is another, all others are kept, and nothing is rounded."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.cli.price_sheet import example_cost, factor, next_sheet, per_mille, price_in, with_price
from sawyer.errors import UsageError
from sawyer.schemas.base import Fact
from sawyer.schemas.events import ModelPrice, PricingPublished
from sawyer.schemas.messages import NetworkReply

AUSTEN = ModelPrice(model="austen", format="f32", price_milli=1000, quant_milli=1000)
Q4 = AUSTEN.changed(format="q4", quant_milli=800)


@pytest.fixture
def network(event_examples: dict[str, Fact]) -> NetworkReply:
    founded: Any = event_examples["network.founded.v1"]
    return NetworkReply(
        network=founded.network, ledger_vkey=founded.ledger_vkey, operator=founded.operator, successors=(), mode="test",
        models=(), pricing=event_examples["pricing.published.v1"], size=12, checkpoint="a note", now_ms=1,
    )  # fmt: skip


def test_next_sheet_replaces_one_price_and_keeps_weights_and_others(network: NetworkReply) -> None:
    sheet = network.pricing
    assert sheet is not None
    both = next_sheet(network, with_price(sheet, Q4))
    assert both.prices == (AUSTEN, Q4)
    assert both.sheet == "sheet-12"
    dearer = AUSTEN.changed(price_milli=2500)
    assert with_price(both, dearer) == [Q4, dearer]
    weighed = network.model_copy(update={"pricing": sheet.changed(input_weight_milli=250)})
    assert next_sheet(weighed, [AUSTEN]).input_weight_milli == 250


def test_first_sheet_of_a_network_has_base_weights(network: NetworkReply) -> None:
    made = next_sheet(network.model_copy(update={"pricing": None}), with_price(None, AUSTEN))
    assert (made.input_weight_milli, made.output_weight_milli, made.prices) == (1000, 1000, (AUSTEN,))
    assert PricingPublished.parse(made.canonical()) == made


def test_price_is_found_by_model_and_format(network: NetworkReply) -> None:
    assert price_in(network.pricing, "austen", "f32") == AUSTEN
    assert price_in(network.pricing, "austen", "q4") is None
    assert price_in(None, "austen", "f32") is None


def test_example_is_priced_as_a_request_is(network: NetworkReply) -> None:
    assert network.pricing is not None
    assert [example_cost(network.pricing, each) for each in (AUSTEN, Q4, Q4.changed(price_milli=2500))] == [
        1500, 1200, 3000,
    ]  # fmt: skip


@given(st.integers(1, 10**9))
def test_factor_is_read_back_exactly(milli: int) -> None:
    assert per_mille("--price", factor(milli)) == milli


@pytest.mark.parametrize(
    ("text", "milli"), [("1", 1000), ("2.5", 2500), ("0.8", 800), ("0.001", 1), ("1e3", 1_000_000)]
)
def test_number_is_kept_per_mille(text: str, milli: int) -> None:
    assert per_mille("--price", text) == milli


@pytest.mark.parametrize("text", ["0", "-1", "0.0001", "2.5001", "nan", "inf", "1e99", "free", ""])
def test_number_that_is_no_price_or_finer_than_a_thousandth_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--price"):
        per_mille("--price", text)
