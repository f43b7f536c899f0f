"""A model's tokenizer for stubs: a word with the space behind it is a token. Owns the numbers of words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from sawyer.errors import ConversationRefused, PromptTooLong
from sawyer.schemas.generation import ChatMessage

END: Final = 0
"""The id that ends an answer."""
_WORD: Final = re.compile(r"\S+\s*|\s+")


def words(text: str) -> list[str]:
    """The text in tokens; joined they are the text."""
    return _WORD.findall(text)


def conversation_text(messages: Sequence[ChatMessage]) -> str:
    """A conversation as a stub is shown it: a line a turn, and how an answer begins. Raises ConversationRefused unless
    user and assistant take turns, the user first and last, after one system message at most: as most templates do."""
    turns = [each.role for each in messages]
    spoken = turns[1:] if turns[0] == "system" else turns
    if any(role != ("user", "assistant")[number % 2] for number, role in enumerate(spoken)) or len(spoken) % 2 == 0:
        raise ConversationRefused(f"the stub takes no conversation of {', '.join(turns)}")
    return "".join(f"{each.role}: {each.content}\n" for each in messages) + "assistant: "


class Words:
    """Numbers every piece of text when it is first seen, from 1 on."""

    special: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self._texts = [""]
        self._ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt."""
        return [self.id_of(word) for word in words(text)]

    def id_of(self, piece: str) -> int:
        """The id of a whole piece of text, whatever it holds."""
        known = self._ids.setdefault(piece, len(self._texts))
        if known == len(self._texts):
            self._texts.append(piece)
        return known

    def stream(self) -> Words:
        """A decoder for ids that come one by one: it holds nothing back."""
        return self

    def push(self, token: int) -> str:
        """The text of an id."""
        return self._texts[token]

    def flush(self) -> str:
        return ""


class Turns:
    """Reads conversations for a stub, as router/admission.py wants it."""

    def __init__(self, words: Words) -> None:
        self._words = words

    def encode(self, messages: Sequence[ChatMessage], most_chars: int) -> list[int]:
        """The ids of `conversation_text`. Raises PromptTooLong, ConversationRefused."""
        text = conversation_text(messages)
        if len(text) > most_chars:
            raise PromptTooLong(f"this conversation is over {most_chars} characters, as the model is shown it")
        return self._words.encode(text)
