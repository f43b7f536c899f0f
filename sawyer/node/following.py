"""What a node that chose its experts itself does when the demand moves: it takes on an expert that is asked more than
its nodes can share, and gives up for it, where there is no more room, one that few ask and many serve. The choice is
pure."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from sawyer.errors import SawyerError
from sawyer.node.choosing import NOBODY, Pair, Served

FOLLOW_EVERY_S: Final = 60.0
"""So often, and up to half as long again: nodes must not all move at once."""
HOT: Final = 2.0
"""An expert is hot whose nodes have so many times the rows of a node and expert on average."""
COLD: Final = 0.5
LEAST_ROWS: Final = 1000
"""In the time between two looks, in all: fewer say nothing."""
LEAST_NODES: Final = 3
"""Nodes of an expert before one of them gives it up: any of the others may still vanish."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Move:
    """An expert to take on, and one to give up for it, if there is no room otherwise."""

    adopt: Pair
    give_up: Pair | None = None


def move(demand: Mapping[Pair, int], served: Mapping[Pair, Served], mine: Collection[Pair], room: int) -> Move | None:
    """The one change that helps most. `demand`: rows of each expert since the last look; `served`: who serves what,
    this node too; `room`: how many more experts fit here. None if all is well, or nothing can be done from here."""
    total, shares = sum(demand.values()), sum(there.nodes for there in served.values())
    if total < LEAST_ROWS or not shares:
        return None
    mean = total / shares

    def load(pair: Pair) -> float:
        return demand.get(pair, 0) / max(1, served.get(pair, NOBODY).nodes)

    adopt = max((pair for pair in demand if pair not in mine), key=lambda pair: (load(pair), pair), default=None)
    if adopt is None or load(adopt) < HOT * mean:
        return None
    if room > 0:
        return Move(adopt)
    spare = [pair for pair in mine if served.get(pair, NOBODY).nodes >= LEAST_NODES and load(pair) <= COLD * mean]
    give_up = min(spare, key=lambda pair: (load(pair), pair), default=None)
    return None if give_up is None else Move(adopt, give_up)


class Follows(Protocol):
    """The node, as this asks it."""

    async def demand(self) -> Mapping[Pair, int]:
        """Rows of each expert that routers had answered since they started."""

    async def served(self) -> Mapping[Pair, Served]:
        """Who serves each expert now, this node too."""

    def mine(self) -> tuple[frozenset[Pair], int]:
        """What this node serves, and how many more experts fit."""


class Follower:
    """Looks again and again, and has the node move. `adopt` returns when the expert is warm and told of; `give_up` when
    nobody is asked for it any more."""

    def __init__(
        self, node: Follows, adopt: Callable[[Pair], Awaitable[None]], give_up: Callable[[Pair], Awaitable[None]]
    ) -> None:
        self._node = node
        self._adopt = adopt
        self._give_up = give_up
        self._before: Mapping[Pair, int] | None = None
        self._random = random.Random()  # noqa: S311  (only so that nodes do not move together)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(FOLLOW_EVERY_S * self._random.uniform(1.0, 1.5))
            try:
                await self.look()
            except (SawyerError, OSError) as error:
                log.info("the demand is not followed this time: %s", error)

    async def look(self) -> Move | None:
        """Once: what was done. The first look only remembers. Raises SawyerError, OSError."""
        now = await self._node.demand()
        before, self._before = self._before, now
        if before is None:
            return None
        lately = {pair: rows - before.get(pair, 0) for pair, rows in now.items()}
        if min(lately.values(), default=0) < 0:  # a router was started anew
            return None
        mine, room = self._node.mine()
        chosen = move(lately, await self._node.served(), mine, room)
        if chosen is None:
            return None
        if chosen.give_up is not None:
            await self._give_up(chosen.give_up)
        await self._adopt(chosen.adopt)
        log.warning("%s", _told(chosen))
        return chosen


def _told(made: Move) -> str:
    given = "" if made.give_up is None else f", and expert {made.give_up[1]} of layer {made.give_up[0]} no more"
    return f"expert {made.adopt[1]} of layer {made.adopt[0]} is asked a lot: it is served here, too{given}"
