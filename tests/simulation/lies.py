"""What a node says that is out of order, and can be known to be: bytes that are no answer, answers of the wrong shape,
to another message, or without numbers. (Wrong numbers are found by comparing nodes, not by a router.)"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from sawyer.errors import MalformedMessage
from sawyer.schemas import tensors
from sawyer.schemas.tensors import ActivationReply


class Liar:
    """Says to every question something else that is wrong, or what it said before."""

    def __init__(self, drawn: random.Random) -> None:
        self._drawn = drawn
        self._last: dict[bool, bytes] = {}

    def __call__(self, _: str, data: bytes) -> bytes:
        """The lie in place of an answer: to an activation request, or to `finish`."""
        try:
            answer = tensors.decode_answer(data)
        except MalformedMessage:
            return self._lie(data, None)
        return self._lie(data, answer if isinstance(answer, ActivationReply) else None)

    def _lie(self, data: bytes, answer: ActivationReply | None) -> bytes:
        before, self._last[answer is None] = self._last.get(answer is None), data
        ways = ["garbage", "cut", "stale"] + (["stale", "nan", "nan", "other", "fewer", "sequence"] if answer else [])
        way = self._drawn.choice(ways)
        if way == "stale":
            return before if before is not None else b""
        if way == "garbage":
            return self._drawn.randbytes(len(data))
        if way == "cut" or answer is None:
            return data[: len(data) // 2]
        try:
            return tensors.encode_reply(_wrong(answer, way))
        except MalformedMessage:  # so wrong that it cannot even be written
            return data[: len(data) // 2]


def _wrong(answer: ActivationReply, way: str) -> ActivationReply:
    expert, block = answer.blocks[-1]
    part = answer.parts[0]
    match way:
        case "nan":
            block = block.copy()
            block[0, 0] = np.nan
        case "other":
            expert += 1
        case "fewer":
            block = block[:-1]
        case "sequence":
            return replace(answer, parts=(part._replace(sequence=part.sequence + 1), *answer.parts[1:]))
    return replace(answer, blocks=(*answer.blocks[:-1], (expert, block)))
