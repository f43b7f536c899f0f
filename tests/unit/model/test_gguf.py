"""Reading GGUF files as checkpoints."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest

from sawyer.errors import CheckpointCorrupt, UnsupportedModel, UsageError
from sawyer.ids import ModelId
from sawyer.model import gguf as module
from sawyer.model.artifacts import Artifacts
from sawyer.model.checkpoint import Checkpoint, TensorRef
from sawyer.model.gguf import Gguf
from sawyer.model.gguf_blocks import READABLE
from sawyer.model.layout import CHAT_FILE
from sawyer.model.sources import open_source
from sawyer.model.split import split

CONFIG: dict[str, Any] = {
    "model_type": "mixtral", "vocab_size": 8, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 2,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
Q4_K_M = {"attn_q": "Q4_K", "attn_k": "Q4_K", "attn_v": "Q6_K", "attn_output": "Q4_K", "ffn_gate_exps": "Q4_K",
          "ffn_up_exps": "Q5_K", "ffn_down_exps": "Q6_K", "token_embd": "Q4_K", "output": "Q6_K"}  # fmt: skip
VOCABULARY = {
    "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -2.0, -3.0, -4.0, -1.0, -5.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1], "tokenizer.chat_template": "{{ messages }}",
}  # fmt: skip
EMBED = TensorRef.all_of("model.embed_tokens.weight", 8, 256)
Q_PROJ = TensorRef.all_of("model.layers.1.self_attn.q_proj.weight", 256, 256)
DOWN = TensorRef.all_of("model.layers.1.block_sparse_moe.experts.1.w2.weight", 256, 512)
Write = Callable[..., Path]


def tensors(kinds: dict[str, str]) -> dict[str, gguf_files.Stored]:
    """Random blocks of these types, floats elsewhere."""
    shapes = {"token_embd.weight": (8, 256), "output_norm.weight": (256,), "output.weight": (8, 256)}
    for layer in range(2):
        for name, shape in (
            ("attn_norm", (256,)), ("ffn_norm", (256,)), ("attn_q", (256, 256)), ("attn_k", (128, 256)),
            ("attn_v", (128, 256)), ("attn_output", (256, 256)), ("ffn_gate_inp", (2, 256)),
            ("ffn_gate_exps", (2, 512, 256)), ("ffn_up_exps", (2, 512, 256)), ("ffn_down_exps", (2, 256, 512)),
        ):  # fmt: skip
            shapes[f"blk.{layer}.{name}.weight"] = shape
    found = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        kind = kinds.get(name.split(".")[-2])
        random = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        found[name] = gguf_files.store(random) if kind is None else gguf_files.random_blocks(shape, kind, seed)
    return found


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(stored: dict[str, gguf_files.Stored], more: dict[str, Any] | None = None, **options: Any) -> Path:
        said = gguf_files.mixtral_metadata(CONFIG) | VOCABULARY | (more or {})
        return gguf_files.write_gguf(tmp_path / "model.gguf", "llama", said, stored, **options)

    return written


def test_mixed_quantisation_is_split_into_the_bytes_of_the_weights_that_it_means(write: Write, tmp_path: Path) -> None:
    stored = tensors(Q4_K_M)
    file = write(stored)
    source = open_source(file)
    tokenizer = source.tokenizer()
    hub = gguf_files.unshuffled(stored, CONFIG)
    reference = gguf_files.write_checkpoint(tmp_path / "meant", CONFIG, hub, tokenizer)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer)
    for format in ("f32", "q4"):
        got = split(Gguf.open(file), tmp_path / f"got-{format}", model=ModelId("m"), format=format)
        expected = split(reference, tmp_path / f"expected-{format}", model=ModelId("m"), format=format)
        assert tuple(file for file in got.files if file.path != CHAT_FILE) == expected.files
        assert got.layout == expected.layout
        Artifacts.open(tmp_path / f"got-{format}").verify()


@pytest.mark.parametrize("kind", sorted(READABLE - {"F32", "F16", "BF16"}))
def test_part_of_a_tensor_is_read_from_whatever_block_it_starts_in(kind: str, write: Write) -> None:
    stored = tensors({"ffn_down_exps": kind})
    meant = gguf_files.decoded(stored["blk.1.ffn_down_exps.weight"])[1].reshape(-1)
    source = Gguf.open(write(stored))
    for start, count in ((0, 512), (32, 32), (17, 300), (511, 2), (256 * 512 - 5, 5)):
        got = source.read(TensorRef(DOWN.name, DOWN.whole, (count,), start))
        assert np.array_equal(got, meant[start : start + count])


def test_streamed_slices_are_the_tensor(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE_WEIGHTS", 1000)
    monkeypatch.setattr(module, "_DECODED_AT_ONCE", 300)
    source = Gguf.open(write(tensors(Q4_K_M)))
    for ref in (EMBED, Q_PROJ, DOWN):
        slices = list(source.stream(ref))
        assert max(len(part) for part in slices) <= 1000
        assert np.array_equal(np.concatenate(slices), source.read(ref).reshape(-1))


def test_streaming_a_large_tensor_takes_the_memory_of_a_slice(tmp_path: Path) -> None:
    rows = 60_000
    stored = tensors({}) | {"token_embd.weight": gguf_files.random_blocks((rows, 256), "Q4_K")}
    said = gguf_files.mixtral_metadata(CONFIG)
    source = Gguf.open(gguf_files.write_gguf(tmp_path / "model.gguf", "llama", said, stored))
    ref = TensorRef.all_of("model.embed_tokens.weight", rows, 256)
    tracemalloc.start()
    total = sum(len(part) for part in source.stream(ref))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == rows * 256
    assert peak < 3 * 4 * module.SLICE_WEIGHTS < 4 * total


def test_blocks_of_an_expert_are_those_of_the_file(write: Write) -> None:
    stored = tensors(Q4_K_M)
    source = Gguf.open(write(stored))
    kind, raw = source.blocks(DOWN)
    assert kind.name == "Q6_K"
    assert np.array_equal(raw, stored["blk.1.ffn_down_exps.weight"][0][1])
    rows = TensorRef(DOWN.name, DOWN.whole, (3, 512), start=5 * 512)
    assert np.array_equal(source.blocks(rows)[1], raw[5:8])


@pytest.mark.parametrize("ref", [Q_PROJ, TensorRef(DOWN.name, DOWN.whole, (1, 512), start=100)])
def test_blocks_that_are_not_the_tensors_rows_are_refused(ref: TensorRef, write: Write) -> None:
    with pytest.raises(UnsupportedModel, match="does not stand in the file in rows of whole blocks"):
        Gguf.open(write(tensors(Q4_K_M))).blocks(ref)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weight_that_is_not_finite_is_refused_with_its_tensor(bad: float, write: Write) -> None:
    raw, kind = gguf_files.random_blocks((2, 256, 512), "Q6_K")
    raw[1, 3, 208:210] = np.array([bad], "<f2").view(np.uint8)
    source = Gguf.open(write(tensors({}) | {"blk.1.ffn_down_exps.weight": (raw, kind)}))
    with pytest.raises(CheckpointCorrupt, match=f"tensor {DOWN.name} holds weights that are not finite"):
        source.read(DOWN)


def test_type_that_is_not_read_is_refused_with_the_stored_name(write: Write) -> None:
    raw = np.zeros((2, 256, 512 // 256 * 66), np.uint8)
    source = Gguf.open(write(tensors({}) | {"blk.1.ffn_down_exps.weight": (raw, "IQ2_XXS")}))
    with pytest.raises(UnsupportedModel, match=r"blk\.1\.ffn_down_exps\.weight is stored as IQ2_XXS; read are only"):
        source.check(DOWN)


def test_tensor_that_is_missing_or_misshaped_is_refused(write: Write) -> None:
    source = Gguf.open(write(tensors({})))
    with pytest.raises(CheckpointCorrupt, match="tensor nowhere is missing"):
        source.check(TensorRef.all_of("nowhere", 1))
    with pytest.raises(CheckpointCorrupt, match=r"expected shape \[256, 8\], got \[8, 256\]"):
        source.check(TensorRef.all_of(EMBED.name, 256, 8))


def test_file_that_shrinks_while_it_is_read_is_refused(write: Write) -> None:
    file = write(tensors({}))
    source = Gguf.open(file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointCorrupt, match=r"model\.gguf became shorter"):
        source.read(DOWN)


def test_identity_changes_with_the_file_and_the_config_does_not(write: Write) -> None:
    before = Gguf.open(write(tensors({})))
    again = Gguf.open(write(tensors({}) | {"output_norm.weight": gguf_files.store(np.ones(256, np.float32))}))
    assert before.identity != again.identity
    assert before.config_sha256 == again.config_sha256


# --- parts of a model -------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(write: Write) -> list[Path]:
    """A model as gguf-split cuts it: the first part has metadata, the tensors come in the others."""
    write(tensors(Q4_K_M), split_max_tensors=10)
    found = sorted(write(tensors(Q4_K_M)).parent.glob("model-*-of-*.gguf"))
    assert len(found) == 3
    return found


@pytest.mark.parametrize("named", [0, 2])
def test_model_in_parts_is_opened_by_any_of_them(named: int, parts: list[Path]) -> None:
    whole, cut = Gguf.open(parts[0].with_name("model.gguf")), Gguf.open(parts[named])
    assert cut.tensors.keys() == whole.tensors.keys()
    assert cut.config == whole.config
    for ref in (EMBED, Q_PROJ, DOWN):
        assert np.array_equal(cut.read(ref), whole.read(ref))


def test_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    with pytest.raises(UsageError, match=r"model-00002-of-00003\.gguf is missing"):
        Gguf.open(parts[0])


def test_part_under_another_name_is_refused(parts: list[Path]) -> None:
    shutil.copy(parts[1], parts[2])
    with pytest.raises(CheckpointCorrupt, match="says that it is part 1 of 3"):
        Gguf.open(parts[0])
    shutil.copy(parts[0], parts[0].with_name("alone.gguf"))
    with pytest.raises(CheckpointCorrupt, match=r"alone\.gguf says that it is part 0 of 3"):
        Gguf.open(parts[0].with_name("alone.gguf"))


# --- what comes along -------------------------------------------------------------------------------------------------


def test_tokenizer_beside_the_file_comes_before_the_one_in_it(write: Write) -> None:
    source = Gguf.open(write(tensors({})))
    assert json.loads(source.tokenizer())["model"]["vocab"]["▁ab"] == 7
    (source.folder / "tokenizer.json").write_bytes(b'{"beside":1}')
    assert source.tokenizer() == b'{"beside":1}'


def test_chat_template_comes_along(write: Write) -> None:
    chat = Gguf.open(write(tensors({}))).chat()

    assert chat is not None
    assert chat.template == "{{ messages }}"
    assert Gguf.open(write(tensors({}), {"tokenizer.chat_template": ""})).chat() is None


def test_source_is_opened_by_what_it_is(write: Write, tmp_path: Path) -> None:
    file = write(tensors({}))
    folder = gguf_files.write_checkpoint(tmp_path / "folder.gguf", CONFIG, {}, b"{}")
    assert isinstance(open_source(file), Gguf)
    assert isinstance(open_source(folder), Checkpoint)
    with pytest.raises(UsageError, match=r"no file .*absent\.gguf"):
        open_source(tmp_path / "absent.gguf")
