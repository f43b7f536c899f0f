"""What a client asks of a model: a prompt or a conversation, and how the tokens of the answer are chosen.

No floats: temperatures and probabilities travel as per mille integers, so that one content has one encoding.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from sawyer.schemas.base import Count, Positive, Strict
from sawyer.schemas.models import GenerationDefaults

MAX_PROMPT_CHARS: Final = 1_000_000
MAX_MESSAGES: Final = 1024
"""Of one conversation."""
MAX_STOP_STRINGS: Final = 16
MAX_TOP_LOGPROBS: Final = 20

StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Role = Literal["system", "user", "assistant"]
Sampled = Literal["min_p", "repetition_penalty", "temperature", "top_k", "top_p"]
"""What a model's maker may have said of how it is best sampled (models.GenerationDefaults)."""


class ChatMessage(Strict):
    """One turn of a conversation."""

    role: Role
    content: Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS)]


class GenerateParams(Strict):
    """What to generate: on from a `prompt`, or the answer to `messages`, which the model's own chat template turns into
    a prompt; exactly one of them. temperature_milli 0 is greedy; top_k 0, top_p_milli 1000, min_p_milli 0 and
    repetition_penalty_milli 1000 change nothing. `from_model`: these are what the model's maker said instead, where he
    said it. `stop`: the text ends before the first of these strings. `logprobs`: absent for none, else how many of the
    likeliest tokens are told beside the chosen one."""

    prompt: Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS)] | None = None
    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    max_tokens: Positive
    temperature_milli: Annotated[int, Field(ge=0, le=100_000)] = 0
    top_k: Count = 0
    top_p_milli: Annotated[int, Field(ge=1, le=1000)] = 1000
    min_p_milli: Annotated[int, Field(ge=0, le=1000)] = 0
    repetition_penalty_milli: Annotated[int, Field(ge=100, le=10_000)] = 1000
    from_model: Annotated[tuple[Sampled, ...], Field(min_length=1, max_length=5)] | None = None
    seed: Count = 0
    stop: Annotated[tuple[StopString, ...], Field(max_length=MAX_STOP_STRINGS)] = ()
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("exactly one of prompt and messages is given")
        return self

    @property
    def characters(self) -> int:
        """Of all that is asked with."""
        return len(self.prompt or "") + sum(len(each.content) for each in self.messages or ())

    def settled(self, said: GenerationDefaults | None) -> GenerateParams:
        """The same with what the model's maker said in place of what `from_model` leaves to him."""
        told = said.model_dump(exclude_none=True) if said else {}
        fields = ((name, name if name == "top_k" else f"{name}_milli") for name in self.from_model or ())
        changes = {field: told[field] for _, field in fields if field in told}
        return self.model_copy(update=changes) if changes else self

    def commitment(self, salt: str) -> str:
        """SHA-256 over 32 secret random bytes (64 hex characters) and the canonical parameters: what the client signs,
        so that the book proves the order without holding the prompt."""
        return hashlib.sha256(bytes.fromhex(salt) + self.canonical()).hexdigest()
