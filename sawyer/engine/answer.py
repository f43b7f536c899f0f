"""What sampled tokens become: the text that is certain, the end of the answer, and whether a token is billed.

Used by the router and by the single-machine reference, so that both end at the same place with the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sawyer.schemas.generation import GenerateParams
from sawyer.schemas.messages import Logprob

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Sampled:
    """One sampled token. `text`: what became certain with it, often "" inside a character or what may be a stop string.
    `finish` on the last. Not `billed` is an end-of-sequence token alone: tokens that spell a stop string were computed
    and sent like any other, and only their text is cut."""

    token: int
    text: str
    finish: FinishReason | None
    billed: bool
    logprob: Logprob | None = None


class TextOfIds(Protocol):
    """A decoder for ids that come one by one: what `push` and the final `flush` return is, joined, their text."""

    def push(self, token: int) -> str:
        """The text that is certain after this id."""

    def flush(self) -> str:
        """What was held back."""


class Decoding(Protocol):
    """What an answer asks of a model's tokenizer."""

    def stream(self) -> TextOfIds:
        """A decoder for one answer."""


class Answer:
    """One request's answer, token by token. `eos` are the model's end-of-sequence ids."""

    def __init__(self, params: GenerateParams, tokenizer: Decoding, eos: Sequence[int]) -> None:
        self._eos = eos
        self._left = params.max_tokens
        self._text = tokenizer.stream()
        self._hold = StopHold(params.stop)

    @property
    def left(self) -> int:
        """So many tokens may still be billed."""
        return self._left

    def take(
        self, token: int, logprob: Logprob | None = None, ending: Literal["length", "cancelled"] | None = None
    ) -> Sampled:
        """The next token. `ending`: somebody ended the answer with this token, be it finished or not. No token may be
        taken after one that carries a finish."""
        if token in self._eos:
            return Sampled(token, self._rest(), "stop", billed=False)
        self._left -= 1
        if ending is None and self._left == 0:
            ending = "length"
        text = self._hold.push(self._text.push(token))
        if ending is not None:
            text += self._rest()
        return Sampled(token, text, "stop" if self._hold.found else ending, billed=True, logprob=logprob)

    def _rest(self) -> str:
        return self._hold.push(self._text.flush()) + self._hold.flush()


class StopHold:
    """Text up to the first stop string: the one that begins first, the text read as a whole, however it came in pieces.
    What may still become one is held back, less than the longest stop string, and released when it does not. A
    character is looked at once, however much is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._searches = [_Search(stop) for stop in stops]
        self._firsts = frozenset(stop[0] for stop in stops)
        self._held = ""
        self._begins: int | None = None
        self.found = False

    def push(self, piece: str) -> str:
        """The text that is certain after this piece. Nothing after a stop string was found."""
        if self.found or not self._searches:
            return "" if self.found else piece
        if not self._held and self._firsts.isdisjoint(piece):
            return piece
        text = self._held + piece
        may_begin = len(text)
        for search in self._searches:
            ended = search.read(piece)
            if ended is not None:
                begins = len(self._held) + ended - len(search.stop)
                self._begins = begins if self._begins is None else min(begins, self._begins)
            may_begin = min(may_begin, len(text) - search.matched)
        self.found = self._begins is not None and self._begins <= may_begin
        certain = may_begin if self._begins is None else min(self._begins, may_begin)
        self._held = "" if self.found else text[certain:]
        self._begins = None if self._begins is None else self._begins - certain
        return text[:certain]

    def flush(self) -> str:
        """What was held back: the text ends here, and cannot become a stop string any more."""
        text, self._held = self._held, ""
        self.found = self.found or self._begins is not None
        return text[: self._begins]


class _Search:
    """One stop string sought in text that comes in pieces, without looking back (Knuth, Morris and Pratt). `matched`:
    so many of its first characters, not all, are the last of the text."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._shorter = [0]  # after so many characters matched (less one): the next shorter match that ends there too
        matched = 0
        for char in stop[1:]:
            while matched and stop[matched] != char:
                matched = self._shorter[matched - 1]
            matched += stop[matched] == char
            self._shorter.append(matched)

    def read(self, piece: str) -> int | None:
        """Where in this piece the first whole stop string ends, if one does."""
        stop, shorter, matched, ended = self.stop, self._shorter, self.matched, None
        if not matched and stop[0] not in piece:
            return None
        for at, char in enumerate(piece, 1):
            while matched and stop[matched] != char:
                matched = shorter[matched - 1]
            matched += stop[matched] == char
            if matched == len(stop):
                ended = at if ended is None else ended
                matched = shorter[matched - 1]
        self.matched = matched
        return ended
