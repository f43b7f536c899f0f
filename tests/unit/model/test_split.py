"""Splitting: the same bytes every time, stopped and continued, and never half a file under a final name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sawyer.errors import Busy, UnsupportedModel, UsageError
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.layout import ALIGNMENT, expert_shape
from sawyer.model.quantize import dequantize_q4
from sawyer.model.split import SplitProgress, split
from sawyer.model.writing import JOURNAL_FILE, only_writer
from sawyer.schemas.models import MANIFEST_FILE

TINY = ModelId("tiny")


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
    assert np.array_equal(artifacts.read_head(), tensors["lm_head.weight"])
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
    back = dequantize_q4(stored["down.q4"], stored["down.scales"])
    error = np.abs(back - tiny.tensors["model.layers.0.block_sparse_moe.experts.1.w2.weight"]).reshape(32, 2, 32)
    assert (error <= np.abs(stored["down.scales"])[..., None] * 1.0001).all()


@pytest.mark.parametrize("format", ["f32", "q4"])
def test_sections_start_at_page_boundaries(tiny: Any, tmp_path: Path, format: Any) -> None:
    manifest = split(tiny.write(), tmp_path / "out", model=TINY, format=format)
    shape = expert_shape(manifest.layout, format)
    assert all(offset % ALIGNMENT == 0 for offset in shape.offsets)
    assert (tmp_path / "out" / f"experts/L0/E0.{format}.bin").stat().st_size == shape.size_bytes


@pytest.mark.parametrize("format", ["f32", "q4"])
def test_two_splits_give_the_same_manifest_digest(tiny: Any, tmp_path: Path, format: Any) -> None:
    source = tiny.write()
    first, second = (split(source, tmp_path / name, model=TINY, format=format) for name in ("a", "b"))
    assert first.digest() == second.digest()


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

    def cut(progress: SplitProgress) -> None:
        if progress.path.startswith("experts"):
            raise Stop

    with pytest.raises(Stop):
        split(source, out, model=TINY, progress=cut)
    embed = out / "trunk" / "embed.f32.bin"
    embed.write_bytes(bytes(embed.stat().st_size))
    split(source, out, model=TINY)
    Artifacts.open(out).verify()


def test_split_of_another_checkpoint_is_not_continued(tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def cut(progress: SplitProgress) -> None:
        if progress.path.startswith("experts"):
            raise Stop

    with pytest.raises(Stop):
        split(tiny.write(), out, model=TINY, progress=cut)
    tiny.tensors["model.norm.weight"] += 1
    file = tiny.write() / "model.safetensors"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    split(tiny.folder, out, model=TINY)
    assert np.array_equal(Artifacts.open(out).read_norm(), tiny.tensors["model.norm.weight"])


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
