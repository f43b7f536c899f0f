"""Splitting: the same bytes every time, stopped and continued, and never half a file under a final name."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from sawyer.bench.synthetic import Shape, write_checkpoint
from sawyer.errors import Busy, UnsupportedModel, UsageError
from sawyer.ids import ModelId
from sawyer.model import packing
from sawyer.model import split as module
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import DEMO_MODEL, demo_checkpoint
from sawyer.model.checkpoint import Checkpoint, TensorRef
from sawyer.model.layout import ALIGNMENT, FileShape, Section, expert_shape
from sawyer.model.packing import Packer
from sawyer.model.quantize import dequantize
from sawyer.model.split import SplitProgress, split
from sawyer.model.writing import JOURNAL_FILE, only_writer
from sawyer.schemas.models import MANIFEST_FILE, Format

TINY = ModelId("tiny")
FORMATS = tuple(format for format in get_args(Format) if format != "gguf")
"""Of safetensors; that of GGUF files is in test_codings.py."""


def stop_at_experts(progress: SplitProgress) -> None:
    """The power cut, when the trunk is written."""
    if progress.path.startswith("experts"):
        raise Stop


class Stop(Exception):
    """What the test's progress callback raises: the power cut."""


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_split_writes_exactly_the_files_of_its_manifest(tiny: Any, tmp_path: Path) -> None:
    manifest = split(tiny.write(), tmp_path / "out", model=TINY, format="q4")
    assert files_under(tmp_path / "out") == {MANIFEST_FILE, *(file.path for file in manifest.files)}
    artifacts = Artifacts.open(tmp_path / "out")
    artifacts.verify()
    assert artifacts.manifest == manifest
    assert artifacts.digest == manifest.digest()
    assert len(manifest.files) == 1 + 3 + 2 + 2 * 3


