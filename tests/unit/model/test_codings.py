"""Format gguf: experts that keep the blocks of a GGUF file, and manifests that say wrong things of them."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest

from sawyer.engine.experts import EXACT, FAST, ExpertPool
from sawyer.errors import ArtifactCorrupt, CheckpointCorrupt, SawyerError, UnsupportedModel, UsageError
from sawyer.ids import ModelId
from sawyer.model import packing
from sawyer.model import split as module
from sawyer.model.artifacts import Artifacts
from sawyer.model.gguf import Gguf
from sawyer.model.gguf_blocks import BLOCK_TYPES, QUANTISED
from sawyer.model.gguf_repack import repack
from sawyer.model.layout import BLOCKS, check_codings, expert_shape
from sawyer.model.split import SplitProgress, split
from sawyer.schemas.base import encode_canonical
from sawyer.schemas.models import ExpertCodings, Manifest

KINDS = {kind.name: kind for kind in BLOCK_TYPES.values()}
HIDDEN, FFN = 256, 512
CONFIG: dict[str, Any] = {
    "model_type": "mixtral", "vocab_size": 8, "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 2,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MIXED = {"ffn_gate_exps": "Q4_K", "ffn_up_exps": "Q4_K", "ffn_down_exps": "Q6_K"}
STACKS: dict[str, tuple[int, ...]] = {
    "ffn_gate_exps": (2, FFN, HIDDEN),
    "ffn_up_exps": (2, FFN, HIDDEN),
    "ffn_down_exps": (2, HIDDEN, FFN),
}
TOKENIZER = b'{"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}'


class Stop(Exception):
    """What the test's progress callback raises: the power cut."""


def tensors(kinds: dict[str, str]) -> dict[str, gguf_files.Stored]:
    """Experts of random blocks of these types, floats elsewhere."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (8, HIDDEN), "output_norm.weight": (HIDDEN,), "output.weight": (8, HIDDEN)
    }  # fmt: skip
    for layer in range(2):
        own = STACKS | {
            "attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,), "attn_q": (HIDDEN, HIDDEN), "attn_k": (128, HIDDEN),
            "attn_v": (128, HIDDEN), "attn_output": (HIDDEN, HIDDEN), "ffn_gate_inp": (2, HIDDEN),
        }  # fmt: skip
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in own.items()}
    found = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        kind = kinds.get(name.removesuffix(".weight"), kinds.get(name.split(".")[-2], "F32"))
        if kind in QUANTISED:
            found[name] = gguf_files.random_blocks(shape, kind, seed)
        else:
            weights = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(0.1)
            found[name] = gguf_files.store(weights, kind)
    return found


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[dict[str, gguf_files.Stored]], Gguf]:
    def written(stored: dict[str, gguf_files.Stored]) -> Gguf:
        (tmp_path / "tokenizer.json").write_bytes(TOKENIZER)
        metadata = gguf_files.mixtral_metadata(CONFIG)
        return Gguf.open(gguf_files.write_gguf(tmp_path / "model.gguf", "llama", metadata, stored))

    return written


Opened = Callable[[dict[str, gguf_files.Stored]], Gguf]


def split_exactly(source: Gguf, out: Path, **options: Any) -> Artifacts:
    split(source, out, model=ModelId("m"), format="gguf", **options)
    return Artifacts.open(out)


def swiglu(x: np.ndarray[Any, Any], stored: dict[str, gguf_files.Stored], layer: int, expert: int) -> Any:
    """An expert in float64, of the weights that ggml's package decodes."""
    gate, up, down = (gguf_files.decoded(stored[f"blk.{layer}.{name}.weight"])[expert].astype(float) for name in STACKS)
    gated = x.astype(float) @ gate.T
    with np.errstate(over="ignore"):
        return (gated / (1 + np.exp(-gated)) * (x @ up.T)) @ down.T


ROWS = np.random.default_rng(5).standard_normal((33, HIDDEN)).astype(np.float32) * np.float32(0.1)
FILES = {kind: dict.fromkeys(STACKS, kind) for kind in (*sorted(QUANTISED), "F16")}
FILES["Q4_K_M"] = MIXED
FILES["all different"] = {"ffn_gate_exps": "Q4_K", "ffn_up_exps": "Q5_0", "ffn_down_exps": "Q3_K"}


