"""What a model is shown of a prompt or a conversation, and how much of that is billed. Done by whoever runs
the trunk: a router, or a client with a trunk of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from sawyer.errors import NoChatTemplate, PromptEmpty, PromptTooLong
from sawyer.schemas.events import MAX_FREE_TOKENS
from sawyer.schemas.generation import ChatMessage, GenerateParams
from sawyer.schemas.models import ModelLayout

MAX_CHARS_A_TOKEN: Final = 128
"""No token of the vocabularies we know stands for more: a longer prompt is refused before it is tokenized."""


class PromptTokenizer(Protocol):
    """What is asked of a model's tokenizer: the ids of a prompt, and which ids are special."""

    special: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt."""


class ChatReader(Protocol):
    """What is asked of a model that was taught to read conversations."""

    def encode(self, messages: Sequence[ChatMessage], most_chars: int) -> list[int]:
        """The ids of a conversation, up to where an answer begins. Raises ConversationRefused, PromptTooLong,
        ChatTemplateBroken."""


def prompt_ids(
    params: GenerateParams, tokenizer: PromptTokenizer, layout: ModelLayout, chat: ChatReader | None = None
) -> list[int]:
    """What the model is shown. `chat`: None for a model without a chat template. Raises PromptEmpty, PromptTooLong,
    NoChatTemplate, what reading a conversation raises."""
    ids = _prompt_ids(params, tokenizer, chat, layout.context)
    if len(ids) + params.max_tokens > layout.context:
        raise PromptTooLong(
            f"{len(ids)} prompt tokens and {params.max_tokens} new ones are over the context of {layout.context}",
            details={"prompt_tokens": str(len(ids)), "context": str(layout.context)},
        )
    return ids


def _prompt_ids(params: GenerateParams, tokenizer: PromptTokenizer, chat: ChatReader | None, context: int) -> list[int]:
    most_chars = MAX_CHARS_A_TOKEN * context
    if not params.characters:
        raise PromptEmpty("the prompt is empty" if params.messages is None else "nothing is said in the conversation")
    if params.characters > most_chars:
        raise PromptTooLong(f"{params.characters} characters are over the context of {context} tokens")
    if params.messages is not None and chat is None:
        raise NoChatTemplate("this model has no chat template")
    if params.messages is not None and chat is not None:
        ids = chat.encode(params.messages, most_chars)
    else:
        ids = tokenizer.encode(params.prompt or "")
    if not ids:
        raise PromptEmpty("the prompt holds no token of this model")
    return ids


def billed_input(ids: list[int], special: frozenset[int]) -> int:
    """How many prompt tokens are billed: special tokens are free, but for so many of them that the ledger would refuse
    the bill (a prompt may spell them out). One is kept for the end token of the answer."""
    plain = sum(each not in special for each in ids)
    return max(1, plain, len(ids) - (MAX_FREE_TOKENS - 1))