def test_weights_come_back_as_they_were(tiny: Any, tmp_path: Path) -> None:
    split(tiny.write(), tmp_path / "out", model=TINY, format="f32")
    artifacts, tensors = Artifacts.open(tmp_path / "out"), tiny.tensors
    assert np.array_equal(artifacts.read_embed(), tensors["model.embed_tokens.weight"])
    assert np.array_equal(artifacts.read_head()["head"], tensors["lm_head.weight"])
    assert np.array_equal(artifacts.read_norm(), tensors["model.norm.weight"])
    layer = artifacts.read_trunk_layer(1)
    qkv = [tensors[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert np.array_equal(layer["qkv"], np.concatenate(qkv))
    assert np.array_equal(layer["gate"], tensors["model.layers.1.block_sparse_moe.gate.weight"])
    w1, w3, w2 = (tensors[f"model.layers.1.block_sparse_moe.experts.2.{name}.weight"] for name in ("w1", "w3", "w2"))
    expert = artifacts.read_expert(1, 2)
    assert np.array_equal(expert["gate_up"], np.concatenate([w1, w3]))
    assert np.array_equal(expert["down"], w2)


def test_quantised_weights_come_back_within_a_step(tiny: Any, tmp_path: Path) -> None:
    split(tiny.write(), tmp_path / "out", model=TINY, format="q4")
    stored = Artifacts.open(tmp_path / "out").read_expert(0, 1)
    back = dequantize(stored["down.q4"], stored["down.scales"])
    error = np.abs(back - tiny.tensors["model.layers.0.block_sparse_moe.experts.1.w2.weight"]).reshape(32, 2, 32)
    assert (error <= np.abs(stored["down.scales"])[..., None] * 1.0001).all()


@pytest.mark.parametrize("format", FORMATS)
def test_sections_start_at_page_boundaries(tiny: Any, tmp_path: Path, format: Any) -> None:
    manifest = split(tiny.write(), tmp_path / "out", model=TINY, format=format)
    shape = expert_shape(manifest.layout, format)
    assert all(offset % ALIGNMENT == 0 for offset in shape.offsets)
    assert (tmp_path / "out" / f"experts/L0/E0.{format}.bin").stat().st_size == shape.size_bytes


@pytest.mark.parametrize("format", FORMATS)
def test_two_splits_give_the_same_manifest_digest(
    tiny: Any, tmp_path: Path, format: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.write()
    first = split(source, tmp_path / "a", model=TINY, format=format, trunk_format=format)
    monkeypatch.setattr(packing, "SLICE_WEIGHTS", 100)
    monkeypatch.setattr(module, "cores", lambda: 5)
    second = split(source, tmp_path / "b", model=TINY, format=format, trunk_format=format)
    assert first.digest() == second.digest()


def test_demo_model_has_the_digests_that_it_always_had(tmp_path: Path) -> None:
    """Of BYTES_VERSION 1: nodes and routers that were split long ago must go on finding each other."""
    formats: tuple[Format, ...] = ("f32", "q4")
    digests = {
        format: split(demo_checkpoint(), tmp_path / format, model=DEMO_MODEL, format=format).digest()
        for format in formats
    }
    assert digests == {
        "f32": "6376b9706f0ee9959d872850d71650c12689c8aa875550a5880bfd2fe681040f",
        "q4": "14fa8f8f3f4fc6b937455d8ccad5ca02b60d8c3f578a1e6d8f225f3b43ecb3bd",
    }


@pytest.mark.parametrize("format", FORMATS)
def test_turned_matrix_gives_the_bytes_of_one_that_stands_right(
    tiny: Any, tmp_path: Path, format: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, section = "model.layers.0.block_sparse_moe.experts.1.w2.weight", Section("down", (32, 64))
    right = Checkpoint.open(tiny.write())
    tiny.tensors[name] = np.ascontiguousarray(tiny.tensors[name].T)
    tiny.folder = tmp_path / "turned"
    turned = Checkpoint.open(tiny.write())
    monkeypatch.setattr(packing, "SLICE_WEIGHTS", 1024)
    refs = [TensorRef.all_of(name, 32, 64), TensorRef(name, (64, 32), (64, 32), transposed=True)]
    made = []
    for checkpoint, ref in zip((right, turned), refs, strict=True):
        with Packer(checkpoint, 3) as packer:
            made.append([b"".join(one.tobytes() for one in each) for each in
                         packer.sections(FileShape((section,), format), ((ref,),))])  # fmt: skip
    assert made[0] == made[1]


def test_trunk_format_is_part_of_what_a_split_continues(tiny: Any, tmp_path: Path) -> None:
    source, out = tiny.write(), tmp_path / "out"

    for trunk in ("f32", "q8"):
        with pytest.raises(Stop):
            split(source, out, model=TINY, trunk_format=trunk, progress=stop_at_experts)
    seen: list[SplitProgress] = []
    split(source, out, model=TINY, trunk_format="q8", progress=seen.append)
    assert {each.path for each in seen if each.kept} >= {"trunk/L0.q8.bin", "trunk/embed.f16.bin", "trunk/head.q8.bin"}
    Artifacts.open(out).verify()


def test_weight_that_float16_cannot_hold_is_refused_with_its_tensor(tiny: Any, tmp_path: Path) -> None:
    tiny.tensors["lm_head.weight"][3, 4] = 1e5
    with pytest.raises(UnsupportedModel, match=r"tensor lm_head\.weight holds weights that are too large") as refused:
        split(tiny.write(), tmp_path / "out", model=TINY, trunk_format="f16")
    assert "q8" in refused.value.hint


@pytest.mark.parametrize(("format", "trunk"), [("f32", "f32"), ("q4", "q8")])
def test_memory_is_some_slices_however_big_tensors_and_checkpoint_are(
    format: Format, trunk: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = Shape(hidden=512, ffn=1024, layers=1, experts=4, vocab=1 << 16)  # a head of 128 MiB in float32
    source = write_checkpoint(tmp_path / "checkpoint", shape)
    monkeypatch.setattr(module, "cores", lambda: 2)
    tracemalloc.start()
    split(source, tmp_path / "out", model=TINY, format=format, trunk_format=trunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    slice_bytes = 4 * packing.SLICE_WEIGHTS
    assert peak < (2 * packing.SLICES_AHEAD + 2 * 5) * slice_bytes < 4 * shape.vocab * shape.hidden


def test_sharded_checkpoint_gives_the_bytes_of_a_single_file(tiny: Any, another_tiny: Any, tmp_path: Path) -> None:
    single = split(tiny.write(), tmp_path / "a", model=TINY)
    assert split(another_tiny.write(shards=4), tmp_path / "b", model=TINY) == single


@pytest.mark.parametrize("stop_after", [1, 5, 9, 20, 31])
def test_stopped_split_leaves_only_whole_files_and_continues(tiny: Any, tmp_path: Path, stop_after: int) -> None:
    source, out = tiny.write(), tmp_path / "out"
    whole = split(source, tmp_path / "whole", model=TINY)
    calls: list[SplitProgress] = []

    def cut(progress: SplitProgress) -> None:
        calls.append(progress)
        if len(calls) == stop_after:
            raise Stop

    with pytest.raises(Stop):
        split(source, out, model=TINY, progress=cut)
    sizes = {file.path: file.size_bytes for file in whole.files}
    left = files_under(out) - {JOURNAL_FILE}
    assert left <= sizes.keys()
    assert all((out / path).stat().st_size == sizes[path] for path in left)

    seen: list[SplitProgress] = []
    assert split(source, out, model=TINY, progress=seen.append) == whole
    assert {progress.path for progress in seen if progress.kept} == left
    assert files_under(out) == files_under(tmp_path / "whole")


def test_killed_process_leaves_no_half_file_under_a_final_name(tiny: Any, tmp_path: Path) -> None:
    source, out = tiny.write(), tmp_path / "out"
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom sawyer.model.split import split\n"
        "def kill(progress):\n"
        "    if progress.path == 'experts/L1/E0.q4.bin': os.kill(os.getpid(), signal.SIGKILL)\n"
        "split(Path(sys.argv[1]), Path(sys.argv[2]), model='tiny', progress=kill)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(source), str(out)], check=False)
    assert done.returncode == -9
    assert not (out / "experts/L1/E0.q4.bin").exists()
    assert not (out / MANIFEST_FILE).exists()
    assert split(source, out, model=TINY) == split(source, tmp_path / "whole", model=TINY)
    assert files_under(out) == files_under(tmp_path / "whole")


def test_finished_file_that_changed_is_written_again(tiny: Any, tmp_path: Path) -> None:
    source, out = tiny.write(), tmp_path / "out"

    with pytest.raises(Stop):
        split(source, out, model=TINY, progress=stop_at_experts)
    embed = out / "trunk" / "embed.f32.bin"
    embed.write_bytes(bytes(embed.stat().st_size))
    split(source, out, model=TINY)
    Artifacts.open(out).verify()


def test_split_of_another_checkpoint_is_not_continued(tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"

    with pytest.raises(Stop):
        split(tiny.write(), out, model=TINY, progress=stop_at_experts)
    tiny.tensors["model.norm.weight"] += 1
    file = tiny.write() / "model.safetensors"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    split(tiny.folder, out, model=TINY)
    assert np.array_equal(Artifacts.open(out).read_norm(), tiny.tensors["model.norm.weight"])


def test_split_whose_tokenizer_changed_meanwhile_has_the_new_one(tiny: Any, tmp_path: Path) -> None:
    source, out = tiny.write(), tmp_path / "out"

    with pytest.raises(Stop):
        split(source, out, model=TINY, progress=stop_at_experts)
    tokenizer = source / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
    split(source, out, model=TINY)
    assert Artifacts.open(out).read_tokenizer() == tokenizer.read_bytes()


def test_progress_counts_up_to_everything(tiny: Any, tmp_path: Path) -> None:
    seen: list[SplitProgress] = []
    manifest = split(tiny.write(), tmp_path / "out", model=TINY, progress=seen.append)
    assert [progress.bytes_done for progress in seen] == sorted(progress.bytes_done for progress in seen)
    assert (seen[-1].files_done, seen[-1].bytes_done) == (len(manifest.files), seen[-1].bytes_total)
    assert seen[-1].bytes_total == sum(file.size_bytes for file in manifest.files)


def test_folder_that_holds_a_split_model_is_left_alone(tiny: Any, tmp_path: Path) -> None:
    source = tiny.write()
    split(source, tmp_path / "out", model=TINY)
    with pytest.raises(UsageError, match="already holds a split model"):
        split(source, tmp_path / "out", model=TINY)
    Artifacts.open(tmp_path / "out").verify()


def test_second_writer_is_refused(tiny: Any, tmp_path: Path) -> None:
    with only_writer(tmp_path / "out"), pytest.raises(Busy, match="another process is writing"):
        split(tiny.write(), tmp_path / "out", model=TINY)


def test_model_id_that_is_no_slug_is_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a model id"):
        split(tiny.write(), tmp_path / "out", model=ModelId("Tiny.Model"))


def test_checkpoint_without_tokenizer_is_refused(tiny: Any, tmp_path: Path) -> None:
    (tiny.write() / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"no tokenizer\.json"):
        split(tiny.folder, tmp_path / "out", model=TINY)


def test_sizes_that_q4_cannot_hold_are_refused_with_a_way_out(tiny: Any, tmp_path: Path) -> None:
    for name, tensor in tiny.tensors.items():
        if name.endswith(("w1.weight", "w3.weight")):
            tiny.tensors[name] = tensor[:40].copy()
        elif name.endswith("w2.weight"):
            tiny.tensors[name] = tensor[:, :40].copy()
    tiny.config["intermediate_size"] = 40
    source = tiny.write()
    with pytest.raises(UnsupportedModel, match="ffn is 40") as caught:
        split(source, tmp_path / "q4", model=TINY, format="q4")
    assert "f32" in caught.value.hint
    split(source, tmp_path / "f32", model=TINY, format="f32")
