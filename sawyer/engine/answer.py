"""What sampled tokens become: the text that is certain, the end of the answer, and whether a token is billed.

Used by the router and by the single-machine reference, so that both end at the same place with the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sawyer.schemas.messages import GenerateParams, Logprob

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
    What may still become one is held back, less than the longest stop string, and released when it does not."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """The text that is certain after this piece. Nothing after a stop string was found."""
        if not self._stops or self.found or not piece:
            return "" if self.found else piece
        text = self._held + piece
        begins, may_begin = self._begin(text), self._may_begin(text)
        self.found = begins < len(text) and begins <= may_begin
        certain = min(begins, may_begin)
        self._held = "" if self.found else text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was held back: the text ends here, and cannot become a stop string any more."""
        text, self._held = self._held, ""
        begins = self._begin(text)
        self.found = self.found or begins < len(text)
        return text[:begins]

    def _begin(self, text: str) -> int:
        """Where the first whole stop string begins; the text's length if there is none."""
        return min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=len(text))

    def _may_begin(self, text: str) -> int:
        """Where the text's end may be the beginning of a stop string, at the earliest; its length if nowhere."""
        return min(
            (
                at
                for stop in self._stops
                for at in range(max(0, len(text) - len(stop) + 1), len(text))
                if stop.startswith(text[at:])
            ),
            default=len(text),
        )
