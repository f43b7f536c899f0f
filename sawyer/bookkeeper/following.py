"""The copy in JetStream -> a follower of the book. Owns reading and waiting; what is verified is the follower's. Either
side may stop and come back: the follower goes on at its next row, and what it cannot reach it tries again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from sawyer.bookkeeper.copying import row_of
from sawyer.bus.connection import NatsBus
from sawyer.bus.journal import Journal
from sawyer.contexts import NatsTarget
from sawyer.errors import CopyDiffers, ServerUnreachable, UnreachableError
from sawyer.ids import NetworkId
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.follow import Follower

LOOK_EVERY_S: Final = 5.0
"""Where no row passes by, it still looks whether there is one."""
RETRY_PAUSE_S: Final = 1.0
SHORT_FOR_S: Final = 60.0
"""How long a copy may be shorter than what was read of it: whoever copies tries again every 30 s at the latest."""

Tell = Callable[[str], None]
"""Is told why nothing comes, and "" when it does again."""


class Following:
    """One follower on its way. `told` is called, on the event loop, after each page and whenever nothing comes."""

    def __init__(self, follower: Follower, target: NatsTarget, told: Tell) -> None:
        self._follower = follower
        self._target = target
        self._told = told
        self._short: tuple[int, float] | None = None
        """The rows of a copy that is too short, and since when it has been no longer than that."""

    async def once(self) -> None:
        """Returns when the follower is at the end of the copy. Raises UnreachableError, BookCorrupt, ViewDiffers,
        CopyDiffers, SawyerError."""
        bus = await self._connect()
        try:
            problem = self._cut(await self._read(self._journal(bus)))
        finally:
            await bus.close()
        if problem is not None:
            raise problem

    async def run(self) -> None:
        """Until it is cancelled. Raises UnreachableError if there is nothing to follow when it begins; later it waits
        for it. Raises BookCorrupt, ViewDiffers, CopyDiffers (also for a copy that stays shorter than it was),
        SawyerError: then what it reads is wrong."""
        await self._check_there()
        while True:
            try:
                await self._follow()
            except UnreachableError as error:
                self._told(error.message)
            await asyncio.sleep(RETRY_PAUSE_S)

    async def _check_there(self) -> None:
        """Raises UnreachableError unless there is a copy."""
        bus = await self._connect()
        try:
            await self._journal(bus).size()
        finally:
            await bus.close()

    async def _follow(self) -> None:
        bus = await self._connect()
        try:
            journal = self._journal(bus)
            while not bus.closed.is_set():
                self._told(self._shortness(await self._read(journal)))
                await journal.changed(self._follower.rows, LOOK_EVERY_S)
        finally:
            await bus.close()
        raise ServerUnreachable("the NATS server closed the connection")

    async def _read(self, journal: Journal) -> int:
        """Take what there is. How many rows there are: fewer than were taken if it was cut."""
        taken, size = self._follower.rows, await journal.size()
        if not self._follower.rows:
            await self._begin(journal, size)
        while page := await journal.page(self._follower.rows):
            await self._take([row_of(record) for record in page])
            self._told("")
        return size if size < taken else max(size, self._follower.rows)

    def _shortness(self, size: int) -> str:
        """What is told of a copy of which everything was taken: "" unless it ends before the views do, or before what
        was taken earlier. Raises CopyDiffers if it has been so for long and has not grown."""
        problem = self._cut(size)
        if problem is None:
            self._short = None
            return ""
        now_s = asyncio.get_running_loop().time()
        if self._short is None or size > self._short[0]:
            self._short = (size, now_s)
        if now_s - self._short[1] >= SHORT_FOR_S:
            raise problem
        return problem.message

    def _cut(self, size: int) -> CopyDiffers | None:
        follower = self._follower
        if size < follower.rows:
            what = f"the copy has {size} rows, and {follower.rows} were read of it"
        elif follower.entries < follower.viewed:
            what = f"the copy ends at entry {follower.entries}, these views are at {follower.viewed}"
        else:
            return None
        return CopyDiffers(
            f"{what}: it was cut, or lags",
            hint="Try again in a moment. If it stays so, compare it with the book: sawyer ledger copy",
        )

    async def _begin(self, journal: Journal, size: int) -> None:
        number = await asyncio.to_thread(self._follower.commitment)
        if number and size >= number:
            page = await journal.page(number - 1)
            await asyncio.to_thread(self._follower.begin, row_of(page[0]) if page else None)

    async def _take(self, rows: list[StoredRow]) -> None:
        await asyncio.to_thread(self._follower.take, rows)

    def _journal(self, bus: NatsBus) -> Journal:
        return Journal(bus, NetworkId(self._follower.network))

    async def _connect(self) -> NatsBus:
        return await NatsBus.connect(self._target, name="sawyer-follow")
