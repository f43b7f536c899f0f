"""tokenizer.json from the metadata of GGUF files: the ids are those of the tokenizer that the metadata came from."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sawyer.errors import CheckpointCorrupt, UnsupportedModel
from sawyer.model import gguf_tokenizer
from sawyer.model.catalog import demo_checkpoint
from sawyer.model.gguf_tokenizer import tokenizer_json

TEXTS = ("Emma was in 1815", " the  end\n\n of it's", "naïve café 你好 🙂", "x=10**3; y", "", " ", "DON'T\t!")


def metadata(**keys: Any) -> dict[str, Any]:
    said = {f"tokenizer.ggml.{name}": value for name, value in keys.items() if value is not None}
    return {name: np.array(one) if name.endswith(("scores", "token_type")) else one for name, one in said.items()}


def load(said: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json(said).decode())


# --- byte-level BPE ---------------------------------------------------------------------------------------------------

AUSTEN = json.loads((demo_checkpoint() / "tokenizer.json").read_text())
SPECIAL = {one["id"] for one in AUSTEN["added_tokens"]}


def byte_level(**keys: Any) -> dict[str, Any]:
    """The demo model's vocabulary as llama.cpp's converter writes it."""
    tokens = sorted(AUSTEN["model"]["vocab"], key=AUSTEN["model"]["vocab"].__getitem__)
    types = [3 if n in SPECIAL else 1 for n in range(len(tokens))]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in AUSTEN["model"]["merges"]]
    return metadata(**{"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_type": types, "merges": merges} | keys)


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_vocabulary_gives_the_ids_and_the_text_of_its_origin(text: str) -> None:
    origin, converted = Tokenizer.from_str(json.dumps(AUSTEN)), load(byte_level())
    ids = origin.encode(text, add_special_tokens=False).ids
    assert converted.encode(text).ids == ids
    assert converted.decode(ids) == text


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "it's 1234 ok", ["it", "'s", " 1234", " ok"]),
        ("olmo", "it's 1234 ok", ["it", "'s", " 1234", " ok"]),
        ("qwen2", "IT'S 1234 ok", ["IT", "'S", " ", "1", "2", "3", "4", " ok"]),
        ("dbrx", "it's 1234 ok", ["it", "'s", " ", "123", "4", " ok"]),
        ("llama-bpe", "a(b)\n\nc", ["a", "(b", ")\n\n", "c"]),
    ],
)
def test_text_is_cut_into_words_as_the_file_names_it(pre: str, text: str, words: list[str]) -> None:
    cut = load(byte_level(pre=pre)).pre_tokenizer.pre_tokenize_str(text)
    assert [text[slice(*span)] for _, span in cut] == words


def test_letters_are_composed_where_the_original_composes_them() -> None:
    composed = load(byte_level(pre="qwen2")).encode("cafe\u0301").ids
    assert composed == load(byte_level(pre="gpt-2")).encode("caf\u00e9").ids


def test_special_tokens_are_found_in_text_and_stand_around_it_if_the_file_says_so() -> None:
    special = min(SPECIAL)
    plain = load(byte_level(bos_token_id=special, eos_token_id=special))
    around = load(byte_level(bos_token_id=special, eos_token_id=special, add_bos_token=True, add_eos_token=True))
    token = plain.id_to_token(special)
    ids = plain.encode("Emma").ids
    assert special not in ids
    assert around.encode("Emma").ids == [special, *ids, special]
    assert plain.encode(f"Emma{token}Emma").ids == [*ids, special, *ids]


def test_token_that_is_not_in_use_is_none() -> None:
    said = byte_level()
    count = len(said["tokenizer.ggml.tokens"])
    said["tokenizer.ggml.tokens"] = [*said["tokenizer.ggml.tokens"], "[PAD1]", "[PAD1]"]
    said["tokenizer.ggml.token_type"] = np.append(said["tokenizer.ggml.token_type"], [5, 5])
    assert load(said).get_vocab_size() == count


# --- SentencePiece ----------------------------------------------------------------------------------------------------

WORDS = ["▁the", "▁t", "he", "in", "ing", "▁cat", "at", "c", "t", "h", "e", "i", "n", "g", "a", "▁", "é", "▁i", "th"]
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS, "<turn>"]
TYPES = [2, 3, 3, *[6] * 256, *[1] * len(WORDS), 4]
SCORES = [0.0] * 259 + [-float(n) for n in range(len(WORDS))] + [0.0]


def sentencepiece(**keys: Any) -> dict[str, Any]:
    usual = {"model": "llama", "tokens": PIECES, "token_type": TYPES, "scores": SCORES, "bos_token_id": 1}
    return metadata(**usual | keys)


def best_merges_first(text: str) -> list[int]:
    """What SentencePiece does, in the plainest words: the best piece that two neighbours make, until none is left."""
    scores = dict(zip(PIECES[259:-1], SCORES[259:-1], strict=True))
    parts = list(text.replace(" ", "▁"))
    while True:
        pairs = [(-scores[a + b], n) for n, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not pairs:
            break
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    ids: list[int] = []
    for part in parts:
        ids += [PIECES.index(part)] if part in scores else [3 + byte for byte in part.encode()]
    return ids


@given(text=st.text(alphabet="theincag é你", min_size=1, max_size=30))
def test_sentencepiece_vocabulary_merges_the_best_piece_first_and_falls_back_to_bytes(text: str) -> None:
    tokenizer = load(sentencepiece())
    ids = tokenizer.encode(text).ids
    assert ids == [1, *best_merges_first(f" {text}")]
    assert tokenizer.decode(ids) == text


@given(text=st.text(alphabet="theincag é", min_size=1, max_size=30))
def test_sentencepiece_vocabulary_without_a_space_in_front_is_told_by_the_file(text: str) -> None:
    tokenizer = load(sentencepiece(add_space_prefix=False, add_bos_token=False))
    assert tokenizer.encode(text).ids == best_merges_first(text)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_user_defined_token_is_found_in_text_and_is_part_of_it() -> None:
    tokenizer = load(sentencepiece())
    ids = tokenizer.encode("the<turn>").ids
    assert ids[-1] == PIECES.index("<turn>")
    assert tokenizer.decode(ids) == "the<turn>"


# --- what cannot be converted -----------------------------------------------------------------------------------------


def test_whole_tokenizer_in_the_file_is_taken_as_it_is() -> None:
    assert tokenizer_json({"tokenizer.huggingface.json": '{"é":1}'}) == '{"é":1}'.encode()


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({}, "the vocabulary None"),
        (metadata(model="bert"), "the vocabulary 'bert'"),
        (byte_level(pre="default"), "cuts text into words as 'default'"),
        (byte_level(pre=None), "cuts text into words as None"),
    ],
)
def test_vocabulary_of_an_unknown_kind_says_what_helps(said: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnsupportedModel, match=problem) as refusal:
        tokenizer_json(said)
    assert "tokenizer.json of the original model beside" in refusal.value.hint


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (byte_level(tokens=None), "tokens is missing"),
        (byte_level(tokens=["a", "b"]), "token_type does not give each of 2 tokens"),
        (byte_level(tokens=["a", "a"], token_type=[1, 1]), "has a token twice"),
        (byte_level(merges=None), "merges is missing"),
        (byte_level(merges=["a"]), "no pair, or makes no token"),
        (byte_level(merges=["qz qz"]), "no pair, or makes no token"),
        (byte_level(add_bos_token=True), "bos_token_id is None, which is no token"),
        (byte_level(add_bos_token=True, bos_token_id=2**31), "bos_token_id is 2147483648, which is no token"),
        (sentencepiece(scores=None), "scores does not give each"),
        (sentencepiece(scores=[1.0]), "scores does not give each"),
        (sentencepiece(scores=[float("nan"), *SCORES[1:]]), "scores does not give each"),
    ],
)
def test_vocabulary_that_does_not_hold_together_is_refused(said: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointCorrupt, match=problem):
        tokenizer_json(said)


def test_piece_of_endless_length_takes_no_endless_time() -> None:
    pieces = ["a" * n for n in range(1, 400)] + ["a" * 100_000]
    said = metadata(model="llama", tokens=pieces, scores=[0.0] * len(pieces), add_bos_token=False)
    assert len(json.loads(tokenizer_json(said))["model"]["merges"]) == sum(range(64))


def test_vocabulary_that_makes_merges_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_tokenizer, "MAX_MERGES", 100)
    pieces = sorted({("ab" * 20)[at:end] for at in range(40) for end in range(at + 1, 41)})
    said = metadata(model="llama", tokens=pieces, scores=[0.0] * len(pieces), add_bos_token=False)
    with pytest.raises(CheckpointCorrupt, match="more than 100 merges"):
        tokenizer_json(said)
