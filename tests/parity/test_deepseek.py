"""DeepSeek-V2 against transformers, computed now: shapes and routings beyond the golden cases, and configs as they are
on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from sawyer.engine.experts import EXACT, ExpertPool
from sawyer.engine.local import LocalModel
from sawyer.engine.trunk import Trunk
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.layout import all_experts
from sawyer.model.split import split

TOLERANCE = 1e-4
SHAPES: dict[str, dict[str, Any]] = {
    "one-head": {"num_attention_heads": 1, "num_key_value_heads": 1, "qk_rope_head_dim": 2},
    "many-heads": {"num_attention_heads": 8, "num_key_value_heads": 8, "qk_nope_head_dim": 6, "v_head_dim": 10},
    "rank-above-hidden": {"kv_lora_rank": 48, "q_lora_rank": 40, "qk_rope_head_dim": 6},
    "no-dense-layer": {"first_k_dense_replace": 0},
    "two-dense-layers": {"num_hidden_layers": 4, "first_k_dense_replace": 2, "n_shared_experts": 3},
    "tied": {"tie_word_embeddings": True},
}
ROUTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"routed_scaling_factor": 2.5, "n_group": 2, "topk_group": 1},
    "one-group": {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 1},
    "all-groups": {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 4},
    "single-experts": {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3, "num_experts_per_tok": 3},
}
SCALINGS: dict[str, dict[str, Any]] = {
    "lite": {"factor": 40, "original_max_position_embeddings": 4096, "mscale": 0.707, "mscale_all_dim": 0.707},
    "short": {"factor": 8.0, "original_max_position_embeddings": 24, "beta_fast": 4, "beta_slow": 1},
    "two-scales": {"factor": 3, "original_max_position_embeddings": 64, "mscale": 1.7, "mscale_all_dim": 0.4},
    "smaller-than-1": {"factor": 0.5, "original_max_position_embeddings": 64, "mscale": 1.7, "mscale_all_dim": 0.4},
}
BASE = {
    "n_routed_experts": 8, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 50.0, "factor": 6.0, "original_max_position_embeddings": 32, "mscale": 0.8,
        "mscale_all_dim": 0.7,
    },
}  # fmt: skip


def load(source: Path, out: Path) -> LocalModel:
    split(source, out, model=ModelId("parity"), format="f32")
    artifacts = Artifacts.open(out)
    return LocalModel(
        Trunk(artifacts), ExpertPool(artifacts, all_experts(artifacts.layout), accuracy_level=EXACT, device="cpu")
    )


def compare(model: LocalModel, expected: Any, ids: list[int]) -> None:
    """Prefill, row by row, and greedy decoding."""
    logits = expected.logits(ids)
    assert float(np.abs(logits).max()) > 0.5
    got = model.trunk.logits(model.forward(ids, model.trunk.new_cache()))
    np.testing.assert_allclose(got, logits, atol=TOLERANCE, rtol=0)
    cache = model.trunk.new_cache()
    stepped = np.stack([model.step(token, cache) for token in ids])
    np.testing.assert_allclose(stepped, logits, atol=TOLERANCE, rtol=0)
    taken, _ = expected.greedy(ids, 8)
    assert model.generate(ids, 8) == taken[: taken.index(95) if 95 in taken else None]


@pytest.mark.parametrize("seed", [71, 72])
@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_f32_split_equals_transformers(
    shape: str, routing: str, seed: int, reference: ModuleType, tmp_path: Path
) -> None:
    config = BASE | SHAPES[shape] | ROUTINGS[routing]
    case = reference.Case("deepseek", seed=seed, prompt_tokens=30, config=config, family="deepseek_v2")
    original = reference.build(case)
    reference.save_checkpoint(original, tmp_path / "checkpoint")
    model = load(tmp_path / "checkpoint", tmp_path / "out")
    compare(model, reference.Reference(original), reference.prompt_ids(case))


@pytest.mark.parametrize("scaling", SCALINGS)
def test_config_of_the_hub_means_what_transformers_reads_from_it(
    scaling: str, reference: ModuleType, tmp_path: Path
) -> None:
    case = reference.Case("deepseek", seed=73, prompt_tokens=150, config=BASE, family="deepseek_v2")
    folder = tmp_path / "checkpoint"
    reference.save_checkpoint(reference.build(case), folder)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 10000, "rope_scaling": {"type": "yarn"} | SCALINGS[scaling], "scoring_func": "softmax"}
    (folder / "config.json").write_text(json.dumps(config))
    original = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    compare(load(folder, tmp_path / "out"), reference.Reference(original), reference.prompt_ids(case))
