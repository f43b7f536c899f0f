"""The single-machine reference with many sequences at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike

from sawyer.engine.experts import EXACT, FAST
from sawyer.engine.local import LocalModel
from sawyer.errors import UsageError
from sawyer.model.artifacts import Artifacts
from sawyer.schemas.models import Format

Load = Callable[..., LocalModel]
PROMPTS = [[5, 9, 13], [7], [30, 2, 11, 8, 1, 4], [9, 9], [3, 1, 4, 1, 5]]


def assert_steps_together_equal_steps_alone(model: LocalModel) -> None:
    singles, together = ([model.trunk.new_cache(16) for _ in PROMPTS] for _ in range(2))
    for caches in (singles, together):
        for prompt, cache in zip(PROMPTS, caches, strict=True):
            model.prefill(prompt, cache)
    for tokens in ([1, 2, 3, 4, 5], [6, 6, 6, 6, 6]):
        expected = np.stack([model.step(token, cache) for token, cache in zip(tokens, singles, strict=True)])
        assert np.array_equal(model.steps(tokens, together), expected)
    assert np.array_equal(model.steps([7], together[2:3]), [model.step(7, singles[2])])


def test_steps_of_many_sequences_are_those_of_each(golden: Any, load: Load) -> None:
    assert_steps_together_equal_steps_alone(load(golden.artifacts))


@pytest.mark.parametrize("wire_dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("format", "accuracy_level"), [("f32", EXACT), ("q4", FAST), ("q4", EXACT)])
def test_steps_of_the_demo_model_are_those_of_each(
    format: Format, accuracy_level: int, wire_dtype: DTypeLike, demo: Callable[[Format], Artifacts], load: Load
) -> None:
    assert_steps_together_equal_steps_alone(load(demo(format), accuracy_level, wire_dtype=wire_dtype))


def test_every_row_needs_a_cache(demo: Callable[[Format], Artifacts], load: Load) -> None:
    model = load(demo("q4"))
    cache = model.trunk.new_cache(16)
    for caches in ([cache], [cache, cache, cache], []):
        with pytest.raises(UsageError, match="each row needs one"):
            model.steps([1, 2], caches)
    assert cache.length == 0
