"""A model's tokenizer for stubs: a word with the space behind it is a token. Owns the numbers of words."""

from __future__ import annotations

import re
from typing import Final

END: Final = 0
"""The id that ends an answer."""
_WORD: Final = re.compile(r"\S+\s*|\s+")


def words(text: str) -> list[str]:
    """The text in tokens; joined they are the text."""
    return _WORD.findall(text)


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
