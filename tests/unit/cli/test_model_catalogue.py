"""What is said of the public models: computed from their configs, and equal to what is known of them."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from sawyer.cli.model_facts import FORMATS, ROUND_TRIPS_MS, ModelFacts, sizes_of
from sawyer.cli.model_list import KnownModel, catalogue_rows, find, join, near_names
from sawyer.cli.model_report import row_document, shape_document, shape_of, show_catalogue, show_page
from sawyer.errors import UsageError
from sawyer.model.catalog import DEMO_MODEL
from sawyer.schemas.base import Fact
from sawyer.schemas.events import ModelPublished
from sawyer.schemas.models import ModelLayout

PUBLIC_BILLIONS = {  # total and active, as their makers say
    "mixtral-8x7b": (46.7, 12.9), "qwen1.5-moe-a2.7b": (14.3, 2.7), "deepseek-v2-lite": (15.7, None),
    "dbrx": (132, 36), "deepseek-v2": (235.7, 21), "mixtral-8x22b": (140.6, 39), "olmoe-1b-7b": (6.9, 1.3),
    "qwen3-30b-a3b": (30.5, 3.3), "qwen3-235b-a22b": (235.1, 22), "qwen2-57b-a14b": (57.4, 14),
}  # fmt: skip
DESIGNED = {  # trips a token, GB of one expert over all layers in 4.5 bits a weight
    "mixtral-8x7b": (32, 3.2), "qwen1.5-moe-a2.7b": (24, 0.12), "deepseek-v2-lite": (26, 0.13), "dbrx": (40, 4.5),
    "olmoe-1b-7b": (16, 0.06),
}  # fmt: skip
Q4_BITS = 5
"""Of a weight here: four, and a float32 scale for 32 of them."""


def public(name: str) -> KnownModel:
    return next(row for row in catalogue_rows() if row.model == name)


def shape(name: str) -> tuple[ModelLayout, ModelFacts]:
    found = shape_of(public(name), None)
    assert found is not None
    return found


def test_every_public_model_is_checked_here() -> None:
    assert {row.model for row in catalogue_rows()} == set(PUBLIC_BILLIONS)


@pytest.mark.parametrize("name", PUBLIC_BILLIONS)
def test_parameters_are_those_that_the_makers_publish(name: str) -> None:
    total, active = PUBLIC_BILLIONS[name]
    facts = shape(name)[1]
    assert facts.parameters / 1e9 == pytest.approx(total, rel=0.01)
    if active is not None:  # that of DeepSeek-V2-Lite is published without embedding and head
        assert facts.active_parameters / 1e9 == pytest.approx(active, rel=0.03)


@pytest.mark.parametrize("name", DESIGNED)
def test_trips_and_expert_over_all_layers_are_those_of_the_design(name: str) -> None:
    trips, gigabytes = DESIGNED[name]
    layout, facts = shape(name)
    assert facts.round_trips == len(layout.moe_layers) == trips
    weights = trips * facts.expert_parameters
    assert weights * 4.5 / 8e9 == pytest.approx(gigabytes, rel=0.06)
    assert facts.sizes["q4"].expert_of_all_layers_bytes == pytest.approx(weights * Q4_BITS / 8, rel=0.001)


@pytest.mark.parametrize("name", PUBLIC_BILLIONS)
def test_sizes_of_each_format_add_up_and_shrink(name: str) -> None:
    layout, facts = shape(name)
    assert tuple(facts.sizes) == FORMATS
    for sizes in facts.sizes.values():
        assert sizes.expert_of_all_layers_bytes == len(layout.moe_layers) * sizes.expert_bytes
        assert sizes.experts_bytes == layout.experts * sizes.expert_of_all_layers_bytes
        assert sizes.model_bytes == sizes.trunk_bytes + sizes.experts_bytes
    for larger, smaller in pairwise(FORMATS):
        assert facts.sizes[smaller].trunk_bytes < facts.sizes[larger].trunk_bytes
        assert facts.sizes[smaller].expert_bytes < facts.sizes[larger].expert_bytes
    assert facts.sizes["f32"].model_bytes == pytest.approx(4 * facts.parameters, rel=0.001)


def test_tokens_a_second_are_bound_by_the_round_trips_alone() -> None:
    facts = shape("mixtral-8x7b")[1]
    assert tuple(facts.tokens_per_s) == ROUND_TRIPS_MS == (1, 5, 20, 50)
    assert facts.tokens_per_s == {1: 31.25, 5: 6.25, 20: 1.5625, 50: 0.625}


def test_format_that_does_not_fit_a_layout_has_no_sizes() -> None:
    odd = shape("mixtral-8x7b")[0].model_copy(update={"hidden": 4112})
    assert tuple(sizes_of(odd, tied=False)) == ("f32", "f16")


def test_name_of_the_catalogue_is_found_without_network_and_split() -> None:
    row = find("mixtral-8x7b", None, join(None, []))
    assert (row.model, row.hub_id, row.local, row.published) == (
        "mixtral-8x7b", "mistralai/Mixtral-8x7B-v0.1", None, None,
    )  # fmt: skip
    assert find("mistralai/Mixtral-8x7B-v0.1", "q8", []) == row


def test_model_that_is_there_comes_before_the_one_of_the_catalogue() -> None:
    there = [KnownModel("mixtral-8x7b-v0-1", "q4", "aa" * 32)]
    for name in ("mixtral-8x7b-v0-1", "mixtral-8x7b", "mistralai/Mixtral-8x7B-v0.1"):
        assert find(name, None, there) == there[0]


def test_format_that_a_model_is_not_in_is_refused_with_those_it_is_in() -> None:
    with pytest.raises(UsageError, match="austen-8m in format q8") as refusal:
        find("austen-8m", "q8", [KnownModel(DEMO_MODEL, "q4"), KnownModel(DEMO_MODEL, "f32")])
    assert "f32 or q4" in refusal.value.hint


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("mixtral", ["mixtral-8x22b", "mixtral-8x7b"]),
        ("Mixtrol-8x7b", ["mixtral-8x7b", "mixtral-8x22b"]),
        ("deepseek-v3", ["deepseek-v2", "deepseek-v2-lite"]),
        ("austin-8m", ["austen-8m"]),
        ("frob", []),
        ("", []),
    ],
)
def test_unknown_name_is_refused_with_names_that_are_near(name: str, near: list[str]) -> None:
    assert near_names(name, [DEMO_MODEL]) == near
    with pytest.raises(UsageError, match="no model") as refusal:
        find(name, None, join(None, []))
    assert "--catalogue" in refusal.value.hint
    assert all(each in refusal.value.hint for each in near)


def test_published_model_of_the_catalogue_has_its_shape_unless_it_is_another(event_examples: dict[str, Fact]) -> None:
    example = event_examples["model.published.v1"]
    assert isinstance(example, ModelPublished)
    layout, facts = shape("mixtral-8x7b")
    told = example.changed(
        model="mixtral-8x7b", family="mixtral", format="q8", moe_layers=32, experts=8, top_k=2,
        expert_parameters=layout.expert_parameters,
    )  # fmt: skip
    found = shape_of(KnownModel("mixtral-8x7b", "q8", told.manifest, told), None)
    assert found is not None
    assert found[1].expert_bytes == facts.sizes["q8"].expert_bytes
    assert shape_of(KnownModel("mixtral-8x7b", "q8", told.manifest, told.changed(experts=4)), None) is None


@pytest.mark.parametrize("name", PUBLIC_BILLIONS)
def test_page_of_a_public_model_fits_80_columns(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_page(public(name), shape(name))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert any(line.startswith("config of") and "/" in line for line in lines)


def test_page_says_what_hosting_takes_and_how_fast_it_can_be(capsys: pytest.CaptureFixture[str]) -> None:
    show_page(public("mixtral-8x7b"), shape("mixtral-8x7b"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["q4", "1.2", "GB", "110.1", "MB", "3.5", "GB", "28.2", "GB", "29.4", "GB"] in lines
    assert ["tokens/s", "31.2", "6.25", "1.56", "0.625"] in lines


def test_catalogue_is_listed_smallest_first_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    show_catalogue(catalogue_rows())
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["model", "family", "parameters", "active", "experts", "q4", "size", "trips"]
    assert lines[0].startswith("olmoe-1b-7b")
    assert "mixtral-8x7b       mixtral          46.7 B  12.9 B    2 of 8   29.4 GB     32" in lines
    assert max(map(len, (header, *lines))) <= 80


def test_document_of_a_public_model_is_json_with_layout_and_facts() -> None:
    row = public("dbrx")
    document = json.loads(json.dumps({**row_document(row), **shape_document(shape_of(row, None))}))
    assert (document["model"], document["hub_id"], document["in_package"]) == ("dbrx", "databricks/dbrx-base", False)
    assert document["layout"]["experts"] == 16
    assert document["facts"]["sizes"]["q4"]["expert_bytes"] == document["facts"]["expert_bytes"]
    assert document["facts"]["tokens_per_s"] == {"1": 25.0, "5": 5.0, "20": 1.25, "50": 0.5}
