"""The programs of a network, each as its host runs it: started anew whenever it ends, with what outlives it (a key, a
book, a node's count of receipts) kept, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from simulation.plan import BOOKKEEPER, ROUTER
from simulation.tiny import MODEL, Tiny
from simulation.wire import FaultyBus, Wire
from virtual_time import LoopClock

from sawyer.bookkeeper.service import Bookkeeper
from sawyer.errors import SawyerError
from sawyer.identity.keys import Key
from sawyer.ids import HostId, NetworkId, NodeId
from sawyer.ledger.book import Book
from sawyer.ledger.store import Store
from sawyer.model.files import FilesHere
from sawyer.node.agent import Hosting, NodeAgent, NodeIdentity
from sawyer.node.hosting import share
from sawyer.node.memory import Memory
from sawyer.node.receipts import ReceiptLog
from sawyer.router.service import Router, RouterIdentity
from sawyer.schemas.events import NO_HASH

NETWORK: Final = NetworkId("sim-net/00000001")
MEMORY: Final = Memory(2**34, 2**33)
RESTART_S: Final = 0.3
LONGEST_END_S: Final = 60.0
"""An end in order, with its patience for those who wait, takes less."""

Part = Bookkeeper | Router | NodeAgent


def key_of(name: str) -> Key:
    """The key of a participant, in all simulations the same: never use one outside."""
    return Key.from_raw(hashlib.sha256(name.encode()).digest(), "O" if name == "operator" else "U")


class CountedReceipts(ReceiptLog):
    """A receipt log whose counter is kept here and not in a file."""

    def keep_in(self, kept: list[tuple[int, str]]) -> CountedReceipts:
        """Of this node, whenever it is started."""
        self._kept = kept
        return self

    def _read_state(self) -> tuple[int, str]:
        return self._kept[-1] if self._kept else (0, NO_HASH)

    def _write_state(self, counter: int, last: str) -> None:
        self._kept.append((counter, last))


@dataclass
class Program:
    """One of them. `lives` tells whether its host wants it to run; `problems` why it ended by itself."""

    name: str
    wire: Wire
    make: Callable[[FaultyBus], Part]
    bus: FaultyBus | None = None
    part: Part | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    problems: list[Exception] = field(default_factory=list)
    lives: asyncio.Event = field(default_factory=asyncio.Event)
    _gone: asyncio.Event = field(default_factory=asyncio.Event)
    _running: asyncio.Task[None] | None = None
    _dying: list[asyncio.Task[None]] = field(default_factory=list)
    _keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when it serves."""
        self.lives.set()
        self._keeper = asyncio.create_task(self._keep(), name=f"what keeps {self.name}")
        await self.ready.wait()

    async def _keep(self) -> None:
        while True:
            await self.lives.wait()
            self.bus = await self.wire.join(self.name)
            self._running = asyncio.create_task(self._run(self.bus), name=self.name)
            gone = asyncio.create_task(self._gone.wait())
            try:
                await asyncio.wait({self._running, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                gone.cancel()
            self._gone.clear()
            self.ready.clear()
            await asyncio.sleep(RESTART_S)

    async def _run(self, bus: FaultyBus) -> None:
        try:
            self.part = self.make(bus)
            await self.part.run(self.ready.set)
        except SawyerError as error:
            self.wire.tell(f"{self.name} ends: {error.code}")
            self.problems.append(error)
        finally:
            await bus.close()

    async def die(self) -> None:
        """Gone without a word, as when its machine loses power. Its last tasks end by themselves, heard by nobody."""
        self.lives.clear()
        running = self._running
        if running is not None and self.bus is not None and not running.done() and running not in self._dying:
            self.wire.tell(f"{self.name} dies")
            await self.bus.close()
            running.cancel()
            self._dying.append(running)
            self._gone.set()

    async def stop(self) -> None:
        """Ends it in order, and for good. Raises TimeoutError if it does not end."""
        self.lives.clear()
        async with asyncio.timeout(LONGEST_END_S):
            while self._running is not None and not self._running.done():
                if self.part is not None:
                    self.part.stop()
                await asyncio.wait({self._running}, timeout=1.0)
            if self._keeper is not None:
                self._keeper.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._keeper
            await asyncio.gather(*self._dying, return_exceptions=True)


def node(wire: Wire, clock: LoopClock, tiny: Tiny, name: str, part: int, of: int) -> Program:
    """A node with its share of the experts, and replicas of another's."""
    kept: list[tuple[int, str]] = []
    layers = share(tiny.artifacts.layout, part, of)
    hosting = Hosting(FilesHere(tiny.artifacts), layers, "cpu", 1, 0)
    me = NodeIdentity(NodeId(name), HostId(f"host-of-{name}"), key_of(name))

    def make(bus: FaultyBus) -> NodeAgent:
        receipts = CountedReceipts(NETWORK, me.node, me.key, tiny.artifacts.folder / name).keep_in(kept)
        return NodeAgent(bus, me, hosting, receipts, clock, "sim", memory=lambda: MEMORY)

    return Program(name, wire, make)


def router(wire: Wire, clock: LoopClock, tiny: Tiny) -> Program:
    """The one router."""
    me = RouterIdentity(ROUTER, key_of(ROUTER))
    return Program(ROUTER, wire, lambda bus: Router(bus, me, MODEL, tiny.engine(), clock))


def open_book(store: Store) -> Book:
    """As its writer opens it: verified, and loaded into memory."""
    return Book(store, network=NETWORK, operator=key_of("operator").id, ledger_key=key_of("ledger"))


def bookkeeper(wire: Wire, clock: LoopClock, store: Store) -> Program:
    """The one writer, over a store that outlives it."""
    return Program(BOOKKEEPER, wire, lambda bus: Bookkeeper(bus, open_book(store), clock))
