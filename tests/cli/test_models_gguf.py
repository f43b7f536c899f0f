"""`sawyer models split FILE.gguf`: a real process on a file that ggml's own package wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf_files
import pytest

GROUPED = Path(__file__).parents[1] / "unit" / "engine" / "golden" / "grouped"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Mixtral under a name as such files have, its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("gguf")
    config = json.loads((GROUPED / "config.json").read_text())
    tensors = gguf_files.in_types(gguf_files.mixtral_tensors(config, gguf_files.hub_tensors(GROUPED)), {})
    shutil.copy(GROUPED / "tokenizer.json", folder)
    return gguf_files.write_gguf(folder / "Tiny.F32.gguf", "llama", gguf_files.mixtral_metadata(config), tensors)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with experts in blocks."""
    folder = tmp_path_factory.mktemp("quantised")
    config = json.loads((GROUPED / "config.json").read_text())
    hub = gguf_files.mixtral_tensors(config, gguf_files.hub_tensors(GROUPED))
    tensors = gguf_files.in_types(hub, gguf_files.MIXED)
    shutil.copy(GROUPED / "tokenizer.json", folder)
    return gguf_files.write_gguf(folder / "Tiny.Q8_0.gguf", "llama", gguf_files.mixtral_metadata(config), tensors)


def test_gguf_file_is_split_under_its_own_name(sawyer, file: Path, tmp_path: Path) -> None:
    done = sawyer("models", "split", file, "--format", "f32", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert done.out.startswith("tiny-f32 (f32)")
    hub = sawyer("models", "split", GROUPED, "--format", "f32", "--name", "tiny-f32", "--out", tmp_path / "hub")
    assert hub.code == 0, hub.err
    weights = [path.relative_to(tmp_path / "hub") for path in (tmp_path / "hub").rglob("*.bin")]
    assert weights
    assert all((tmp_path / "out" / each).read_bytes() == (tmp_path / "hub" / each).read_bytes() for each in weights)


@pytest.mark.parametrize("kept", [3, 40, 2000, -1])
def test_gguf_file_that_was_cut_is_refused_and_nothing_is_written(
    sawyer, file: Path, tmp_path: Path, kept: int
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:kept])
    done = sawyer("models", "split", cut, "--out", tmp_path / "out")
    assert done.code == 3, done.err
    assert "cut.gguf" in done.err
    assert not (tmp_path / "out").exists()


def test_exact_split_says_its_format_and_shows_it(sawyer, quantised: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    done = sawyer("models", "split", quantised, "--exact", *home)
    assert done.code == 0, done.err
    assert done.out.startswith("tiny-q8_0 (gguf)")
    out = tmp_path / "home" / "models" / "tiny-q8_0-gguf"
    assert (out / "experts" / "L1" / "E0.gguf.bin").is_file()
    assert (out / "trunk" / "L1.f32.bin").is_file()
    shown = sawyer("models", "show", "tiny-q8_0", "--format", "gguf", *home)
    assert shown.code == 0, shown.err
    assert "in f32, experts" in shown.out
    assert "in gguf, each" in shown.out


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (("--exact", "--format", "q4"), "--exact changes no weight, and --format q4 would round them"),
        (("--exact", "--trunk-format", "q8"), "--exact changes no weight, and --trunk-format q8 would round them"),
        (("--trunk-format", "gguf"), "gguf is a format of experts alone"),
    ],
)
def test_formats_that_contradict_each_other_are_refused(
    wanted: tuple[str, ...], problem: str, sawyer, quantised: Path, tmp_path: Path
) -> None:
    done = sawyer("models", "split", quantised, *wanted, "--out", tmp_path / "out")
    assert done.code == 2
    assert problem in done.err
    assert not (tmp_path / "out").exists()


def test_exact_split_of_safetensors_is_float32(sawyer, tmp_path: Path) -> None:
    done = sawyer("models", "split", GROUPED, "--exact", "--name", "tiny", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert done.out.startswith("tiny (f32)")
    kept = sawyer("models", "split", GROUPED, "--format", "gguf", "--name", "tiny", "--out", tmp_path / "kept")
    assert kept.code == 2
    assert "this checkpoint has no blocks to keep" in kept.err
