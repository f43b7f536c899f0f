"""Latent attention, YaRN and gates with groups: what the golden files do not show."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sawyer.engine import cache as caches
from sawyer.engine.layer import Attended
from sawyer.engine.session import Session
from sawyer.engine.trunk import Trunk
from sawyer.errors import PromptTooLong
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.layout import FileShape, Section
from sawyer.model.split import split
from sawyer.model.trunk_graph import TrunkLayerGraph, rope_tables
from sawyer.schemas.models import GateGroups, LatentAttention, ModelLayout, Yarn

GOLDEN = Path(__file__).parent / "golden"
LAYOUT = ModelLayout(
    family="deepseek_v2", vocab=96, hidden=24, layers=1, heads=2, kv_heads=2, head_dim=16, ffn=12, experts=12, top_k=3,
    context=160, moe_layers=(0,), rms_eps="1e-06", rope_theta="100.0", eos=(),
    latent=LatentAttention(kv_rank=16, nope_dim=8, rope_dim=8, value_dim=12),
)  # fmt: skip
YARN = Yarn(factor="6.0", original_context=32, beta_fast="2.0", beta_slow="0.5")


@pytest.fixture(scope="session", params=["deepseek-lite", "deepseek-full"])
def trunk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    out = tmp_path_factory.mktemp(request.param)
    split(GOLDEN / request.param, out, model=ModelId(request.param), format="f32")
    return Trunk(Artifacts.open(out))


def rows(trunk: Trunk, count: int) -> NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal((count, trunk.layout.hidden), dtype=np.float32)


def attend(trunk: Trunk, layer: int, x: NDArray[np.float32], sizes: list[int]) -> Attended:
    """The rows in chunks of these sizes."""
    cache, ends = trunk.new_cache(len(x)), np.cumsum(sizes)
    parts = [trunk.attend(layer, x[end - size : end], cache) for size, end in zip(sizes, ends, strict=True)]
    assert cache.layers[layer].length == len(x)
    return Attended(*(np.concatenate(part) for part in zip(*parts, strict=True)))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("sizes", [[1] * 100, [60, 1, 39], [1, 99], [99, 1]])
def test_attention_is_the_same_wherever_chunks_end(trunk: Trunk, layer: int, sizes: list[int]) -> None:
    x = rows(trunk, 100)
    whole, cut = attend(trunk, layer, x, [100]), attend(trunk, layer, x, sizes)
    assert np.array_equal(whole.experts, cut.experts)
    for name in ("residual", "hidden", "weights"):
        np.testing.assert_allclose(getattr(cut, name), getattr(whole, name), atol=1e-5, rtol=0)


def test_chunk_with_too_many_scores_enters_in_parts(trunk: Trunk, monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(trunk, 100)
    whole = attend(trunk, 1, x, [60, 40])
    monkeypatch.setattr(caches, "MAX_SCORES", 7 * trunk.layout.heads * 100)
    parts = attend(trunk, 1, x, [60, 40])
    for name in Attended._fields:
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-5, rtol=0)


def test_a_row_is_attended_even_if_its_scores_alone_are_too_many(trunk: Trunk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "MAX_SCORES", 1)
    assert attend(trunk, 1, rows(trunk, 5), [5]).residual.shape == (5, trunk.layout.hidden)


def test_later_rows_change_nothing_before_them(trunk: Trunk) -> None:
    x = rows(trunk, 40)
    changed = x.copy()
    changed[25:] += 1
    before, after = attend(trunk, 1, x, [40]), attend(trunk, 1, changed, [40])
    assert np.array_equal(before.residual[:25], after.residual[:25])
    assert not np.array_equal(before.residual[25:], after.residual[25:])


def test_full_cache_is_said_and_left_as_it_was(trunk: Trunk) -> None:
    x = rows(trunk, 10)
    cache = trunk.new_cache(9)
    trunk.attend(0, x[:8], cache)
    with pytest.raises(PromptTooLong, match="holds 9 rows, and 10 are needed"):
        trunk.attend(0, x[8:], cache)
    assert cache.layers[0].length == 8
    again = trunk.attend(0, x[8:9], cache)
    np.testing.assert_allclose(again.residual, attend(trunk, 0, x[:9], [9]).residual[8:], atol=1e-5, rtol=0)


def test_layer_without_experts_gives_its_residual_alone(trunk: Trunk) -> None:
    attended = attend(trunk, 0, rows(trunk, 3), [3])
    assert attended.residual.shape == (3, trunk.layout.hidden)
    assert attended.weights.size == attended.experts.size == attended.hidden.size == 0


def gate(layout: ModelLayout, hidden: NDArray[np.float32], weights: NDArray[np.float32]) -> list[NDArray[Any]]:
    """Gate weights and experts of these rows."""
    graph = TrunkLayerGraph(layout, FileShape((Section("gate", weights.shape),)))
    graph.linear("x", "gate", out="logits")
    graph.add("x", "x", out="hidden")
    graph.gate("logits", norm=None)
    session = Session(graph.part().graph, {"gate": weights})
    outputs = dict(zip(session.outputs, session.run({"x": hidden}), strict=True))
    return [outputs["weights"], outputs["experts"]]


@pytest.mark.parametrize(("groups", "top"), [(4, 2), (3, 1), (6, 2), (12, 3), (1, 1), (4, 4)])
def test_experts_come_from_the_groups_with_the_likeliest(groups: int, top: int) -> None:
    layout = LAYOUT.model_copy(update={"gate_groups": GateGroups(groups=groups, top=top), "gate_scale": "16.0"})
    random = np.random.default_rng(groups)
    hidden, weights = (random.standard_normal((n, 24), dtype=np.float32) for n in (64, 12))
    powers = np.exp(hidden @ weights.T)
    probabilities = powers / powers.sum(1, keepdims=True)
    got, chosen = gate(layout, hidden, weights)
    for row, experts, given in zip(probabilities, chosen, got, strict=True):
        by_group = row.reshape(groups, -1)
        best = set(np.argsort(-by_group.max(1))[:top].tolist())
        allowed = [expert for expert in range(12) if expert // (12 // groups) in best]
        expected = sorted(allowed, key=lambda expert: -row[expert])[: layout.top_k]
        assert experts.tolist() == expected
        np.testing.assert_allclose(given, row[expected] * 16, rtol=1e-5)


def test_stretched_rope_keeps_fast_dimensions_and_slows_the_others() -> None:
    plain, stretched = (
        np.arctan2(tables["rope_sin"][1], tables["rope_cos"][1])
        for tables in (rope_tables(LAYOUT), rope_tables(LAYOUT.model_copy(update={"yarn": YARN})))
    )
    ratio = stretched / plain
    assert ratio[0] == pytest.approx(1)
    assert ratio[-1] == pytest.approx(1 / 6)
    assert all(first > second for first, second in pairwise(ratio))


@pytest.mark.parametrize(
    ("mscale", "mscale_all_dim", "expected"),
    [
        (None, None, 0.1 * math.log(6) + 1),
        ("0.707", "0.707", 1.0),
        ("1.3", "0.6", (0.13 * math.log(6) + 1) / (0.06 * math.log(6) + 1)),
    ],
)
def test_rope_tables_are_as_long_as_mscale_says(
    mscale: str | None, mscale_all_dim: str | None, expected: float
) -> None:
    yarn = YARN.model_copy(update={"mscale": mscale, "mscale_all_dim": mscale_all_dim})
    tables = rope_tables(LAYOUT.model_copy(update={"yarn": yarn}))
    np.testing.assert_allclose(np.hypot(tables["rope_cos"], tables["rope_sin"]), expected, rtol=1e-6)
