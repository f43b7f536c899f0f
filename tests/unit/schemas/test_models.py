"""The manifest: names exact weights, and no path in it leaves the model's folder."""

from __future__ import annotations

import hashlib

import pytest
from pydantic import TypeAdapter, ValidationError

from sawyer.schemas.models import FileDigest, FilePath, Manifest, ModelLayout

PATH: TypeAdapter[str] = TypeAdapter(FilePath)


@pytest.fixture
def manifest() -> Manifest:
    layout = ModelLayout(
        family="mixtral", vocab=2048, hidden=192, layers=4, heads=6, kv_heads=2, head_dim=32, ffn=384, experts=8,
        top_k=2, context=512, moe_layers=(0, 1, 2, 3), rms_eps="1e-05", rope_theta="10000.0", eos=(2,),
    )  # fmt: skip
    files = (FileDigest(path="experts/L0/E0.f32.bin", size_bytes=884_736, sha256="ab" * 32),)
    return Manifest(v=1, model="austen", format="f32", layout=layout, config_sha256="cd" * 32, files=files)


def test_layout_counts_parameters_of_one_expert_and_rows_of_one_token(manifest: Manifest) -> None:
    assert manifest.layout.expert_parameters == 3 * 192 * 384 == 221_184
    assert manifest.layout.rows_per_token == 4 * 2


def test_digest_is_sha256_of_the_canonical_manifest_and_moves_with_every_file(manifest: Manifest) -> None:
    assert manifest.digest() == hashlib.sha256(manifest.canonical()).hexdigest()
    assert Manifest.parse(manifest.canonical()).digest() == manifest.digest()
    other = FileDigest(path="experts/L0/E0.f32.bin", size_bytes=884_736, sha256="ac" * 32)
    assert manifest.model_copy(update={"files": (other,)}).digest() != manifest.digest()


def test_trunk_in_float32_is_not_said_so_that_older_manifests_keep_their_digests(manifest: Manifest) -> None:
    assert b"trunk_format" not in manifest.canonical()
    assert manifest.trunk == "f32"
    other = manifest.model_copy(update={"trunk_format": "q8"})
    assert Manifest.parse(other.canonical()).trunk == "q8"
    assert other.digest() != manifest.digest()


@pytest.mark.parametrize("path", ["trunk/head.bin", "manifest.json", "experts/L0/E0.f32.bin", "a/b/c/d"])
def test_path_inside_the_folder_is_accepted(path: str) -> None:
    assert PATH.validate_python(path) == path


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../x", "a/..", ".", "..", ".hidden", "a/.hidden", "a//b", "a/", "a\\b", "C:x", "a b",
     "a\n", "a\0", "é", "a/b/c/d/e"],
)  # fmt: skip
def test_path_that_could_leave_the_folder_is_refused(path: str) -> None:
    with pytest.raises(ValidationError):
        PATH.validate_python(path)
