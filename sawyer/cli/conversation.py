"""A conversation with a model. Owns what the model is shown of it; asks nothing.

A model with a chat template is shown a Dialogue: turns with roles. Without one there are none: what was said and what
the model continued it with stand one after the other, a blank line between turns, and the model goes on from the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sawyer.client.asked import messages_of
from sawyer.errors import PromptTooLong
from sawyer.schemas.generation import MAX_MESSAGES, ChatMessage

BETWEEN_TURNS: Final = "\n\n"


@dataclass(frozen=True)
class Turn:
    """What was said, and how the model continued it."""

    said: str
    answer: str

    @property
    def text(self) -> str:
        return (self.said + self.answer).rstrip("\n")


@dataclass
class Conversation:
    """All turns; the first `forgotten` of them no longer fit into the model's context and are not shown to it."""

    turns: list[Turn] = field(default_factory=list)
    forgotten: int = 0

    @property
    def first(self) -> int:
        """Of the turns that are shown."""
        return self.forgotten

    @property
    def shown(self) -> list[Turn]:
        return self.turns[self.first :]

    def prompt(self, said: str) -> str | tuple[ChatMessage, ...]:
        """What the model continues: the turns it is shown, then what is said now."""
        return BETWEEN_TURNS.join([*(turn.text for turn in self.shown), said])

    def characters(self, said: str) -> int:
        """How long that is."""
        return len(self.prompt(said))

    def transcript(self) -> str:
        """Every turn, also those that the model is no longer shown."""
        return BETWEEN_TURNS.join(turn.text for turn in self.turns) + "\n" if self.turns else ""

    def add(self, turn: Turn) -> None:
        self.turns.append(turn)

    def take_back(self) -> Turn | None:
        """Remove the last turn; None if there is none."""
        if not self.turns:
            return None
        turn = self.turns.pop()
        self.forgotten = min(self.forgotten, len(self.turns))
        return turn

    def clear(self) -> None:
        """Begin anew."""
        self.turns.clear()
        self.forgotten = 0

    def shorten(self, refused: PromptTooLong, said: str, max_tokens: int) -> int:
        """Forget the oldest turns after the router refused this prompt: as many as its own count of tokens asks for, at
        least one. Returns how many; 0 if what is said now stands alone already and is too long by itself."""
        shown = self.shown
        over = _characters_over(refused, self.characters(said), max_tokens)
        dropped = 0
        while dropped < len(shown) and (dropped == 0 or over > 0):
            over -= len(shown[dropped].text) + len(BETWEEN_TURNS)
            dropped += 1
        self.forgotten = self.first + dropped
        return dropped


@dataclass
class Dialogue(Conversation):
    """User and assistant in turns, after what the `system` message says, if anything: that is never forgotten."""

    system: str = ""

    @property
    def first(self) -> int:
        """No more turns are shown than a conversation may have on the wire."""
        most = (MAX_MESSAGES - 1 - bool(self.system)) // 2
        return max(self.forgotten, len(self.turns) - most)

    def prompt(self, said: str) -> tuple[ChatMessage, ...]:
        """What the model answers: the system message, the turns it is shown, what is said now. Raises UsageError for
        what is no text, or too long."""
        spoken = [each for turn in self.shown for each in (("user", turn.said), ("assistant", turn.answer))]
        system = [("system", self.system)] if self.system else []
        return messages_of([{"role": role, "content": content} for role, content in [*system, *spoken, ("user", said)]])

    def characters(self, said: str) -> int:
        """Of all that is told, without what the template writes around it."""
        return sum(len(each.content) for each in self.prompt(said))

    def transcript(self) -> str:
        """Every turn with its roles, also those that the model is no longer shown."""
        told = [f"System: {self.system}"] if self.system else []
        for turn in self.turns:
            told += [f"User: {turn.said}", f"Assistant: {turn.answer.strip()}"]
        return BETWEEN_TURNS.join(told) + "\n" if told else ""


def _characters_over(refused: PromptTooLong, characters: int, max_tokens: int) -> int:
    """About how many characters of the prompt are too many; where the router told no numbers, half of them."""
    try:
        tokens, context = int(refused.details["prompt_tokens"]), int(refused.details["context"])
    except (KeyError, ValueError):
        return characters // 2
    if tokens < 1:
        return characters // 2
    return -(-(tokens + max_tokens - context) * characters // tokens)
