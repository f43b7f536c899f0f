"""The engine against transformers, by files that transformers wrote (scripts/make_golden.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sawyer.engine.experts import EXACT, FAST
from sawyer.engine.local import LocalModel
from sawyer.engine.tokenizer import Tokenizer
from sawyer.model.artifacts import Artifacts
from sawyer.schemas.models import Format

TOLERANCE = 1e-4
DEMO_PROMPTS = json.loads((Path(__file__).parent / "golden" / "austen-8m.json").read_text())

Load = Callable[..., LocalModel]


def test_prefill_gives_the_logits_of_transformers(golden: Any, load: Load) -> None:
    model = load(golden.artifacts)
    logits = model.trunk.logits(model.forward(golden.ids, model.trunk.new_cache()))
    assert float(np.abs(golden.logits).max()) > 0.5  # logits near zero would prove nothing
    np.testing.assert_allclose(logits, golden.logits, atol=TOLERANCE, rtol=0)


def test_one_row_at_a_time_gives_the_logits_of_transformers(golden: Any, load: Load) -> None:
    model = load(golden.artifacts)
    cache = model.trunk.new_cache(len(golden.ids))
    logits = np.stack([model.step(token, cache) for token in golden.ids])
    np.testing.assert_allclose(logits, golden.logits, atol=TOLERANCE, rtol=0)


def test_decoding_gives_the_greedy_ids_and_logits_of_transformers(golden: Any, load: Load) -> None:
    model = load(golden.artifacts)
    cache = model.trunk.new_cache()
    rows = [model.prefill(golden.ids, cache)]
    rows += [model.step(token, cache) for token in golden.greedy[:-1]]
    assert [int(row.argmax()) for row in rows] == golden.greedy
    np.testing.assert_allclose(np.stack(rows), golden.greedy_logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("prompt", DEMO_PROMPTS, ids=lambda prompt: prompt["prompt"])
@pytest.mark.parametrize(("format", "accuracy_level"), [("f32", EXACT), ("q4", FAST)])
def test_demo_model_writes_the_golden_text(
    prompt: dict[str, Any], format: Format, accuracy_level: int, demo: Callable[[Format], Artifacts], load: Load
) -> None:
    artifacts = demo(format)
    assert Tokenizer(artifacts).encode(prompt["prompt"]) == prompt["ids"]
    assert load(artifacts, accuracy_level).generate(prompt["ids"], len(prompt[format])) == prompt[format]
