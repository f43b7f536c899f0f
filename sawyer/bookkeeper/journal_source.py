"""The copy in JetStream as a source of a replay: sawyer.ledger.source.Source over the asynchronous journal.

A replay is a plain loop, so this runs an event loop of its own, a page at a time, on the caller's thread. Between two
pages nobody reads the connection: pages are small against the time after which a server gives a client up, and a page
that was asked for in vain is asked for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from sawyer.bookkeeper.copying import row_of
from sawyer.bus.connection import SCHEMES, NatsBus
from sawyer.bus.journal import Journal, Record
from sawyer.contexts import NatsTarget
from sawyer.errors import NoCopy, UnreachableError, UsageError
from sawyer.ids import NetworkId
from sawyer.ledger.entry import StoredRow

READ_ATTEMPTS: Final = 5
READ_PAUSE_S: Final = 0.5


class JetStreamSource:
    """The copy of a network's book, up to its newest checkpoint as it is when `rows` begins: a copy may lag within a
    batch, and entries without their checkpoint prove nothing yet. Not for a thread in which an event loop runs."""

    def __init__(self, target: NatsTarget, network: NetworkId | None = None) -> None:
        """Without a network: the only one that the server has a copy of."""
        self._target = target
        self._network = network

    def size_rows(self) -> int:
        """Raises NoCopy, UsageError if it is not clear which copy is meant, UnreachableError."""
        with self._open() as (runner, journal):
            return runner.run(journal.last_checkpoint())

    def rows(self) -> Generator[StoredRow, None, None]:
        """Raises CopyDiffers for a gap or a message that is no row, NoCopy, UnreachableError."""
        with self._open() as (runner, journal):
            upto, after = runner.run(journal.last_checkpoint()), 0
            while after < upto:
                page = runner.run(_page(journal, after))[: upto - after]
                for record in page:
                    yield row_of(record)
                after += len(page)

    @contextmanager
    def _open(self) -> Generator[tuple[asyncio.Runner, Journal], None, None]:
        with asyncio.Runner() as runner:
            bus = runner.run(NatsBus.connect(self._target, name="sawyer-replay"))
            try:
                yield runner, Journal(bus, self._network or runner.run(_only_network(bus)))
            finally:
                runner.run(bus.close())


async def _only_network(bus: NatsBus) -> NetworkId:
    found = await Journal.networks(bus)
    if not found:
        raise NoCopy("this NATS server has no copy of a book")
    if len(found) > 1:
        raise UsageError(
            f"this NATS server has copies of {len(found)} books: {', '.join(found)}",
            hint="Give --key with the verifier key of the one you mean, or the home that is pinned to it.",
        )
    return found[0]


async def _page(journal: Journal, after: int) -> list[Record]:
    """The next rows; never none. Raises as Journal.page does."""
    for attempt in range(1, READ_ATTEMPTS + 1):
        try:
            page = await journal.page(after)
        except NoCopy:
            raise
        except UnreachableError:
            if attempt == READ_ATTEMPTS:
                raise
            await asyncio.sleep(READ_PAUSE_S)
            continue
        if page:
            return page
        break
    raise NoCopy(f"{journal.stream} became shorter while it was read: row {after + 1} is gone")


def is_nats(text: str) -> bool:
    """Whether this names a NATS server, and not a file or a database."""
    return text.partition("://")[0] in SCHEMES and "://" in text
