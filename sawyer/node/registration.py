"""How a node enters the book: its key is kept in a file, then registered, once in its life."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sawyer import durable
from sawyer.bus.calls import ask, record
from sawyer.bus.protocol import Bus
from sawyer.errors import Busy, RefusedError
from sawyer.identity.keys import Key, load
from sawyer.ids import HostId, NetworkId, NodeId
from sawyer.ledger.commands import command
from sawyer.node.health import memory_mb
from sawyer.schemas.events import NodeRegistered
from sawyer.schemas.messages import MembersReply


@dataclass(frozen=True)
class NodeIdentity:
    """Who this node is, and whom it earns for. `unsaved`: the file in which a new key will be kept; None if it is kept
    already."""

    node: NodeId
    host: HostId
    key: Key
    unsaved: Path | None = None

    @classmethod
    def open(cls, node: NodeId, host: HostId, file: Path) -> NodeIdentity:
        """With the key in the file, or with a new one that is not kept before it is needed: a start that fails leaves
        no file behind."""
        if file.exists():
            return cls(node, host, load(file))
        return cls(node, host, Key.generate("U"), file)


async def register(bus: Bus, network: NetworkId, me: NodeIdentity, device: str) -> NodeRegistered:
    """How the book knows this node from now on; nothing is written if it knows its name with its key already. Raises
    RefusedError for a name that another key holds, Busy if another process made a key under this name meanwhile."""
    for known in (await ask(bus, "members", MembersReply)).nodes:
        if (known.node, known.key) == (me.node, me.key.id):
            return known
    body = NodeRegistered(
        network=network,
        node=me.node,
        host=me.host,
        key=me.key.id,
        device=device.encode("ascii", "replace").decode()[:128],
        memory_mb=memory_mb()[0],
    )
    if me.unsaved is not None:  # before it is registered: a registered key that is lost cannot be replaced
        _keep(me.unsaved, me.key)
    try:
        await record(bus, command(body, me.node, me.key))
    except RefusedError:
        if me.unsaved is not None:
            me.unsaved.unlink(missing_ok=True)
        raise
    return body


def _keep(file: Path, key: Key) -> None:
    try:
        durable.create(file, (key.seed + "\n").encode("ascii"))
    except FileExistsError as error:
        raise Busy(f"another process made {file} just now", hint="Start again: it will be used.") from error
