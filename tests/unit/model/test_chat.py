"""What a checkpoint says of conversations and sampling, however it says it; nonsense is told, not guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sawyer.errors import CheckpointCorrupt
from sawyer.model.chat import defaults_in, template_in, template_of, text_of, tokens_in
from sawyer.model.checkpoint import Checkpoint
from sawyer.schemas.models import MAX_TEMPLATE_CHARS, ChatTemplate, GenerationDefaults

PLAIN = "{{ messages[0].content }}"


@pytest.mark.parametrize(
    "said",
    [
        PLAIN,
        [{"name": "tool_use", "template": "other"}, {"name": "default", "template": PLAIN}],
        [{"name": ["default"], "template": "other"}, 7, None, {"name": "default", "template": PLAIN}],
    ],
)
def test_template_is_the_one_for_plain_conversations(said: object) -> None:
    assert template_in({"chat_template": said}) == PLAIN


@pytest.mark.parametrize("said", [None, "", [], [{"name": "rag", "template": PLAIN}], [{"template": PLAIN}]])
def test_checkpoint_without_a_template_for_plain_conversations_has_none(said: object) -> None:
    assert template_of(template_in({"chat_template": said}), {}) is None


@pytest.mark.parametrize("said", [7, {"default": PLAIN}, True, "x" * (MAX_TEMPLATE_CHARS + 1)])
def test_template_that_is_none_is_refused(said: object) -> None:
    with pytest.raises(CheckpointCorrupt, match="chat template"):
        template_of(template_in({"chat_template": said}), {})


def test_special_tokens_are_texts_whatever_they_are_written_as() -> None:
    config = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "unk_token": None, "pad_token": 7}
    assert tokens_in(config) == {"bos_token": "<s>", "eos_token": "</s>"}


def test_older_file_of_special_tokens_fills_what_the_config_does_not_name() -> None:
    older = {"bos_token": "<older>", "eos_token": {"content": "</s>"}, "additional_special_tokens": ["<x>"]}
    assert tokens_in({"bos_token": "<s>"}, older) == {"bos_token": "<s>", "eos_token": "</s>"}


def test_special_token_that_is_no_token_is_refused() -> None:
    with pytest.raises(CheckpointCorrupt):
        template_of(PLAIN, tokens_in({"bos_token": "x" * 5000}))


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(CheckpointCorrupt, match="UTF-8"):
        text_of(b"\xff", "chat_template.jinja")


# --- generation defaults ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({}, None),
        ({"temperature": 0.6, "top_p": 0.9}, None),  # without do_sample they count for nothing
        ({"do_sample": False, "top_k": 50}, None),
        ({"do_sample": True}, {"temperature_milli": 1000}),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0},
         {"temperature_milli": 600, "top_p_milli": 950, "top_k": 20, "min_p_milli": 0}),
        ({"repetition_penalty": 1.05}, {"repetition_penalty_milli": 1050}),
        ({"do_sample": True, "temperature": 1, "top_p": None}, {"temperature_milli": 1000}),
        ({"eos_token_id": 2, "max_length": 4096}, None),
        ({"do_sample": True, "top_k": -1}, {"temperature_milli": 1000, "top_k": 0}),
        ({"do_sample": True, "top_k": 50.0}, {"temperature_milli": 1000, "top_k": 50}),
    ],
)  # fmt: skip
def test_defaults_are_what_the_file_says_and_nothing_else(said: dict[str, Any], told: dict[str, int] | None) -> None:
    assert defaults_in(said) == (None if told is None else GenerationDefaults(**told))


@pytest.mark.parametrize(
    "said",
    [
        {"temperature": "hot"}, {"temperature": True}, {"temperature": -1}, {"temperature": 1e308},
        {"temperature": 10**400}, {"temperature": float("nan")}, {"top_p": 7}, {"top_p": [0.9]}, {"top_k": -2},
        {"top_p": 0.0}, {"top_k": float("inf")}, {"top_k": True}, {"top_k": 2.5}, {"top_k": "40"}, {"min_p": 2},
        {"repetition_penalty": 0}, {"top_k": 2**60},
    ],
)  # fmt: skip
def test_advice_that_makes_no_sense_is_left_out_and_stops_nothing(said: dict[str, Any]) -> None:
    sound = {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1}
    (name,) = said
    assert defaults_in({**sound, **said}) == defaults_in({each: sound[each] for each in sound if each != name})
    assert defaults_in({"do_sample": True, **said}) == GenerationDefaults(temperature_milli=1000)


# --- the files of a folder --------------------------------------------------------------------------------------------


def chat_of(folder: Path, **files: object) -> ChatTemplate | None:
    """What a checkpoint's folder with these files says."""
    for name, said in files.items():
        kind = "jinja" if name == "chat_template_jinja" else "json"
        path = folder / f"{name.removesuffix('_jinja')}.{kind}"
        path.write_text(said if isinstance(said, str) else json.dumps(said))
    made = Checkpoint.__new__(Checkpoint)
    made.folder = folder
    return made.chat()


def test_file_of_the_template_comes_before_the_config_and_that_before_the_older_file(tmp_path: Path) -> None:
    older = chat_of(tmp_path, chat_template={"chat_template": "older"}, special_tokens_map={"bos_token": "<s>"})
    assert older == ChatTemplate(template="older", tokens={"bos_token": "<s>"})
    config = chat_of(tmp_path, tokenizer_config={"chat_template": "config", "eos_token": "</s>"})
    assert config == ChatTemplate(template="config", tokens={"bos_token": "<s>", "eos_token": "</s>"})
    newest = chat_of(tmp_path, chat_template_jinja="newest")
    assert newest is not None
    assert newest.template == "newest"


def test_folder_without_any_of_them_has_no_template(tmp_path: Path) -> None:
    assert chat_of(tmp_path) is None


@pytest.mark.parametrize("raw", ["[" * 100_000, "{", "[]", '{"chat_template": "\\ud800"}'])
def test_config_that_is_nothing_is_refused(tmp_path: Path, raw: str) -> None:
    with pytest.raises(CheckpointCorrupt, match="tokenizer_config"):
        chat_of(tmp_path, tokenizer_config=raw)
