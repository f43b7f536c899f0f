"""What the router knows of its network: prices, models and members from the bookkeeper, heartbeats from nodes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from sawyer.bus.calls import ask, read
from sawyer.bus.protocol import Bus, Message, Subscription
from sawyer.errors import BadSignature, MalformedMessage, NotCanonical, SawyerError
from sawyer.identity.envelope import check_signed
from sawyer.ids import ModelId, NodeId
from sawyer.router.placement import Placement
from sawyer.schemas import subjects
from sawyer.schemas.base import parse_as
from sawyer.schemas.certificates import Gone
from sawyer.schemas.messages import HEARTBEAT_KIND, Heartbeat, MembersReply, NetworkReply
from sawyer.schemas.signed import Signed

HEARTBEAT_LIMIT: Final = 1024
MAX_HEARTBEAT_BYTES: Final = 256 * 1024
MEMBERS_EVERY_S: Final = 1.0
"""Heartbeats of strangers make the router ask for members, at most this often."""

log = logging.getLogger(__name__)


class Directory:
    """Keeps a Placement up to date for one model. `changed` is set whenever a heartbeat was taken in."""

    def __init__(self, bus: Bus, model: ModelId, manifest: str) -> None:
        self._bus = bus
        self._model = model
        self._manifest = manifest
        self._beats: asyncio.Queue[Message] = asyncio.Queue(HEARTBEAT_LIMIT)
        self._subscriptions: list[Subscription] = []
        self._workers: list[asyncio.Task[None]] = []
        self._strangers = asyncio.Event()
        self.placement = Placement(manifest)
        self.network: NetworkReply | None = None
        self.changed = asyncio.Event()

    async def start(self) -> None:
        """Raises UnknownModel or WrongManifest unless the network publishes exactly the weights of this router."""
        await self.refresh()
        await self._ask_members()
        self._workers = [asyncio.create_task(self._work()), asyncio.create_task(self._meet_strangers())]
        self._subscriptions = [
            await self._bus.subscribe(subjects.all_heartbeats(), self._enqueue),
            await self._bus.subscribe(subjects.network("gone"), self._note_gone),
        ]
        await self._bus.publish(subjects.roll_call(), b"")

    async def stop(self) -> None:
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def refresh(self) -> NetworkReply:
        """Ask for the network's prices and models now. Raises UnknownModel or WrongManifest unless it publishes exactly
        the weights of this router."""
        network = await ask(self._bus, "network", NetworkReply)
        network.check_published(self._model, self._manifest)
        self.network = network
        return network

    def _enqueue(self, message: Message) -> None:
        if len(message.data) <= MAX_HEARTBEAT_BYTES:
            with contextlib.suppress(asyncio.QueueFull):  # the next beat comes in a second
                self._beats.put_nowait(message)

    def _note_gone(self, message: Message) -> None:
        """Who may say this is for the server to judge: only the authority may. Without one nobody is asked who they
        are, and a false word costs a node one heartbeat's time."""
        try:
            gone = read(Gone, message.data)
        except MalformedMessage as error:
            log.warning("what the authority says is dropped: %s", error)
        else:
            self.placement.left(gone.key, revoked=gone.revoked)
            self.changed.set()

    async def _work(self) -> None:
        while True:
            message = await self._beats.get()
            try:
                await self._take(message)
            except SawyerError as error:
                log.warning("heartbeat on %s dropped: %s", message.subject, error)

    async def _take(self, message: Message) -> None:
        signed: Signed[Heartbeat] = parse_as(Signed[Heartbeat], message.data)
        beat = signed.body
        node = NodeId(beat.node)
        if message.subject != subjects.heartbeat(node):
            raise NotCanonical(f"a heartbeat of {node} on another node's subject")
        if self.network is None or beat.network != self.network.network:
            raise NotCanonical(f"a heartbeat of {node} for network {beat.network}")
        state = self.placement.nodes.get(node)
        if state is None:
            self._strangers.set()
            return
        if signed.signature.key_id != state.key:
            self._strangers.set()  # it may have taken another key
            raise BadSignature(f"a heartbeat of {node} by a key that is not its own")
        check_signed(signed, HEARTBEAT_KIND)
        self.placement.beat(beat, asyncio.get_running_loop().time())
        self.changed.set()

    async def _meet_strangers(self) -> None:
        """Somebody beats whom we do not know: ask who is a member, and let the new ones beat again. Beside the beats of
        the known, so that strangers cannot hold those up."""
        while True:
            await self._strangers.wait()
            self._strangers.clear()
            known = len(self.placement.nodes)
            try:
                await self._ask_members()
                if len(self.placement.nodes) > known:
                    await self._bus.publish(subjects.roll_call(), b"")
            except SawyerError as error:
                log.warning("cannot learn who is a member: %s", error)
            await asyncio.sleep(MEMBERS_EVERY_S)

    async def _ask_members(self) -> None:
        for registered in (await ask(self._bus, "members", MembersReply)).nodes:
            self.placement.member(registered)
