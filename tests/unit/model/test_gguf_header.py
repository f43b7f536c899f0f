"""Headers of GGUF files that strangers wrote."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sawyer.errors import CheckpointCorrupt, UnsupportedModel, UsageError
from sawyer.model import gguf_header as module
from sawyer.model.checkpoint import TensorRef
from sawyer.model.gguf import Gguf
from sawyer.model.gguf_header import read_header

HUGE = 2**63


def text(words: str) -> bytes:
    return struct.pack("<Q", len(words)) + words.encode()


def tensor(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def number(key: str, value: int, kind: int = 4) -> bytes:
    return text(key) + struct.pack("<II", kind, value)


def header(*parts: bytes, tensors: int = 0, keys: int = 0, magic: bytes = b"GGUF", version: int = 3) -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(*parts: bytes, data: int = 64, **counts: Any) -> Path:
        raw = header(*parts, **counts)
        (tmp_path / "a.gguf").write_bytes(raw + bytes(-len(raw) % 32) + bytes(data))
        return tmp_path / "a.gguf"

    return written


def test_metadata_and_tensors_are_what_was_written(tmp_path: Path) -> None:
    metadata = {
        "a.size": 7, "a.eps": 1e-5, "a.flag": True, "a.name": "Austen é", "a.words": ["x", "", "▁the"],
        "a.numbers": [1, 2, 3], "a.reals": [0.5, 1.5], "general.alignment": 64,
    }  # fmt: skip
    tensors = {
        "one": gguf_files.store(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "two": gguf_files.random_blocks((2, 3, 256), "Q6_K"),
    }
    file = gguf_files.write_gguf(tmp_path / "a.gguf", "llama", metadata, tensors)
    found = read_header(file)
    said = {key: list(one) if isinstance(one, np.ndarray) else one for key, one in found.metadata.items()}
    assert said == {"general.architecture": "llama"} | metadata
    assert {name: (one.kind.name, one.shape) for name, one in found.tensors.items()} == {
        "one": ("F32", (2, 3)), "two": ("Q6_K", (2, 3, 256)),
    }  # fmt: skip
    raw = file.read_bytes()
    for name, one in found.tensors.items():
        assert raw[one.offset : one.offset + one.size_bytes] == tensors[name][0].tobytes()


@pytest.mark.parametrize(
    ("parts", "counts", "problem"),
    [
        ((), {"tensors": HUGE}, "claims 9223372036854775808 tensors"),
        ((), {"keys": HUGE}, "claims 9223372036854775808 keys"),
        ((), {"tensors": 1 << 20, "data": 1 << 26}, "claims 1048576 tensors"),
        ((struct.pack("<Q", HUGE),), {"keys": 1}, "the name of a key is 9223372036854775808 bytes"),
        ((text("k") + struct.pack("<IQ", 8, HUGE),), {"keys": 1}, "k is 9223372036854775808 bytes"),
        ((text("k") + struct.pack("<IIQ", 9, 8, HUGE),), {"keys": 1}, "cannot hold 9223372036854775808 strings of k"),
        ((text("k") + struct.pack("<IIQ", 9, 4, HUGE),), {"keys": 1}, "k is 36893488147419103232 bytes"),
        ((text("k") + struct.pack("<IIQ", 9, 9, 1),), {"keys": 1}, "unknown type 9 for k"),
        ((text("k") + struct.pack("<I", 13),), {"keys": 1}, "unknown type 13 for k"),
        ((number("k", 1), number("k", 2)), {"keys": 2}, "the key 'k' twice"),
        ((struct.pack("<Q", 2) + b"\xff\xfe",), {"keys": 1, "data": 64}, "not UTF-8"),
        ((number("general.alignment", 48),), {"keys": 1}, "impossible alignment 48"),
        ((number("general.alignment", 0),), {"keys": 1}, "impossible alignment 0"),
        ((number("general.alignment", 1 << 30),), {"keys": 1}, "impossible alignment"),
        ((tensor("t", ()),), {"tensors": 1}, "gives tensor t 0 dimensions"),
        ((tensor("t", (1,) * 5),), {"tensors": 1}, "gives tensor t 5 dimensions"),
        ((text("t") + struct.pack("<I", 1 << 31),), {"tensors": 1}, "gives tensor t 2147483648 dimensions"),
        ((tensor("t", (4, 0)),), {"tensors": 1}, r"tensor t of F32 in the impossible shape \[0, 4\]"),
        ((tensor("t", (33, 2), 2),), {"tensors": 1}, r"tensor t of Q4_0 in the impossible shape \[2, 33\]"),
        ((tensor("t", (4,), 4),), {"tensors": 1}, "tensor t in the unknown type 4"),
        ((tensor("t", (4,), 99),), {"tensors": 1}, "tensor t in the unknown type 99"),
        ((tensor("t", (16,)), tensor("t", (16,), 0, 64)), {"tensors": 2, "data": 128}, "tensor 't' twice"),
        ((tensor("t", (16,)), tensor("u", (16,), 0, 32)), {"tensors": 2, "data": 128}, "tensors t and u in the same"),
        ((tensor("t", (17,)),), {"tensors": 1}, "tensor t until byte .*, and is .* bytes long"),
        ((tensor("t", (2**40, 2**40)),), {"tensors": 1}, "tensor t until byte"),
        ((tensor("t", (16,), 0, HUGE),), {"tensors": 1}, "tensor t until byte"),
        ((tensor("t", (1,), 0, 4),), {"tensors": 1}, "not aligned to 32"),
    ],
)
def test_header_that_does_not_fit_its_file_is_refused(
    write: Callable[..., Path], parts: tuple[bytes, ...], counts: dict[str, int], problem: str
) -> None:
    with pytest.raises(CheckpointCorrupt, match=f"^a.gguf .*{problem}"):
        read_header(write(*parts, **counts))


@pytest.mark.parametrize("raw", [b"", b"GG", b"PK\x03\x04" + bytes(60), b"\x80\x04\x95pickle" + bytes(60)])
def test_file_of_another_kind_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a.gguf").write_bytes(raw)
    with pytest.raises(CheckpointCorrupt, match="not a GGUF file"):
        read_header(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("version", "problem"), [(1, "version 1"), (4, "version 4"), (0x03000000, "written for big-endian machines")]
)
def test_version_that_is_not_read_is_named(write: Callable[..., Path], version: int, problem: str) -> None:
    with pytest.raises(UnsupportedModel, match=problem):
        read_header(write(version=version))


def test_strings_beyond_all_vocabularies_are_refused_before_they_are_made(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_STRINGS", 5)
    words = text("k") + struct.pack("<IIQ", 9, 8, 6) + text("") * 6
    with pytest.raises(CheckpointCorrupt, match="cannot hold 6 strings of k"):
        read_header(write(words, keys=1))


def test_header_longer_than_any_is_refused_whatever_the_files_size(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_HEADER_BYTES", 100)
    with pytest.raises(CheckpointCorrupt, match="k is 200 bytes"):
        read_header(write(text("k") + struct.pack("<IQ", 8, 200) + bytes(200), keys=1))


# --- fuzzing: whatever the bytes are, only these errors come, with little memory --------------------------------------

REFUSALS = (CheckpointCorrupt, UsageError)
MEMORY = 30_000_000


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A small Mixtral that opens, and whose bytes are then changed."""
    config = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "num_local_experts": 2, "num_experts_per_tok": 2, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 1e6, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    hub = {"model.embed_tokens.weight": (40, 32), "model.norm.weight": (32,)}
    prefix = "model.layers.0."
    hub |= {f"{prefix}{norm}_layernorm.weight": (32,) for norm in ("input", "post_attention")}
    hub |= {f"{prefix}self_attn.{one}_proj.weight": (n, 32) for one, n in (("q", 32), ("k", 16), ("v", 16), ("o", 32))}
    hub |= {f"{prefix}block_sparse_moe.gate.weight": (2, 32)}
    for expert in range(2):
        own = f"{prefix}block_sparse_moe.experts.{expert}."
        hub |= {f"{own}w1.weight": (64, 32), f"{own}w3.weight": (64, 32), f"{own}w2.weight": (32, 64)}
    random = np.random.default_rng(5)
    tensors = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in hub.items()}
    stored = gguf_files.in_types(gguf_files.mixtral_tensors(config, tensors), gguf_files.MIXED)
    metadata = gguf_files.mixtral_metadata(config) | {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -2.0, -3.0, -4.0, -1.0],
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1],
    }  # fmt: skip
    file = tmp_path_factory.mktemp("sound") / "sound.gguf"
    gguf_files.write_gguf(file, "llama", metadata, stored)
    use(file)  # it opens
    return file.with_name("changed.gguf"), file.read_bytes()


