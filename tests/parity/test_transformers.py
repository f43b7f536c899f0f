"""The split model against transformers' MixtralForCausalLM, computed now."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MixtralForCausalLM

from sawyer.engine.experts import EXACT, ExpertPool
from sawyer.engine.local import LocalModel
from sawyer.engine.trunk import Trunk
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import demo_checkpoint
from sawyer.model.layout import all_experts
from sawyer.model.quantize import dequantize_q4
from sawyer.model.split import split
from sawyer.schemas.models import Format

TOLERANCE = 1e-4
STEPS = 12
NAMES = ("grouped", "one-kv-head-tied", "top-3-of-5")
SEEDS = (11, 12, 13, 14)


@pytest.fixture(params=[(name, seed) for name in NAMES for seed in SEEDS], ids=lambda param: f"{param[0]}-{param[1]}")
def case(request: pytest.FixtureRequest, reference: ModuleType) -> Any:
    name, seed = request.param
    return dataclasses.replace(next(one for one in reference.CASES if one.name == name), seed=seed)


def load(source: Path, out: Path, format: Format) -> LocalModel:
    split(source, out, model=ModelId("parity"), format=format)
    artifacts = Artifacts.open(out)
    pool = ExpertPool(artifacts, all_experts(artifacts.layout), accuracy_level=EXACT, device="cpu")
    return LocalModel(Trunk(artifacts), pool)


def compare(model: LocalModel, expected: Any, ids: list[int]) -> None:
    """Prefill, row by row, and greedy decoding."""
    logits = expected.logits(ids)
    assert float(np.abs(logits).max()) > 0.5
    got = model.trunk.logits(model.forward(ids, model.trunk.new_cache()))
    np.testing.assert_allclose(got, logits, atol=TOLERANCE, rtol=0)
    cache = model.trunk.new_cache()
    stepped = np.stack([model.step(token, cache) for token in ids])
    np.testing.assert_allclose(stepped, logits, atol=TOLERANCE, rtol=0)
    taken, rows = expected.greedy(ids, STEPS)
    decoding = model.trunk.new_cache()
    own = [model.prefill(ids, decoding), *(model.step(token, decoding) for token in taken[:-1])]
    np.testing.assert_allclose(np.stack(own), rows, atol=TOLERANCE, rtol=0)
    assert [int(row.argmax()) for row in own] == taken


def test_f32_split_equals_transformers(case: Any, reference: ModuleType, tmp_path: Path) -> None:
    original = reference.build(case)
    reference.save_checkpoint(original, tmp_path / "checkpoint")
    model = load(tmp_path / "checkpoint", tmp_path / "out", "f32")
    compare(model, reference.Reference(original), reference.prompt_ids(case))


def test_q4_split_equals_transformers_with_the_dequantised_experts(
    case: Any, reference: ModuleType, tmp_path: Path
) -> None:
    original = reference.build(case)
    reference.save_checkpoint(original, tmp_path / "checkpoint")
    model = load(tmp_path / "checkpoint", tmp_path / "out", "q4")
    artifacts = Artifacts.open(tmp_path / "out")
    with torch.no_grad():
        for layer, expert in all_experts(artifacts.layout):
            stored = artifacts.read_expert(layer, expert)
            experts = original.model.layers[layer].mlp.experts
            for name, target in (("gate_up", experts.gate_up_proj), ("down", experts.down_proj)):
                target[expert] = torch.from_numpy(dequantize_q4(stored[f"{name}.q4"], stored[f"{name}.scales"]))
    compare(model, reference.Reference(original), reference.prompt_ids(case))


def test_fused_checkpoint_gives_the_files_of_the_hub_checkpoint(reference: ModuleType, tmp_path: Path) -> None:
    original = reference.build(reference.CASES[0])
    reference.save_checkpoint(original, tmp_path / "hub")
    reference.save_checkpoint(original, tmp_path / "fused", save_original_format=False)
    hub, fused = (
        split(tmp_path / name, tmp_path / f"{name}-out", model=ModelId("parity"), format="f32")
        for name in ("hub", "fused")
    )
    assert hub.files == fused.files


def test_demo_model_equals_transformers(reference: ModuleType, tmp_path: Path) -> None:
    original = MixtralForCausalLM.from_pretrained(demo_checkpoint(), dtype=torch.float32).eval()
    model = load(demo_checkpoint(), tmp_path / "out", "f32")
    ids = np.random.default_rng(0).integers(1, 2048, 200).tolist()
    compare(model, reference.Reference(original), ids)
