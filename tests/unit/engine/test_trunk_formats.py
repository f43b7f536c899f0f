"""Trunks in other formats than float32: they compute what their stored weights say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sawyer.engine.experts import EXACT, FAST, ExpertPool
from sawyer.engine.local import LocalModel
from sawyer.engine.trunk import Trunk
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts, expected_files
from sawyer.model.catalog import DEMO_MODEL, demo_checkpoint
from sawyer.model.layout import Array, all_experts, stored_sections
from sawyer.model.quantize import unpacked
from sawyer.model.split import split
from sawyer.schemas.models import FileDigest, Format

from .conftest import GOLDEN

CASES = [
    "grouped", "one-kv-head-tied", "qwen2-moe", "qwen3-moe-dense-layers", "dbrx", "olmoe", "deepseek-lite",
    "deepseek-full",
]  # fmt: skip
"""Heads of their own and tied ones, biases, a gated shared expert, clipped queries, dense layers, latent attention."""


def logits(artifacts: Artifacts, accuracy_level: int = EXACT) -> NDArray[np.float32]:
    pool = ExpertPool(artifacts, all_experts(artifacts.layout), device="cpu")
    model = LocalModel(Trunk(artifacts, accuracy_level=accuracy_level), pool)
    return model.prefill([3, 1, 4, 1, 5, 9, 2, 6], model.trunk.new_cache(16))


class Unpacked(Artifacts):
    """The float32 split of a model with the weights that another split of it stores."""

    def __init__(self, plain: Artifacts, stored: Artifacts) -> None:
        super().__init__(plain.folder, plain.manifest)
        self._stored = stored

    def _read(self, path: str) -> dict[str, Array]:
        if not path.startswith("trunk/") or path == "trunk/norm.f32.bin":
            return super()._read(path)
        trunk = self._stored.manifest.trunk
        other = path.replace(".f32.", ".f16." if "embed" in path else f".{trunk}.")
        arrays, shape = self._stored._read(other), self._stored._shapes[other]
        return {
            section.name: unpacked(tuple(arrays[each.name] for each in stored_sections(section, shape.format)))
            for section in shape.plain
        }


def split_golden(case: str, folder: Path, trunk: Format) -> Artifacts:
    split(GOLDEN / case, folder / trunk, model=ModelId(case), format="f32", trunk_format=trunk)
    return Artifacts.open(folder / trunk)


@pytest.mark.parametrize("trunk", ["q8", "q4", "f16"])
@pytest.mark.parametrize("case", CASES)
def test_trunk_equals_the_one_with_its_dequantised_weights(case: str, trunk: Format, tmp_path: Path) -> None:
    plain, stored = split_golden(case, tmp_path, "f32"), split_golden(case, tmp_path, trunk)
    expected = logits(Unpacked(plain, stored))
    np.testing.assert_allclose(logits(stored), expected, atol=1e-5 * max(1, np.abs(expected).max()), rtol=0)
    assert not np.array_equal(expected, logits(plain))


@pytest.mark.parametrize(("trunk", "most"), [("f16", 0.005), ("q8", 0.05), ("q4", 0.3)])
def test_demo_model_stays_itself_in_every_trunk_format(
    trunk: Format, most: float, demo: Callable[[Format], Artifacts], tmp_path: Path
) -> None:
    split(demo_checkpoint(), tmp_path / "out", model=DEMO_MODEL, format="q4", trunk_format=trunk)
    exact, stored = logits(demo("q4")), logits(Artifacts.open(tmp_path / "out"), FAST)
    assert np.abs(stored - exact).max() < most * np.abs(exact).max()
    assert np.array_equal(stored.argmax(axis=-1), exact.argmax(axis=-1))


@pytest.mark.parametrize("trunk", ["f32", "q8", "q4", "f16"])
def test_trunk_of_a_format_takes_the_room_that_its_layout_says(trunk: Format, tmp_path: Path) -> None:
    artifacts = split_golden("qwen2-moe", tmp_path, trunk)
    shapes = expected_files(artifacts.layout, "f32", trunk, tied=artifacts.tied)
    files: dict[str, FileDigest] = {file.path: file for file in artifacts.manifest.files}
    assert all(files[path].size_bytes == shape.size_bytes for path, shape in shapes.items())
    assert artifacts.manifest.trunk_format == (None if trunk == "f32" else trunk)
    assert f"trunk/L0.{trunk}.bin" in files


def test_gates_norms_and_biases_are_float32_in_every_format(tmp_path: Path) -> None:
    plain, stored = (split_golden("qwen2-moe", tmp_path, trunk) for trunk in ("f32", "q4"))
    layer = plain.layout.moe_layers[0]
    exact, packed = plain.read_trunk_layer(layer), stored.read_trunk_layer(layer)
    kept = sorted(exact.keys() & packed.keys())
    assert kept == ["gate", "input_norm", "post_norm", "qkv_bias"]
    assert all(np.array_equal(exact[name], packed[name]) for name in kept)
