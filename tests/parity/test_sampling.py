"""The limits of sampling against transformers' own processors, in the order in which its `generate` applies them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.utils import GenerationMixin

from sawyer.engine.sampling import Sampler
from sawyer.schemas.generation import GenerateParams

DRAWS = 20_000
ORDER = (
    RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper,
)  # fmt: skip
CASES: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 20},
    {"temperature": 1.1, "top_p": 0.8},
    {"temperature": 1.5, "min_p": 0.05},
    {"temperature": 0.9, "repetition_penalty": 1.4},
    {"temperature": 2.0, "top_k": 60, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 0.8},
]


def processors(options: dict[str, Any]) -> LogitsProcessorList:
    """What `generate(do_sample=True, ...)` would apply."""
    config = GenerationConfig(do_sample=True, **{"top_k": 0, **options})
    mixin = GenerationMixin()
    mixin.config = type("Config", (), {"is_encoder_decoder": False})()
    return mixin._get_logits_processor(config, input_ids_seq_length=4, device="cpu")


def sampler(options: dict[str, Any], prompt: list[int]) -> Sampler:
    milli = {f"{name}_milli": round(value * 1000) for name, value in options.items() if name != "top_k"}
    return Sampler(GenerateParams(prompt="", max_tokens=1, top_k=options.get("top_k", 0), seed=5, **milli), prompt)


def test_order_of_the_limits_is_the_one_of_transformers() -> None:
    made = [type(each) for each in processors(CASES[-1])]
    assert [kind for kind in made if kind in ORDER] == list(ORDER)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_tokens_left_and_their_shares_are_those_of_transformers(options: dict[str, Any]) -> None:
    logits = (np.random.default_rng(3).standard_normal(300) * 3).astype(np.float32)
    prompt = [int(each) for each in np.argsort(-logits)[[0, 2, 7, 290]]]
    scores = processors(options)(torch.tensor([prompt]), torch.tensor(logits)[None].clone())
    expected = torch.softmax(scores[0].double(), -1).numpy()
    counts: Counter[int] = Counter()
    picker = sampler(options, prompt)
    for _ in range(DRAWS):
        counts[picker.pick(logits)] += 1
        picker._seen = None  # every draw is the first
    assert {token for token in counts if expected[token] == 0} == set()
    for token in np.flatnonzero(expected):
        assert counts[int(token)] / DRAWS == pytest.approx(expected[token], abs=0.015)


@pytest.mark.parametrize("penalty", [0.5, 1.1, 1.7])
def test_greedy_under_a_penalty_takes_the_token_of_transformers(penalty: float) -> None:
    generator = np.random.default_rng(4)
    for _ in range(50):
        logits = generator.standard_normal(300).astype(np.float32) * 2
        ids = [int(each) for each in np.argsort(-logits)[:5]]
        picker = sampler({"repetition_penalty": penalty}, ids[:])
        for _ in range(6):
            scores = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([ids]), torch.tensor(logits)[None].clone())
            ids.append(int(scores.argmax()))
            assert picker.pick(logits) == ids[-1]
