"""Prices by model and format: which one a request pays, from the reservation to the bill."""

from __future__ import annotations

import pytest

from sawyer.economy.pricing import sheet_hash
from sawyer.errors import RefusedError, UnknownModel
from sawyer.ledger.decide import decide
from sawyer.schemas.events import ModelPrice

QUANTISED = "ef" * 32


def refuse(judge, asked, error: type[RefusedError], match: str) -> None:
    with pytest.raises(error, match=match):
        decide(judge.state, asked, judge.scene.now_ms)


def price(model: str, fmt: str, price_milli: int = 1000, quant_milli: int = 1000) -> ModelPrice:
    return ModelPrice(model=model, format=fmt, price_milli=price_milli, quant_milli=quant_milli)


def publish(judge, scene, *prices: ModelPrice, sheet: str = "more"):
    body = scene.sheet.changed(sheet=sheet, prices=prices)
    judge.write(scene.say(body, "operator"))
    return sheet_hash(body)


def reserve(scene, order, tokens: int, manifest: str):
    body = scene.reserve(order, manifest=manifest).body
    return scene.say(body.changed(tokens=tokens), "router")


@pytest.fixture
def quantised(judge, scene):
    """The network serves austen in four bits now."""
    judge.write(scene.say(scene.model.changed(manifest=QUANTISED, format="int4"), "operator"))
    return judge


def test_request_pays_the_price_of_the_format_that_it_is_served_in(quantised, scene) -> None:
    sheet = publish(quantised, scene, price("austen", "f32"), price("austen", "int4", quant_milli=800))
    order = scene.order(price_sheet=sheet, max_tokens=95)
    refuse(quantised, reserve(scene, order, 100, QUANTISED), RefusedError, "cost 80, not 100")
    quantised.write(reserve(scene, order, 80, QUANTISED))
    receipt = scene.receipt(order, (5 + 95 - 1) * 8, manifest=QUANTISED)
    (entry,) = quantised.write(scene.complete(order, output_tokens=95, receipts=(receipt,)))
    assert sum(part.tokens for part in entry.decided.debited) == 80


def test_format_that_the_sheet_does_not_name_has_no_price(quantised, scene) -> None:
    """A price for other weights of the same model is none for these."""
    refuse(
        quantised, reserve(scene, scene.order(), 8, QUANTISED), UnknownModel, "no price for model austen in format int4"
    )


def test_model_that_the_sheet_does_not_name_has_no_price(judge, scene) -> None:
    judge.write(scene.say(scene.model.changed(model="bronte"), "operator"))
    refuse(judge, scene.reserve(scene.order(model="bronte")), UnknownModel, "no price for model bronte")


@pytest.mark.parametrize("second", [price("austen", "f32"), price("austen", "f32", 2000)])
def test_two_prices_for_one_model_and_format_are_refused(judge, scene, second: ModelPrice) -> None:
    body = scene.sheet.changed(sheet="double", prices=(price("austen", "f32"), price("b", "f32"), second))
    refuse(judge, scene.say(body, "operator"), RefusedError, "two prices for model austen in format f32")


def test_same_model_in_two_formats_and_two_models_in_one_are_no_duplicates(judge, scene) -> None:
    publish(judge, scene, price("austen", "f32"), price("austen", "int4"), price("b", "f32"))


def test_request_reserved_in_one_format_is_billed_in_it_though_another_was_published_since(judge, scene) -> None:
    sheet = publish(judge, scene, price("austen", "f32"), price("austen", "int4", quant_milli=500))
    order = scene.order(price_sheet=sheet)
    judge.write(scene.reserve(order), scene.say(scene.model.changed(manifest=QUANTISED, format="int4"), "operator"))
    (entry,) = judge.write(scene.complete(order))
    assert sum(part.tokens for part in entry.decided.debited) == 8


@pytest.mark.parametrize(
    ("price_milli", "quant_milli", "tokens_in", "tokens_out", "debit"),
    [(1000, 1000, 512, 128, 640), (1000, 800, 512, 128, 512), (2500, 800, 1, 1, 4)],
)
def test_worked_examples_are_what_the_book_bills(
    judge, scene, price_milli: int, quant_milli: int, tokens_in: int, tokens_out: int, debit: int
) -> None:
    sheet = publish(judge, scene, price("austen", "f32", price_milli, quant_milli))
    order = scene.order(price_sheet=sheet, max_tokens=tokens_out)
    hold = scene.reserve(order, input_tokens=tokens_in).body.changed(tokens=debit)
    judge.write(scene.say(hold, "router"))
    (entry,) = judge.write(scene.complete(order, input_tokens=tokens_in, output_tokens=tokens_out))
    assert sum(part.tokens for part in entry.decided.debited) == debit
    assert judge.state.balances.account("alice").consumed == debit


def test_weights_of_input_and_output_are_those_of_the_sheet(judge, scene) -> None:
    body = scene.sheet.changed(sheet="weighted", input_weight_milli=500, output_weight_milli=3000)
    judge.write(scene.say(body, "operator"))
    order = scene.order(price_sheet=sheet_hash(body))
    hold = scene.reserve(order).body.changed(tokens=12)  # ceil(5 * 0.5 + 3 * 3)
    judge.write(scene.say(hold, "router"))
    (entry,) = judge.write(scene.complete(order, output_tokens=1))
    assert sum(part.tokens for part in entry.decided.debited) == 6  # ceil(5 * 0.5 + 1 * 3)
