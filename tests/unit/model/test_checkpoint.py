"""Reading checkpoints that strangers wrote."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.errors import CheckpointCorrupt, UsageError
from sawyer.model import checkpoint as module
from sawyer.model.checkpoint import Checkpoint, TensorRef, read_header

NAME = "model.layers.1.self_attn.q_proj.weight"
Q_PROJ = TensorRef.all_of(NAME, 32, 32)


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("shards", [1, 3])
def test_tensor_is_read_from_whatever_file_holds_it(tiny: Any, shards: int) -> None:
    checkpoint = Checkpoint.open(tiny.write(shards=shards))
    assert np.array_equal(checkpoint.read(Q_PROJ), tiny.tensors[NAME])


@pytest.mark.parametrize("kind", ["F32", "BF16", "F16"])
def test_every_stored_type_becomes_float32(tiny: Any, kind: str) -> None:
    tiny.kind = kind
    tiny.tensors = {name: np.round(tensor * 4) / 4 for name, tensor in tiny.tensors.items()}  # exact in each type
    weights = Checkpoint.open(tiny.write()).read(Q_PROJ)
    assert weights.dtype == np.float32
    assert np.array_equal(weights, tiny.tensors[NAME])


def test_part_of_a_tensor_is_read_alone(tiny: Any) -> None:
    ref = TensorRef(NAME, (32, 32), (2, 32), start=5 * 32)
    assert np.array_equal(Checkpoint.open(tiny.write()).read(ref), tiny.tensors[NAME][5:7])


def test_streamed_slices_are_the_tensor(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE_WEIGHTS", 100)
    slices = list(Checkpoint.open(tiny.write()).stream(Q_PROJ))
    assert max(len(part) for part in slices) == 100
    assert np.array_equal(np.concatenate(slices), tiny.tensors[NAME].ravel())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weight_that_is_not_finite_is_refused_with_its_tensor(tiny: Any, bad: float) -> None:
    tiny.tensors[NAME][3, 3] = bad
    with pytest.raises(CheckpointCorrupt, match=f"tensor {NAME} holds weights that are not finite"):
        Checkpoint.open(tiny.write()).read(Q_PROJ)


def test_type_that_is_not_read_is_refused(tiny: Any) -> None:
    tiny.kind = "F64"
    with pytest.raises(CheckpointCorrupt, match="expected BF16, F16 or F32, got F64"):
        Checkpoint.open(tiny.write()).read(Q_PROJ)


def test_folder_without_config_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.json is missing"):
        Checkpoint.open(tmp_path)


def test_folder_without_weights_is_no_checkpoint(tiny: Any) -> None:
    (tiny.write() / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"neither model\.safetensors nor"):
        Checkpoint.open(tiny.folder)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_config_that_is_no_object_is_refused(tiny: Any, raw: bytes) -> None:
    (tiny.write() / "config.json").write_bytes(raw)
    with pytest.raises(CheckpointCorrupt, match=r"config\.json"):
        Checkpoint.open(tiny.folder)


# --- hostile headers --------------------------------------------------------------------------------------------------


def test_header_length_beyond_the_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(CheckpointCorrupt, match="header of 9223372036854775808 bytes in a file of 10"):
        read_header(file)


@pytest.mark.parametrize("raw", [b"", b"1234567"])
def test_file_without_a_header_is_refused(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(raw)
    with pytest.raises(CheckpointCorrupt, match="too short"):
        read_header(file)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 16)}, "tensor b at 4..16, expected it to start at 8"),  # overlap
        ({"a": entry([2], 0, 8), "b": entry([1], 12, 16)}, "tensor b at 12..16, expected it to start at 8"),  # gap
        ({"a": entry([2], 0, 8)}, "describes 8 bytes of data, the file has 16"),
        ({"a": entry([8], 0, 32)}, "describes 32 bytes of data, the file has 16"),
        ({"a": entry([5], 0, 16)}, r"tensor a of F32 \[5\] cannot be 16 bytes"),
        ({"a": entry([2**40, 2**40], 0, 16)}, "cannot be 16 bytes"),
        ({"a": entry([-2, -2], 0, 16)}, "impossible shape"),
        ({"a": entry([1] * 9, 0, 16)}, "impossible shape"),
        ({"a": entry([-4], 0, -16)}, "tensor a at 0..-16"),
        ({"a": {"dtype": "F32", "shape": [4]}}, "not what it should be"),
        ({"a": entry([4.5], 0, 16)}, "not what it should be"),  # type: ignore[list-item]
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16, 32]}}, "not what it should be"),
    ],
)
def test_header_that_does_not_describe_its_file_is_refused(
    tmp_path: Path, make_file: Any, header: dict[str, Any], problem: str
) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(make_file(json.dumps(header).encode(), bytes(16)))
    with pytest.raises(CheckpointCorrupt, match=problem):
        read_header(file)


@given(header=st.binary(max_size=200), data=st.binary(max_size=40))
def test_random_header_is_refused_or_describes_the_file(
    header: bytes, data: bytes, tmp_path_factory: pytest.TempPathFactory, make_file: Any
) -> None:
    file = tmp_path_factory.getbasetemp() / "random.safetensors"
    file.write_bytes(make_file(header, data))
    try:
        _, tensors = read_header(file)
    except CheckpointCorrupt:
        return
    assert tensors or not data


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "a.bin"])
def test_index_that_names_a_file_elsewhere_is_refused(tiny: Any, name: str) -> None:
    index = tiny.write(shards=2) / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {NAME: name}}))
    with pytest.raises(CheckpointCorrupt, match="not a safetensors file of this folder"):
        Checkpoint.open(tiny.folder)


def test_missing_shard_is_named(tiny: Any) -> None:
    (tiny.write(shards=2) / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointCorrupt, match=r"model-1\.safetensors is missing"):
        Checkpoint.open(tiny.folder)


def test_index_and_shard_that_disagree_are_refused(tiny: Any) -> None:
    index = tiny.write(shards=2) / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    weight_map["extra"] = weight_map.pop(NAME)
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointCorrupt, match="do not agree about tensor"):
        Checkpoint.open(tiny.folder)


def test_tokens_that_end_an_answer_are_those_of_the_generation_config(tiny: Any) -> None:
    folder = tiny.write()
    plain = Checkpoint.open(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7], "temperature": 0.6}')
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.config == plain.config | {"eos_token_id": [2, 7]}
    assert checkpoint.identity != plain.identity
    assert checkpoint.config_sha256 == plain.config_sha256


def test_generation_config_that_names_no_end_changes_nothing(tiny: Any) -> None:
    folder = tiny.write()
    plain = Checkpoint.open(folder)
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    checkpoint = Checkpoint.open(folder)
    assert (checkpoint.config, checkpoint.identity) == (plain.config, plain.identity)
