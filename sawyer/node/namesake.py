"""One name, one process. Two processes that serve under one node's name and key would answer everything twice and sign
two chains of receipts, of which the ledger refuses one: the one that came later ends.

Whoever serves answers discovery under the node's name, so a newcomer asks. Anybody could answer that; only heartbeats
signed with our own key, sent after we started, prove that the key is at work elsewhere. What came first is told by the
bookkeeper's clock (network_time.py): those of two machines may be minutes apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Final

from sawyer.bus.discovery import NODE
from sawyer.bus.protocol import Bus, Message, Subscription
from sawyer.clock import iso
from sawyer.errors import NameTaken, NoAnswer, NobodyServes, SawyerError
from sawyer.identity.envelope import check_signed
from sawyer.ids import KeyId, NodeId
from sawyer.node.sparse import SparseWarnings
from sawyer.schemas import subjects
from sawyer.schemas.base import parse_as
from sawyer.schemas.messages import HEARTBEAT_KIND, Heartbeat
from sawyer.schemas.signed import Signed

PING_TIMEOUT_S: Final = 1.0
"""A process that does not answer discovery for so long is dead, or as good as."""
PROOF_TIMEOUT_S: Final = 3.0
"""For a heartbeat of whoever answered discovery; nodes beat every second, and when the roll is called."""
BEATS_LIMIT: Final = 16
MAX_HEARTBEAT_BYTES: Final = 256 * 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Instance:
    """This process: its node's name and key, what it drew when it started, and when that was, in the bookkeeper's time:
    no heartbeat that was sent before is later than `started_ms`."""

    network: str
    node: NodeId
    key: KeyId
    id: str
    started_ms: int


class Namesakes:
    """Listens for heartbeats of our own name and key that are not ours."""

    def __init__(self, bus: Bus, me: Instance) -> None:
        self._bus = bus
        self._me = me
        self._beats: asyncio.Queue[Message] = asyncio.Queue(BEATS_LIMIT)
        self._subscription: Subscription | None = None
        self._unproven = SparseWarnings(log)

    async def start(self) -> None:
        self._subscription = await self._bus.subscribe(subjects.heartbeat(self._me.node), self._enqueue)

    async def stop(self) -> None:
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    async def refuse_second(self) -> None:
        """Before serving. Raises NameTaken if another process serves under our name, proven by its heartbeat. A process
        that was killed answers nothing: then this returns at once, or after PING_TIMEOUT_S if its host is cut off."""
        try:
            await self._bus.request(subjects.discovery("PING", NODE, self._me.node), b"", PING_TIMEOUT_S)
        except (NobodyServes, NoAnswer):
            return
        await self._bus.publish(subjects.roll_call(), b"")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PROOF_TIMEOUT_S):
                raise taken(await self._other())
        log.warning("somebody answers discovery as %s, but no heartbeat proves that it holds our key", self._me.node)

    async def refuse_later(self) -> None:
        """While serving: waits until another process shows that started before us. Raises NameTaken, then."""
        told = ""
        while True:
            other = await self._other()
            if (other.started_ms, other.instance) < (self._me.started_ms, self._me.id):
                raise taken(other)
            if other.instance != told:
                told = other.instance
                log.warning("a second process serves under the name %s; it started later and will end", self._me.node)

    async def _other(self) -> Heartbeat:
        """The next heartbeat that another process sent with our key since we started."""
        while True:
            message = await self._beats.get()
            try:
                beat = await asyncio.to_thread(self._proven, message.data)
            except SawyerError as error:
                self._unproven.warning("a heartbeat in our name is not by our key: %s", error)
                continue
            if beat is not None:
                return beat

    def _proven(self, raw: bytes) -> Heartbeat | None:
        signed: Signed[Heartbeat] = parse_as(Signed[Heartbeat], raw)
        beat, me = signed.body, self._me
        check_signed(signed, HEARTBEAT_KIND)
        ours = (beat.network, beat.node, signed.signature.key_id) == (me.network, me.node, me.key)
        fresh = beat.at_ms >= me.started_ms  # an older one was sent by a process that may have ended, or is replayed
        return beat if ours and fresh and beat.instance != me.id else None

    def _enqueue(self, message: Message) -> None:
        if len(message.data) > MAX_HEARTBEAT_BYTES or self._me.id.encode() in message.data:
            return
        if self._me.key.encode() not in message.data:  # costs nothing, and keeps others' out of the queue
            self._unproven.warning("a heartbeat in our name does not name our key")
            return
        with contextlib.suppress(asyncio.QueueFull):  # the next one comes in a second
            self._beats.put_nowait(message)


def taken(other: Heartbeat) -> NameTaken:
    """The error that names the other process."""
    return NameTaken(
        f"{other.node} is served by another process already (instance {other.instance[:8]}, "
        f"since {iso(other.started_ms)})",
        details={"instance": other.instance},
    )
