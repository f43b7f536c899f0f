"""Split models of every family against transformers, computed now."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MixtralForCausalLM, PreTrainedModel

from sawyer.engine.experts import EXACT, ExpertPool
from sawyer.engine.local import LocalModel
from sawyer.engine.trunk import Trunk
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import demo_checkpoint
from sawyer.model.checkpoint import Checkpoint
from sawyer.model.layout import all_experts
from sawyer.model.quantize import dequantize
from sawyer.model.split import split
from sawyer.schemas.models import Format

TOLERANCE = 1e-4
STEPS = 12
WIDE: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen2_moe": {"moe_intermediate_size": 32},
    "qwen3_moe": {"moe_intermediate_size": 32},
    "olmoe": {"intermediate_size": 32},
    "deepseek_v2": {"moe_intermediate_size": 32},
    "dbrx": {"ffn_config": {"ffn_hidden_size": 64}},
}
"""Experts as wide as q4 needs them."""
HEADED = [*itertools.product(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe"), (False, True)), ("dbrx", False)]
"""Families with grouped queries, and whether the head is the embedding: of DBRX it never is."""
HEADS = [(2, 2), (4, 4), (4, 2), (4, 1), (6, 2)]


def with_config(case: Any, change: dict[str, Any]) -> Any:
    """The case with a change, in which an object is merged into the one that is there."""
    merged = {
        name: {**case.config[name], **value} if isinstance(value, dict) else value for name, value in change.items()
    }
    return dataclasses.replace(case, config=case.config | merged)


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
    wide = with_config(case, WIDE[case.family])
    original = reference.build(wide)
    reference.save_checkpoint(original, tmp_path / "checkpoint")
    model = load(tmp_path / "checkpoint", tmp_path / "out", "q4")
    artifacts = Artifacts.open(tmp_path / "out")
    with torch.no_grad():
        for layer, expert in all_experts(artifacts.layout):
            stored = artifacts.read_expert(layer, expert)
            gate_up, down = (
                torch.from_numpy(dequantize(stored[f"{name}.q4"], stored[f"{name}.scales"]))
                for name in ("gate_up", "down")
            )
            replace(original, layer, expert, gate_up, down)
    compare(model, reference.Reference(original), reference.prompt_ids(wide))


def replace(original: PreTrainedModel, layer: int, expert: int, gate_up: torch.Tensor, down: torch.Tensor) -> None:
    """Puts other weights into one expert."""
    if original.config.model_type == "dbrx":
        mlp, width = original.transformer.blocks[layer].ffn.experts.mlp, down.shape[1]
        rows = slice(expert * width, (expert + 1) * width)
        mlp.w1[rows], mlp.v1[rows], mlp.w2[rows] = gate_up[:width], gate_up[width:], down.T
    else:
        experts = original.model.layers[layer].mlp.experts
        experts.gate_up_proj[expert], experts.down_proj[expert] = gate_up, down


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize(("family", "tied"), HEADED, ids=lambda each: each if isinstance(each, str) else f"tied={each}")
def test_heads_in_any_ratio_give_the_logits_of_transformers(
    family: str, heads: int, kv_heads: int, tied: bool, reference: ModuleType, tmp_path: Path
) -> None:
    case = next(one for one in reference.CASES if one.family == family)
    if family == "dbrx":  # its heads share the hidden width
        config: dict[str, Any] = {"d_model": 16 * heads, "n_heads": heads, "attn_config": {"kv_n_heads": kv_heads}}
    else:
        config = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "tie_word_embeddings": tied}
        config |= {"hidden_size": 16 * heads} if family == "olmoe" else {"head_dim": 16}
    changed = with_config(dataclasses.replace(case, seed=20 + heads + kv_heads), config)
    original = reference.build(changed)
    reference.save_checkpoint(original, tmp_path / "checkpoint")
    model = load(tmp_path / "checkpoint", tmp_path / "out", "f32")
    compare(model, reference.Reference(original), reference.prompt_ids(changed))


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2"])
def test_fused_checkpoint_gives_the_files_of_the_hub_checkpoint(
    family: str, reference: ModuleType, tmp_path: Path
) -> None:
    original = reference.build(next(case for case in reference.CASES if case.family == family))
    reference.save_checkpoint(original, tmp_path / "hub")
    reference.save_checkpoint(original, tmp_path / "fused", save_original_format=False)
    hub, fused = (
        split(tmp_path / name, tmp_path / f"{name}-out", model=ModelId("parity"), format="f32")
        for name in ("hub", "fused")
    )
    assert any("experts.gate_up_proj" in name for name in Checkpoint.open(tmp_path / "fused").tensors)
    assert hub.files == fused.files


def test_demo_model_equals_transformers(reference: ModuleType, tmp_path: Path) -> None:
    original = MixtralForCausalLM.from_pretrained(demo_checkpoint(), dtype=torch.float32).eval()
    model = load(demo_checkpoint(), tmp_path / "out", "f32")
    ids = np.random.default_rng(0).integers(1, 2048, 200).tolist()
    compare(model, reference.Reference(original), ids)
