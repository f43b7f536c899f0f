"""Which models there are, and what is said of one."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from sawyer.cli.model_facts import facts_of, message_bytes
from sawyer.cli.model_here import local_models
from sawyer.cli.model_list import join, price_of
from sawyer.home import Home
from sawyer.ids import RequestId
from sawyer.model.catalog import DEMO_MODEL, demo_checkpoint
from sawyer.model.split import split
from sawyer.schemas.base import Fact
from sawyer.schemas.events import ModelPrice, ModelPublished, PricingPublished
from sawyer.schemas.messages import NetworkReply
from sawyer.schemas.tensors import ActivationReply, ActivationRequest, Part, encode_reply, encode_request


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with the demo model, split, and beside it a folder that is no model."""
    made = Home(tmp_path_factory.mktemp("home"))
    split(demo_checkpoint(), made.models / "austen-8m-q4", model=DEMO_MODEL)
    broken = made.models / "broken-q4"
    broken.mkdir()
    (broken / "manifest.json").write_text("{}")
    return made


def _network(published: tuple[ModelPublished, ...], pricing: PricingPublished | None) -> NetworkReply:
    return NetworkReply.model_construct(models=published, pricing=pricing)


@pytest.fixture
def published(home: Home, event_examples: dict[str, Fact]) -> ModelPublished:
    """What the home holds, published."""
    example = event_examples["model.published.v1"]
    assert isinstance(example, ModelPublished)
    manifest = local_models(home)[0][0].manifest
    return example.changed(model=DEMO_MODEL, manifest=manifest.digest(), format="q4")


@pytest.fixture
def sheet(event_examples: dict[str, Fact]) -> PricingPublished:
    example = event_examples["pricing.published.v1"]
    assert isinstance(example, PricingPublished)
    return example


def test_local_models_are_found_and_what_is_none_is_named(home: Home) -> None:
    found, wrong = local_models(home)
    assert [(each.manifest.model, each.missing) for each in found] == [(DEMO_MODEL, 0)]
    assert "broken-q4" in wrong[0].message


def test_local_model_without_some_files_says_how_many(tmp_path: Path) -> None:
    home = Home(tmp_path)
    split(demo_checkpoint(), home.models / "m", model=DEMO_MODEL)
    for file in (home.models / "m" / "experts" / "L0").iterdir():
        file.unlink()
    assert local_models(home)[0][0].missing == 8


def test_published_model_that_is_here_is_one_row(
    home: Home, published: ModelPublished, sheet: PricingPublished
) -> None:
    priced = sheet.changed(prices=(ModelPrice(model=DEMO_MODEL, format="q4", price_milli=1000, quant_milli=500),))
    rows = join(_network((published,), priced), local_models(home)[0])
    assert len(rows) == 1
    assert (rows[0].published, rows[0].in_package) == (published, True)
    assert rows[0].local is not None
    assert str(rows[0].price) == "0.5"


def test_other_weights_under_a_published_name_are_a_row_of_their_own(home: Home, published: ModelPublished) -> None:
    other = published.changed(manifest="00" * 32)
    rows = join(_network((other,), None), local_models(home)[0])
    assert [(row.published is not None, row.local is not None) for row in rows] == [(True, False), (False, True)]


def test_model_of_the_package_is_listed_where_there_is_no_other() -> None:
    assert [(row.model, row.format, row.in_package) for row in join(None, [])] == [(DEMO_MODEL, "", True)]


def test_price_multiplies_weights_and_names_in_and_out_where_they_differ(sheet: PricingPublished) -> None:
    price = price_of(sheet.changed(input_weight_milli=250, output_weight_milli=2000), "austen", "f32")
    assert price is not None
    assert (price.input, price.output) == (Decimal("0.25"), Decimal(2))
    assert str(price) == "0.25 in, 2 out"
    assert price_of(sheet, "other", "f32") is None
    assert price_of(sheet, "austen", "q4") is None


def test_facts_of_the_demo_model_add_up(home: Home) -> None:
    manifest = local_models(home)[0][0].manifest
    facts = facts_of(manifest.layout, manifest.format, tied=True)
    weights = [each for each in manifest.files if each.path != "tokenizer.json"]
    assert facts.trunk_bytes + facts.experts_bytes == sum(each.size_bytes for each in weights)
    assert facts.parameters == facts.trunk_parameters + 32 * facts.expert_parameters
    assert facts.active_parameters == facts.trunk_parameters + 8 * facts.expert_parameters
    assert 7_800_000 < facts.parameters < 7_900_000
    assert (facts.round_trips, facts.rows_per_token) == (4, 8)


def test_wire_bytes_are_those_of_the_messages_themselves() -> None:
    row, index = np.ones((1, 64), np.float16), np.zeros(1, np.uint32)
    request = ActivationRequest(
        parts=(Part(RequestId("ab" * 16), 9, 1),), manifest=bytes(8), layer=3, rows=row, work=((1, index), (5, index)),
        deadline_ms=900,
    )  # fmt: skip
    reply = ActivationReply(
        parts=(Part(RequestId("ab" * 16), 9, 1),), manifest=bytes(8), layer=3, blocks=((1, row), (5, row)),
        compute_us=7, waited_us=1,
    )  # fmt: skip
    assert message_bytes(64, 2) == len(encode_request(request)) + len(encode_reply(reply))
