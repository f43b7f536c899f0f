"""Which rows may come next of a client that runs the trunk itself, and what they add up to. Pure."""

from __future__ import annotations

from typing import NamedTuple

from sawyer.engine.trunk import prefill_chunks
from sawyer.errors import MalformedMessage


class Turn(NamedTuple):
    """One layer of one step: `rows` of them."""

    step: int
    layer: int
    rows: int


class Steps:
    """A prompt of so many rows in its chunks, then one row a step: layers with experts ascending, none left out.
    `most_tokens`: what was ordered, the last of which never enters the model."""

    def __init__(self, prompt_rows: int, most_tokens: int, moe_layers: tuple[int, ...]) -> None:
        self._chunks = [len(range(prompt_rows)[chunk]) for chunk in prefill_chunks(prompt_rows)]
        self._most = len(self._chunks) + most_tokens - 1
        self._moe_layers = moe_layers
        self._step = 0
        self._at = 0
        self.fed_rows = 0
        """Rows that passed all layers."""

    @property
    def next(self) -> Turn | None:
        """The only one that may come, None when all that was ordered came."""
        if self._step >= self._most:
            return None
        return Turn(self._step, self._moe_layers[self._at], self._rows)

    @property
    def prompt_is_read(self) -> bool:
        """Whether the first token could be sampled."""
        return self._step >= len(self._chunks)

    @property
    def tokens(self) -> int:
        """How many the client can have sampled: one after the prompt, and one after each step."""
        return self._step - len(self._chunks) + 1 if self.prompt_is_read else 0

    def check(self, turn: Turn) -> None:
        """Raises MalformedMessage unless this is `next`."""
        if turn != self.next:
            raise MalformedMessage(
                "all rows that were ordered have come" if self.next is None else f"expected {self.next}, got {turn}"
            )

    def took(self) -> bool:
        """`next` was answered. Whether that ended a step."""
        self._at += 1
        if self._at < len(self._moe_layers):
            return False
        self.fed_rows += self._rows
        self._at = 0
        self._step += 1
        return True

    @property
    def _rows(self) -> int:
        return self._chunks[self._step] if self._step < len(self._chunks) else 1
