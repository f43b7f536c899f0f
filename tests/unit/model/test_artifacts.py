"""Opening a split model: nothing is used before it was verified, and nothing outside the folder is ever read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sawyer.errors import ArtifactCorrupt, UnknownExpert, UnsupportedModel, UsageError
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.split import split
from sawyer.schemas.base import encode_canonical


@pytest.fixture
def folder(tiny: Any, tmp_path: Path) -> Path:
    split(tiny.write(), tmp_path / "out", model=ModelId("tiny"))
    return tmp_path / "out"


Edit = Callable[[dict[str, Any]], object]


def edited(folder: Path, edit: Edit) -> Path:
    """The folder with its manifest changed, and canonical again."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    edit(manifest)
    (folder / "manifest.json").write_bytes(encode_canonical(manifest))
    return folder


READS: list[tuple[str, Callable[[Artifacts], object]]] = [
    ("experts/L1/E2.q4.bin", lambda artifacts: artifacts.read_expert(1, 2)),
    ("trunk/L0.f32.bin", lambda artifacts: artifacts.read_trunk_layer(0)),
    ("trunk/embed.f32.bin", lambda artifacts: artifacts.read_embed()),
    ("trunk/head.f32.bin", lambda artifacts: artifacts.read_head()),
    ("trunk/norm.f32.bin", lambda artifacts: artifacts.read_norm()),
    ("tokenizer.json", lambda artifacts: artifacts.read_tokenizer()),
]


@pytest.mark.parametrize(("path", "read"), READS, ids=[path for path, _ in READS])
def test_flipped_bit_is_found_and_both_digests_are_named(
    folder: Path, path: str, read: Callable[[Artifacts], object]
) -> None:
    artifacts = Artifacts.open(folder)
    read(artifacts)
    raw = bytearray((folder / path).read_bytes())
    raw[-1] ^= 1
    (folder / path).write_bytes(raw)
    expected = next(file.sha256 for file in artifacts.manifest.files if file.path == path)
    with pytest.raises(ArtifactCorrupt, match=f"{path}: expected SHA-256 {expected}, got [0-9a-f]{{64}}"):
        read(artifacts)
    with pytest.raises(ArtifactCorrupt, match=path):
        artifacts.verify()


@pytest.mark.parametrize(("path", "read"), READS, ids=[path for path, _ in READS])
def test_missing_file_is_named(folder: Path, path: str, read: Callable[[Artifacts], object]) -> None:
    artifacts = Artifacts.open(folder)
    (folder / path).unlink()
    with pytest.raises(ArtifactCorrupt, match=f"{path}: cannot be read: No such file"):
        read(artifacts)


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw + b"\0"])
def test_file_of_another_size_is_refused(folder: Path, change: Callable[[bytes], bytes]) -> None:
    path = folder / "experts/L0/E0.q4.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ArtifactCorrupt, match=r"expected \d+ bytes, got \d+"):
        Artifacts.open(folder).read_expert(0, 0)


def test_folder_with_some_experts_opens_and_reads_those(folder: Path) -> None:
    shutil.rmtree(folder / "experts/L1")
    artifacts = Artifacts.open(folder)
    assert artifacts.read_expert(0, 0)
    with pytest.raises(ArtifactCorrupt, match="experts/L1/E0"):
        artifacts.read_expert(1, 0)


@pytest.mark.parametrize("pair", [(2, 0), (0, 3), (-1, 0), (0, -1)])
def test_expert_that_is_not_there_is_refused(folder: Path, pair: tuple[int, int]) -> None:
    with pytest.raises(UnknownExpert, match=f"no expert {pair[1]} in layer {pair[0]}"):
        Artifacts.open(folder).read_expert(*pair)


def test_folder_without_manifest_is_no_split_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"manifest\.json is missing"):
        Artifacts.open(tmp_path)


def set_path(n: int, path: str) -> Edit:
    return lambda manifest: manifest["files"][n].update(path=path)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "trunk/../../secret", "a\\b", ".hidden", "trunk//x", ""])
def test_manifest_path_that_escapes_is_refused(folder: Path, path: str) -> None:
    with pytest.raises(ArtifactCorrupt, match=r"files\.1\.path"):
        Artifacts.open(edited(folder, set_path(1, path)))


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (set_path(1, "trunk/other.bin"), "does not name the files of its own layout: trunk/embed"),
        (lambda manifest: manifest["files"].pop(), "does not name the files of its own layout: experts/L1/E2"),
        (lambda manifest: manifest["files"].append(manifest["files"][0]), "a file twice"),
        (lambda manifest: manifest["files"][1].update(size_bytes=2**50), "its layout makes 5120 bytes"),
        (lambda manifest: manifest["layout"].update(vocab=2**50), "trunk/embed.f32.bin: its layout makes"),
        (lambda manifest: manifest.update(format="q5"), "format"),
        (lambda manifest: manifest.update(format="q8"), "does not name the files of its own layout: experts/L0/E0"),
        (lambda manifest: manifest.update(trunk_format="q8"), "does not name the files of its own layout: trunk/L0"),
        (lambda manifest: manifest.update(extra=1), "extra"),
    ],
)
def test_manifest_that_contradicts_itself_is_refused(folder: Path, edit: Edit, problem: str) -> None:
    with pytest.raises(ArtifactCorrupt, match=problem):
        Artifacts.open(edited(folder, edit))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", 2**50),
        ("experts", 2**50),
        ("hidden", 2**50),
        ("context", 2**50),
        ("rms_eps", "nan"),
        ("rms_eps", "0"),
        ("rope_theta", "1e999"),
        ("rope_theta", "ten"),
    ],
)
def test_manifest_with_a_number_out_of_bounds_is_refused_with_its_field(folder: Path, field: str, value: Any) -> None:
    with pytest.raises(UnsupportedModel, match=field):
        Artifacts.open(edited(folder, lambda manifest: manifest["layout"].update({field: value})))


def test_manifest_of_an_unknown_family_is_refused(folder: Path) -> None:
    with pytest.raises(UnsupportedModel, match="'other' is not known"):
        Artifacts.open(edited(folder, lambda manifest: manifest["layout"].update(family="other")))


@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest: manifest["layout"].update(top_k=9),
        lambda manifest: manifest["layout"].update(head_dim=10),
        lambda manifest: manifest["layout"].update(moe_layers=[0]),
        lambda manifest: manifest["layout"].update(kv_heads=7),
    ],
)
def test_manifest_layout_that_no_graph_computes_is_refused(folder: Path, edit: Edit) -> None:
    with pytest.raises(UnsupportedModel, match="not a Mixtral"):
        Artifacts.open(edited(folder, edit))


def test_manifest_that_is_not_canonical_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ArtifactCorrupt, match="canonical"):
        Artifacts.open(folder)
