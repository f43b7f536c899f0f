"""A log that grows and forks when told to, and a bus on which somebody answers: for both sides of witnessing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sawyer.bus.calls import refuse_query
from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.protocol import Message
from sawyer.bus.service import Service
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.ledger.checkpoint import Checkpoint
from sawyer.ledger.merkle import Tree, leaf_hash
from sawyer.schemas import subjects
from sawyer.schemas.base import Strict
from sawyer.schemas.events import KIND_OF, KeyAdded, NodeRegistered, Successor
from sawyer.schemas.messages import MembersReply

NETWORK = "sawyer-net/3f9a1c22"


@dataclass
class Grown:
    """A log that grows when told to, and forks when told to."""

    key: Key
    nodes: dict[str, Key]
    leaves: list[bytes] = field(default_factory=list)
    tree: Tree = field(default_factory=Tree)

    def grow(self, count: int, branch: bytes = b"") -> None:
        for _ in range(count):
            self.leaves.append(leaf_hash(branch + bytes([self.tree.size])))
            self.tree.append(self.leaves[-1])

    def fork(self, size: int) -> None:
        """Forget what came after this size."""
        kept, self.leaves, self.tree = self.leaves[:size], [], Tree()
        for leaf in kept:
            self.leaves.append(leaf)
            self.tree.append(leaf)

    def checkpoint(self) -> str:
        return Checkpoint(NETWORK, self.tree.size, self.tree.root()).sign(self.key) if self.tree.size else ""

    def consistency(self, old_size: int, new_size: int) -> list[bytes]:
        return self.tree.consistency(old_size, new_size, lambda first, count: self.leaves[first : first + count])

    def members(self) -> MembersReply:
        registered = tuple(
            NodeRegistered(network=NETWORK, node=node, host="bob", key=key.id, device="CPU", memory_mb=1, promised_us=0)
            for node, key in self.nodes.items()
        )
        return MembersReply(nodes=registered, routers=(), seq=self.tree.size)


def successor(key: Key, by: Key, covered: int) -> Successor:
    """The statement of an operator that gives the ledger another key."""
    body = KeyAdded(network=NETWORK, role="ledger", name="ledger", key=key.id)
    return Successor(added=sign(body, KIND_OF[KeyAdded], "operator", by), covered=covered)


class serving:  # noqa: N801
    """Answer these queries on a bus in memory."""

    def __init__(self, network: MemoryNetwork, answers: dict[str, Callable[[bytes], Strict]]) -> None:
        self._bus = MemoryBus(network)
        self._answers = answers

    async def __aenter__(self) -> None:
        self._services = [
            Service(self._bus, subjects.query(what), _answering(answer), refuse_query, limit=10)
            for what, answer in self._answers.items()
        ]
        for service in self._services:
            await service.start()

    async def __aexit__(self, *_: object) -> None:
        for service in self._services:
            await service.stop()


def _answering(answer: Callable[[bytes], Strict]):
    async def serve(message: Message) -> bytes:
        return answer(message.data).canonical()

    return serve
