"""What a program asks with, in its own words, to what goes over the wire. Owns the reading of options; asks nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from pydantic import ValidationError

from sawyer.errors import UsageError
from sawyer.schemas.base import first_problem
from sawyer.schemas.events import MAX_FREE_TOKENS
from sawyer.schemas.generation import MAX_MESSAGES, MAX_PROMPT_CHARS, ChatMessage, GenerateParams

Conversation = Sequence[Mapping[str, str] | ChatMessage]
"""Turns in order, each `{"role": "user", "content": "Hello"}`; the roles are system, user and assistant."""
TEMPLATE_TOKENS: Final = 8192
"""What a chat template may write around a conversation: nobody knows it before the router does."""
TURN_TOKENS: Final = 64
"""The same, for each turn."""
_MILLI: Final = ("temperature", "top_p", "min_p", "repetition_penalty")


def params_of(
    asked: str | Conversation,
    *,
    model_defaults: bool | Collection[str] | None,
    stop: str | Sequence[str],
    sampling: Mapping[str, object],
    options: Mapping[str, object],
) -> GenerateParams:
    """`sampling`: temperature, top_k, top_p, min_p and repetition_penalty; what is None changes nothing, or with
    `model_defaults` (by default for conversations) is left to the model; of names, those are, and have their value
    where its maker said nothing. Raises UsageError for what makes no sense."""
    talk = not isinstance(asked, str)
    left = _left(talk if model_defaults is None else model_defaults, sampling)
    chosen = {name: value for name, value in sampling.items() if value is not None}
    fields = {
        **{f"{name}_milli" if name in _MILLI else name: _counted(name, value) for name, value in chosen.items()},
        **options,
        **({"messages": messages_of(asked)} if talk else {"prompt": asked}),
        **({"from_model": left} if left else {}),
        "stop": _stops(stop),
    }
    try:
        return GenerateParams.model_validate(fields)
    except ValidationError as error:
        raise UsageError(f"cannot ask for this: {_problem(error)}") from error


def messages_of(conversation: str | Conversation) -> tuple[ChatMessage, ...]:
    """The turns of a conversation; a text alone is one of the user. Raises UsageError for what is none."""
    told = ({"role": "user", "content": conversation},) if isinstance(conversation, str) else conversation
    try:
        return tuple(each if isinstance(each, ChatMessage) else ChatMessage.model_validate(dict(each)) for each in told)
    except ValidationError as error:
        raise UsageError(f"not a message of a conversation: {_problem(error)}", hint=_HINT) from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"not a conversation: {conversation!r:.80}", hint=_HINT) from error


def most_input_tokens(params: GenerateParams) -> int:
    """More tokens than these a prompt, or a conversation with its template, never has; a token is a byte at least."""
    if params.messages is None:
        return len((params.prompt or "").encode()) + MAX_FREE_TOKENS
    said = sum(len(each.content.encode()) for each in params.messages)
    return said + len(params.messages) * TURN_TOKENS + TEMPLATE_TOKENS + MAX_FREE_TOKENS


def _left(model_defaults: bool | Collection[str], sampling: Mapping[str, object]) -> tuple[str, ...]:
    """The names of what is left to the model."""
    if isinstance(model_defaults, bool):
        return tuple(sorted(name for name, value in sampling.items() if value is None and model_defaults))
    try:
        if isinstance(model_defaults, str):
            raise TypeError("one text")
        return tuple(sorted(set(model_defaults)))
    except TypeError as error:
        raise UsageError(
            f"model_defaults must be True, False or names of options, got {model_defaults!r:.80}"
        ) from error


def _problem(error: ValidationError) -> str:
    """What is wrong with a question, in plain words where they are known."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    field = where.rpartition(".")[2]
    if first["type"] == "string_too_long" and field in ("prompt", "content"):
        return f"{where}: the text is over {MAX_PROMPT_CHARS:,} characters"
    if first["type"] == "too_long" and field == "messages":
        return f"{where}: a conversation has {MAX_MESSAGES:,} at most"
    if first["type"] == "string_unicode":
        return f"{where}: the text holds bytes that are no characters (a lone surrogate)"
    return first_problem(error)


def _counted(name: str, value: object) -> object:
    """In thousandths where it travels so."""
    if name not in _MILLI:
        return value
    try:
        return round(value * 1000)  # type: ignore[operator]
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{name} must be a number, got {value!r}") from error


def _stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    try:
        return (stop,) if isinstance(stop, str) else tuple(stop)
    except TypeError as error:
        raise UsageError(f"stop must be a string or several, got {stop!r}") from error


_HINT: Final = 'It is a list of {"role": ..., "content": ...}, the role system, user or assistant.'