@pytest.mark.parametrize("name", FILES)
def test_expert_equals_the_weights_that_its_blocks_mean(name: str, opened: Opened, tmp_path: Path) -> None:
    stored = tensors(FILES[name])
    artifacts = split_exactly(opened(stored), tmp_path / "out")
    expected = swiglu(ROWS, stored, 1, 1)
    scale = np.abs(expected).max()
    got = ExpertPool(artifacts, [(1, 1)], accuracy_level=EXACT, device="cpu").run(1, 1, ROWS)
    assert float(np.abs(got - expected).max() / scale) < 1e-5
    fast = ExpertPool(artifacts, [(1, 1)], accuracy_level=FAST, device="cpu").run(1, 1, ROWS)
    assert float(np.abs(fast - expected).max() / scale) < 3e-2


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("accuracy_level", [EXACT, FAST])
def test_lone_row_is_bit_equal_to_the_same_row_in_any_batch(
    name: str, accuracy_level: int, opened: Opened, tmp_path: Path
) -> None:
    artifacts = split_exactly(opened(tensors(FILES[name])), tmp_path / "out")
    pool = ExpertPool(artifacts, [(0, 1)], accuracy_level=accuracy_level, device="cpu")
    alone = np.concatenate([pool.run(0, 1, ROWS[n : n + 1]) for n in range(len(ROWS))])
    for size in (2, 3, 5, 8, 16, 17, 32, 33):
        assert np.array_equal(pool.run(0, 1, ROWS[:size]), alone[:size]), f"batch of {size}"


@pytest.mark.parametrize("name", sorted(QUANTISED))
def test_repacked_blocks_are_the_sections_that_their_coding_says(name: str) -> None:
    packed = repack(KINDS[name], gguf_files.random_blocks((3, 512), name)[0])
    told = BLOCKS[name]  # type: ignore[index]
    assert (told.bits, told.block, told.stored, told.offsets) == (
        packed.bits, packed.block, KINDS[name].weights, packed.offsets is not None
    )  # fmt: skip


def test_layers_of_two_codings_have_files_of_two_sizes(opened: Opened, tmp_path: Path) -> None:
    """As in Q4_K_M, where some layers' down matrices are Q6_K and some Q4_K."""
    stored = tensors(MIXED | {"blk.0.ffn_down_exps": "Q4_K"})
    artifacts = split_exactly(opened(stored), tmp_path / "out")
    assert artifacts.layout.codings == (
        ExpertCodings(gate="Q4_K", up="Q4_K", down="Q4_K"), ExpertCodings(gate="Q4_K", up="Q4_K", down="Q6_K")
    )  # fmt: skip
    pool = ExpertPool(artifacts, [(0, 0), (1, 0)], accuracy_level=EXACT, device="cpu")
    for layer in (0, 1):
        size = (tmp_path / "out" / "experts" / f"L{layer}" / "E0.gguf.bin").stat().st_size
        assert size == expert_shape(artifacts.layout, "gguf", layer).size_bytes
        expected = swiglu(ROWS, stored, layer, 0)
        assert float(np.abs(pool.run(layer, 0, ROWS) - expected).max() / np.abs(expected).max()) < 1e-5
    assert expert_shape(artifacts.layout, "gguf") == expert_shape(artifacts.layout, "gguf", 1)


def test_experts_of_one_layer_in_different_types_are_stored_in_float32(opened: Opened, tmp_path: Path) -> None:
    stored = tensors(MIXED)
    raw, _ = stored.pop("blk.0.ffn_up_exps.weight")
    stored["blk.0.ffn_up.0.weight"] = (raw[0], "Q4_K")
    stored["blk.0.ffn_up.1.weight"] = gguf_files.random_blocks((FFN, HIDDEN), "Q8_0")
    artifacts = split_exactly(opened(stored), tmp_path / "out")
    assert artifacts.layout.codings is not None
    assert artifacts.layout.codings[0] == ExpertCodings(gate="Q4_K", up="f32", down="Q6_K")
    meant = gguf_files.decoded(stored["blk.0.ffn_up.1.weight"])
    assert np.array_equal(artifacts.read_expert(0, 1)["up"], meant)