def use(file: Path) -> None:
    """Everything that a split does with a file, as far as its shapes are those that it claims."""
    opened = Gguf.open(file)
    opened.tokenizer()
    for name, view in opened.tensors.items():
        for _ in opened.stream(TensorRef.all_of(name, *view.shape)):
            pass


def refuse_or_use(file: Path) -> None:
    tracemalloc.start()
    try:
        with suppress(*REFUSALS):
            use(file)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MEMORY


@given(raw=st.binary(max_size=400), magic=st.booleans())
def test_random_bytes_are_refused(raw: bytes, magic: bool, sound: tuple[Path, bytes]) -> None:
    file, _ = sound
    file.write_bytes((header()[:8] if magic else b"") + raw)
    with pytest.raises(REFUSALS):
        use(file)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_changed_file_is_refused_or_read_with_little_memory(data: st.DataObject, sound: tuple[Path, bytes]) -> None:
    file, raw = sound
    changed = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 3600) | st.integers(0, len(raw) - 9))
        width = data.draw(st.sampled_from([1, 4, 8]))
        value = data.draw(
            st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**62, 2**64 - 1]) | st.integers(0, 2 ** (8 * width) - 1)
        )
        changed[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")
    file.write_bytes(bytes(changed))
    refuse_or_use(file)


@settings(deadline=None)
@given(data=st.data())
def test_truncated_file_is_refused(data: st.DataObject, sound: tuple[Path, bytes]) -> None:
    file, raw = sound
    file.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 64))])
    with pytest.raises(CheckpointCorrupt):
        use(file)
