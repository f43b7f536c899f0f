"""How a node enters the book: its key is kept in a file, then registered, once in its life.

Replies of the bookkeeper are not signed, so a refusal may be another's word while the book has the key: a new key that
was refused is set aside, never deleted, and the next start under this name tries it again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sawyer import durable
from sawyer.bus.calls import ask, record
from sawyer.bus.protocol import Bus
from sawyer.errors import Busy, RefusedError, SawyerError, UsageError
from sawyer.identity.keys import Key, load
from sawyer.ids import HostId, NetworkId, NodeId
from sawyer.ledger.commands import command
from sawyer.node.memory import memory_mb
from sawyer.schemas.events import NodeRegistered
from sawyer.schemas.messages import MembersReply

REFUSED: Final = ".refused"
"""Ends the name of the file that keeps a key which was refused."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeIdentity:
    """Who this node is, and whom it earns for. `unsaved`: the file in which a new key will be kept; None if it is kept
    already. `host_chosen`: somebody said who is paid, so that being registered for another is an error. `promised_us`:
    the p95 of a layer call that the host promises (0: none), likewise; None if nobody said anything about it."""

    node: NodeId
    host: HostId
    key: Key
    unsaved: Path | None = None
    host_chosen: bool = False
    promised_us: int | None = None

    @classmethod
    def open(
        cls, node: NodeId, host: HostId, file: Path, *, host_chosen: bool = False, promised_us: int | None = None
    ) -> NodeIdentity:
        """With the key in the file, or with a new one (or one that was refused before) that is not kept before it is
        needed: a start that fails leaves no file behind."""
        if file.exists():
            return cls(node, host, load(file), None, host_chosen, promised_us)
        key = load(refused) if (refused := refused_file(file)).exists() else Key.generate("U")
        return cls(node, host, key, file, host_chosen, promised_us)


def refused_file(file: Path) -> Path:
    """Where the key is set aside that would stand in this file, had it not been refused."""
    return file.with_name(file.name + REFUSED)


async def register(bus: Bus, network: NetworkId, me: NodeIdentity, device: str) -> NodeRegistered:
    """How the book knows this node from now on; nothing is written if it knows its name with its key already. Raises
    RefusedError for a name that another key holds, Busy if another process made a key under this name meanwhile,
    UsageError if it is registered for another host, or with another promise, than was chosen."""
    known = await _known(bus, me)
    if me.unsaved is not None:  # before it is registered: a registered key that is lost cannot be replaced
        _keep(me.unsaved, me.key)
    if known is None:
        known = await _enter(bus, network, me, device)
    if me.host_chosen and known.host != me.host:
        raise UsageError(
            f"{me.node} is registered for {known.host}, not for {me.host}, and that cannot be changed",
            hint="Leave the host out, or serve under another --name.",
        )
    if me.promised_us is not None and known.promised_us != me.promised_us:
        raise UsageError(
            f"{me.node} is registered with {_promise(known.promised_us)}, and that cannot be changed",
            hint="Leave --promise out, or register under another --name.",
        )
    return known


def _promise(promised_us: int) -> str:
    return f"the promise of {promised_us / 1000:g} ms" if promised_us else "no promise"


async def _known(bus: Bus, me: NodeIdentity) -> NodeRegistered | None:
    members = (await ask(bus, "members", MembersReply)).nodes
    return next((each for each in members if (each.node, each.key) == (me.node, me.key.id)), None)


async def _enter(bus: Bus, network: NetworkId, me: NodeIdentity, device: str) -> NodeRegistered:
    body = NodeRegistered(
        network=network,
        node=me.node,
        host=me.host,
        key=me.key.id,
        device=device.encode("ascii", "replace").decode()[:128],
        memory_mb=memory_mb()[0],
        promised_us=me.promised_us or 0,
    )
    try:
        await record(bus, command(body, me.node, me.key))
    except RefusedError as error:
        known = await _known_after_all(bus, me)
        if known is not None:
            return known
        if me.unsaved is not None:
            kept = me.unsaved.rename(refused_file(me.unsaved))
            durable.sync_folder(kept.parent)
            error.hint = f"{error.hint} The new key is set aside as {kept}, and tried again next time.".strip()
        raise
    return body


async def _known_after_all(bus: Bus, me: NodeIdentity) -> NodeRegistered | None:
    """Whoever refused us need not be the one who keeps the book."""
    try:
        return await _known(bus, me)
    except SawyerError as error:
        log.warning("cannot ask again whether %s is registered: %s", me.node, error)
        return None


def _keep(file: Path, key: Key) -> None:
    try:
        durable.create(file, (key.seed + "\n").encode("ascii"))
    except FileExistsError as error:
        raise Busy(f"another process made {file} just now", hint="Start again: it will be used.") from error
    refused_file(file).unlink(missing_ok=True)
