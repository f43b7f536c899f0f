"""The demo model inside the package."""

from __future__ import annotations

from sawyer.ids import is_slug
from sawyer.model.catalog import DEMO_MODEL, demo_checkpoint
from sawyer.model.checkpoint import Checkpoint
from sawyer.model.families import family_of


def test_demo_checkpoint_is_a_checkpoint_of_a_known_family() -> None:
    config = Checkpoint.open(demo_checkpoint()).config
    assert family_of(config).layout(config).expert_parameters == 3 * 192 * 384
    assert is_slug(DEMO_MODEL)
