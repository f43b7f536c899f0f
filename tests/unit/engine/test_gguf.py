"""A Mixtral from a GGUF file, against transformers and against the weights that the file means."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest

from sawyer.engine.local import LocalModel
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.gguf import Gguf
from sawyer.model.split import split

GROUPED = Path(__file__).parent / "golden" / "grouped"
Load = Callable[..., LocalModel]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((GROUPED / "config.json").read_text())
    return parsed


@pytest.fixture(scope="module")
def converted(config: dict[str, Any]) -> dict[str, Any]:
    """The golden checkpoint's tensors as llama.cpp's converter would write them."""
    return gguf_files.mixtral_tensors(config, gguf_files.hub_tensors(GROUPED))


def split_gguf(folder: Path, config: dict[str, Any], tensors: dict[str, gguf_files.Stored]) -> Artifacts:
    folder.mkdir()
    file = gguf_files.write_gguf(folder / "model.gguf", "llama", gguf_files.mixtral_metadata(config), tensors)
    (folder / "tokenizer.json").write_bytes((GROUPED / "tokenizer.json").read_bytes())
    split(Gguf.open(file), folder / "split", model=ModelId("tiny"), format="f32")
    return Artifacts.open(folder / "split")


def logits(model: LocalModel, ids: list[int]) -> np.ndarray[Any, Any]:
    return model.trunk.logits(model.forward(ids, model.trunk.new_cache()))


def test_unquantised_gguf_gives_the_logits_and_greedy_ids_of_transformers(
    tmp_path: Path, config: dict[str, Any], converted: dict[str, Any], load: Load
) -> None:
    model = load(split_gguf(tmp_path / "f32", config, gguf_files.in_types(converted, {})))
    with np.load(GROUPED / "expected.npz") as expected:
        ids = expected["ids"].tolist()
        np.testing.assert_allclose(logits(model, ids), expected["logits"], atol=1e-4, rtol=0)
        assert model.generate(ids, len(expected["greedy"])) == expected["greedy"].tolist()


def test_quantised_gguf_gives_the_logits_of_the_weights_that_it_means(
    tmp_path: Path, config: dict[str, Any], converted: dict[str, Any], load: Load
) -> None:
    tensors = gguf_files.in_types(converted, gguf_files.MIXED)
    artifacts = split_gguf(tmp_path / "mixed", config, tensors)
    hub = gguf_files.unshuffled(tensors, config)
    tokenizer = (GROUPED / "tokenizer.json").read_bytes()
    folder = gguf_files.write_checkpoint(tmp_path / "meant", config, hub, tokenizer)
    split(folder, tmp_path / "reference", model=ModelId("tiny"), format="f32")
    reference = Artifacts.open(tmp_path / "reference")
    assert artifacts.manifest.files == reference.manifest.files  # byte for byte
    assert artifacts.layout == reference.layout
    with np.load(GROUPED / "expected.npz") as expected:
        ids = expected["ids"].tolist()
        got = logits(load(artifacts), ids)
        assert np.array_equal(got, logits(load(reference), ids))
        assert float(np.abs(got - expected["logits"]).max()) > 1e-3  # it was quantised
