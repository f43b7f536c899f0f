"""Text and ids: whole characters come out, and joined they are the decoded text, whatever the ids."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer

from sawyer.engine.tokenizer import Tokenizer
from sawyer.errors import ArtifactCorrupt


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join([*(stream.push(token) for token in ids), stream.flush()])


@given(ids=st.lists(st.integers(0, 2100), max_size=60))
def test_streamed_text_is_the_decoded_text_for_any_ids(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)


@given(text=st.text(max_size=40))
def test_streamed_text_of_encoded_text_is_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert streamed(tokenizer, tokenizer.encode(text)) == text


@given(text=st.text(st.sampled_from("aé你🙂 "), min_size=1, max_size=12))
def test_no_piece_of_valid_text_ends_inside_a_character(tokenizer: Tokenizer, text: str) -> None:
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces)


@given(ids=st.lists(st.integers(0, 270), max_size=30))
def test_byte_fallback_text_is_the_decoded_text_for_any_ids(byte_fallback: Tokenizer, ids: list[int]) -> None:
    assert streamed(byte_fallback, ids) == byte_fallback.decode(ids)


def test_byte_fallback_run_is_held_back_until_it_ends(byte_fallback: Tokenizer) -> None:
    stream = byte_fallback.stream()
    ids = [2, *(9 + byte for byte in "🙂".encode()), 4]
    assert [stream.push(token) for token in ids] == ["the", "", "", "", "", "🙂cat"]


def test_special_tokens_stand_for_nothing(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Emma was")
    assert streamed(tokenizer, [0, *ids[:1], 0, *ids[1:]]) == "Emma was"


def test_settings_that_cut_or_pad_are_switched_off(tokenizer: Tokenizer) -> None:
    raw = RawTokenizer.from_str(tokenizer.raw.to_str())
    raw.enable_truncation(2)
    raw.enable_padding(length=64)
    assert Tokenizer.from_json(raw.to_str().encode()).encode("Emma was obliged") == tokenizer.encode("Emma was obliged")


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff", json.dumps({"model": {"type": "Nothing"}}).encode()])
def test_broken_tokenizer_is_refused(raw: bytes) -> None:
    with pytest.raises(ArtifactCorrupt, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_json(raw)
