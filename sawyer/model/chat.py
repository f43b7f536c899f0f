"""What a checkpoint says of conversations and sampling: its chat template, special tokens, generation defaults. Pure.

Nothing is rendered here: a template is a stranger's program (sawyer.engine.chat runs it, in a sandbox).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from sawyer.errors import CheckpointCorrupt
from sawyer.schemas.models import ChatTemplate, GenerationDefaults

DEFAULT_TEMPLATE: Final = "default"
"""Of several named templates, the one for a plain conversation."""
_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_MOST: Final = 1_000_000.0


def text_of(raw: bytes, name: str) -> str:
    """Raises CheckpointCorrupt for what is no UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointCorrupt(f"{name}: not text in UTF-8: {error}") from error


def template_in(tokenizer_config: Mapping[str, Any]) -> object:
    """The template of a tokenizer_config.json or chat_template.json: itself, or that for a plain conversation of
    several."""
    found = tokenizer_config.get("chat_template")
    if not isinstance(found, list):
        return found
    named = (each for each in found if isinstance(each, dict) and each.get("name") == DEFAULT_TEMPLATE)
    return next((each.get("template") for each in named), None)


def tokens_in(tokenizer_config: Mapping[str, Any], older: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The special tokens that a template may name, as transformers gives them to it. `older`: what a
    special_tokens_map.json says of those that the config does not name."""
    found = {}
    for name in _TOKENS:
        text = tokenizer_config.get(name)
        text = (older or {}).get(name) if text is None else text
        text = text.get("content") if isinstance(text, dict) else text
        if isinstance(text, str):
            found[name] = text
    return found


def template_of(template: object, tokens: Mapping[str, str]) -> ChatTemplate | None:
    """None where there is no template. Raises CheckpointCorrupt for one that is no text, or too long."""
    if template is None or template == "":
        return None
    try:
        return ChatTemplate(template=template, tokens=dict(tokens))  # type: ignore[arg-type]
    except ValidationError as error:
        raise CheckpointCorrupt(f"the chat template is none: {error.errors()[0]['msg']}") from error


def defaults_in(generation_config: Mapping[str, Any]) -> GenerationDefaults | None:
    """What a generation_config.json says, and nothing that it does not: temperature and limits count only with
    `do_sample`, as in transformers. None where it says nothing. Raises CheckpointCorrupt for impossible numbers."""
    told: dict[str, int] = {}
    if generation_config.get("do_sample") is True:
        for name in ("temperature", "top_p", "min_p"):
            _add_milli(told, name, generation_config)
        top_k = generation_config.get("top_k")
        if top_k is not None:
            told["top_k"] = top_k
        told.setdefault("temperature_milli", 1000)
    _add_milli(told, "repetition_penalty", generation_config)
    if not told:
        return None
    try:
        return GenerationDefaults(**told)
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointCorrupt(f"generation defaults: {first['loc'][0]}: {first['msg']}") from error


def _add_milli(told: dict[str, int], name: str, found: Mapping[str, Any]) -> None:
    value = found.get(name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MOST:
        raise CheckpointCorrupt(f"generation defaults: {name} is {value!r:.40}, and no number that makes sense")
    told[f"{name}_milli"] = round(value * 1000)