def test_two_exact_splits_give_the_same_manifest_digest(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(tensors(MIXED))
    first = split_exactly(source, tmp_path / "a")
    monkeypatch.setattr(packing, "SLICE_WEIGHTS", 1000)
    monkeypatch.setattr(module, "cores", lambda: 5)
    assert split_exactly(source, tmp_path / "b").digest == first.digest


@pytest.mark.parametrize("stop_after", [5, 12, 19])
def test_stopped_exact_split_continues_to_the_same_bytes(stop_after: int, opened: Opened, tmp_path: Path) -> None:
    source, calls = opened(tensors(MIXED)), list[SplitProgress]()
    whole = split_exactly(source, tmp_path / "whole")

    def cut(progress: SplitProgress) -> None:
        calls.append(progress)
        if len(calls) == stop_after:
            raise Stop

    with pytest.raises(Stop):
        split_exactly(source, tmp_path / "out", progress=cut)
    seen: list[SplitProgress] = []
    assert split_exactly(source, tmp_path / "out", progress=seen.append).digest == whole.digest
    assert any(each.kept for each in seen)


def test_exact_split_takes_the_memory_of_some_slices(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(tensors(MIXED))
    monkeypatch.setattr(packing, "SLICE_WEIGHTS", 1 << 12)
    monkeypatch.setattr(module, "cores", lambda: 1)
    tracemalloc.start()
    split_exactly(source, tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 3 * HIDDEN * FFN  # of one expert in float32


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_block_whose_scale_is_not_finite_is_refused_with_its_tensor(bad: float, opened: Opened, tmp_path: Path) -> None:
    stored = tensors(MIXED)
    stored["blk.1.ffn_down_exps.weight"][0][1, 3, 208:210] = np.array([bad], "<f2").view(np.uint8)
    with pytest.raises(CheckpointCorrupt, match=r"layers\.1\.block_sparse_moe\.experts\.1\.w2\.weight holds weights"):
        split_exactly(opened(stored), tmp_path / "out")


def test_checkpoint_that_is_no_gguf_file_has_no_blocks_to_keep(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"format gguf is for \.gguf files"):
        split(tiny.write(), tmp_path / "out", model=ModelId("m"), format="gguf")
    assert not (tmp_path / "out").exists()


def test_trunk_in_gguf_is_refused(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="trunk_format: gguf is a format of experts alone"):
        split_exactly(opened(tensors(MIXED)), tmp_path / "out", trunk_format="gguf")


Q4_K = {"gate": "Q4_K", "up": "Q4_K", "down": "Q6_K"}
HOSTILE: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda told: told["layout"].pop("codings"), "format gguf needs the codings"),
    (lambda told: told["layout"]["codings"].pop(), "expected one for each of 2 layers with experts, got 1"),
    (lambda told: told["layout"]["codings"].append(Q4_K), "expected one for each of 2 layers with experts, got 3"),
    (lambda told: told["layout"].update(codings=[Q4_K] * 2000), "codings"),
    (lambda told: told["layout"].update(codings=[]), "codings"),
    (lambda told: told["layout"]["codings"][1].update(up="IQ2_XXS"), r"codings\.1\.up"),
    (lambda told: told["layout"]["codings"][1].update(extra="Q4_K"), r"codings\.1\.extra"),
    (lambda told: told["layout"]["codings"][1].update(down="Q8_0"), r"experts/L1/E0\.gguf\.bin: its layout makes"),
    (lambda told: told["layout"]["codings"][0].update(gate="f32"), r"experts/L0/E0\.gguf\.bin: its layout makes"),
    (lambda told: told["layout"].update(ffn=480), "down in Q6_K needs rows of whole blocks of 256, not 480"),
    (lambda told: told.update(format="q4"), "codings: format q4 has none"),
    (lambda told: told.update(trunk_format="gguf"), "trunk_format: gguf is a format of experts alone"),
    (lambda told: told["layout"].update(context=1 << 20, head_dim=256), "context times head_dim: at most"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "problem"), HOSTILE)
def test_manifest_that_lies_about_its_codings_is_refused(
    edit: Callable[[dict[str, Any]], object], problem: str, opened: Opened, tmp_path: Path
) -> None:
    artifacts = split_exactly(opened(tensors(MIXED)), tmp_path / "out")
    told = json.loads(artifacts.manifest.canonical())
    edit(told)
    (tmp_path / "out" / "manifest.json").write_bytes(encode_canonical(told))
    with pytest.raises(SawyerError, match=problem) as refused:
        Artifacts.open(tmp_path / "out")
    assert isinstance(refused.value, ArtifactCorrupt | UnsupportedModel)


def test_manifest_without_codings_reads_as_it_always_did(tiny: Any, tmp_path: Path) -> None:
    manifest = split(tiny.write(), tmp_path / "out", model=ModelId("m"))
    assert b"codings" not in manifest.canonical()
    assert Manifest.parse(manifest.canonical()) == manifest
    check_codings(manifest.layout, "q4", "f32")
