"""The demo model inside the package, and the public models whose configs are there."""

from __future__ import annotations

import pytest

from sawyer.ids import is_slug, slug_of
from sawyer.model.catalog import DEMO_MODEL, catalogue, catalogue_model, demo_checkpoint
from sawyer.model.checkpoint import Checkpoint
from sawyer.model.families import family_of


class Watched(dict[str, object]):
    """A config that knows which of its fields were asked for."""

    def __init__(self, config: object) -> None:
        super().__init__(config)  # type: ignore[call-overload]
        self.asked: set[str] = set()

    def get(self, key: str, default: object = None) -> object:  # type: ignore[override]
        self.asked.add(key)
        return super().get(key, default)


def test_demo_checkpoint_is_a_checkpoint_of_a_known_family() -> None:
    config = Checkpoint.open(demo_checkpoint()).config
    assert family_of(config).layout(config).expert_parameters == 3 * 192 * 384
    assert is_slug(DEMO_MODEL)


def test_catalogue_has_the_promised_models_under_names_that_differ() -> None:
    names = [model.name for model in catalogue()]
    assert {"mixtral-8x7b", "deepseek-v2-lite", "qwen1.5-moe-a2.7b", "dbrx"} <= set(names)
    assert len({slug_of(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    "name", ["mixtral-8x7b", "Mixtral-8x7B", "mistralai/Mixtral-8x7B-v0.1", "Mixtral-8x7B-v0.1", "mixtral-8x7b-v0-1"]
)
def test_public_model_is_found_by_its_name_its_hub_id_and_what_a_split_calls_it(name: str) -> None:
    found = catalogue_model(name)
    assert found is not None
    assert (found.name, found.hub_id) == ("mixtral-8x7b", "mistralai/Mixtral-8x7B-v0.1")


@pytest.mark.parametrize("name", ["", "mixtral", "someone/mixtral-8x7b", "mixtral-8x7b-instruct", DEMO_MODEL])
def test_other_names_are_not_in_the_catalogue(name: str) -> None:
    assert catalogue_model(name) is None


def test_public_configs_hold_only_what_a_family_reads() -> None:
    for model in catalogue():
        read = Watched(model.config)
        family = family_of(read)
        family.layout(read)
        family.is_tied(read)
        assert model.config.keys() - read.asked == set(), model.name
