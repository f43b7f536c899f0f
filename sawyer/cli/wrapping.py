"""Breaks text that comes in pieces between words, so that no terminal breaks a word. Owns no output."""

from __future__ import annotations

import re
from typing import Final

from rich.cells import cell_len

_PARTS: Final = re.compile(r"\n|[^\S\n]+|\S+")


class WordWrap:
    """Text in, text out: the same but for blanks that became line breaks. The last word is held back until it is known
    to be whole; `flush` gives it."""

    def __init__(self, width: int, column: int = 0) -> None:
        """`width` in cells; `column`: how many of them are taken already."""
        self._width = max(1, width)
        self._column = column
        self._blank = ""
        self._word = ""

    def push(self, text: str) -> str:
        """What can be shown after this piece."""
        shown = []
        for part in _PARTS.findall(text):
            if part == "\n":
                shown.append(self._place() + "\n")
                self._column, self._blank = 0, ""
            elif part.isspace():
                shown.append(self._place())
                self._blank += part
            else:
                self._word += part
        return "".join(shown)

    def flush(self) -> str:
        """The word that was held back, and the blanks after it."""
        shown = self._place() + self._blank
        self._column += cell_len(self._blank)
        self._blank = ""
        return shown

    def _place(self) -> str:
        """The word that is whole now, on this line or the next."""
        if not self._word:
            return ""
        blank, word = self._blank, self._word
        self._blank = self._word = ""
        needed = cell_len(blank) + cell_len(word)
        if self._column and self._column + needed > self._width and blank:
            self._column = cell_len(word)
            return "\n" + word
        self._column += needed
        return blank + word
