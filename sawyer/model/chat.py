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
    `do_sample`, as in transformers. None where it says nothing. It is advice: what makes no sense is left out."""
    told: dict[str, int | None] = {"repetition_penalty_milli": _milli(generation_config.get("repetition_penalty"))}
    if generation_config.get("do_sample") is True:
        told |= {f"{name}_milli": _milli(generation_config.get(name)) for name in ("temperature", "top_p", "min_p")}
        told["top_k"] = _whole(generation_config.get("top_k"))
    sound = {name: value for name, value in told.items() if value is not None and _is_sound(name, value)}
    if generation_config.get("do_sample") is True:
        sound.setdefault("temperature_milli", 1000)
    return GenerationDefaults(**sound) if sound else None


def _milli(value: object) -> int | None:
    """In thousandths; None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MOST:
        return None
    return round(value * 1000)


def _whole(value: object) -> int | None:
    """A count, also one that is written as 50.0; -1 turns it off, as 0 does. None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MOST or value != int(value):
        return None
    return 0 if value == -1 else int(value)


def _is_sound(name: str, value: int) -> bool:
    try:
        GenerationDefaults(**{name: value})
    except ValidationError:
        return False
    return True
