"""What a network has now: who serves which experts of a model, by the nodes' own signed heartbeats, and how busy its
routers are. Asks and listens; changes nothing.

A beat counts if a member's own key signed it for this network within the last FRESH_MS, on the member's own subject.
What was forged, is old, belongs to other weights or comes from a node that drains does not count.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from sawyer.bus.calls import ask, survey
from sawyer.bus.protocol import Bus, Message
from sawyer.errors import BadSignature, NotCanonical, SawyerError, UnreachableError
from sawyer.identity.envelope import check_signed
from sawyer.ids import ModelId, NodeId
from sawyer.node.choosing import NOBODY, Pair, Served
from sawyer.schemas import subjects
from sawyer.schemas.base import parse_as
from sawyer.schemas.events import NodeRegistered
from sawyer.schemas.messages import HEARTBEAT_KIND, Heartbeat, MembersReply, NetworkReply, RouterReply
from sawyer.schemas.models import ModelLayout
from sawyer.schemas.signed import Signed

LISTEN_S: Final = 1.5
"""A node beats once a second, and at once when the roll is called."""
FRESH_MS: Final = 5000
MAX_BEAT_BYTES: Final = 256 * 1024
BEATS_LIMIT: Final = 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Survey:
    """`beats` are the newest of the live members that serve this model's weights, by name; `hosts` those they earn for.
    `routers` are those of the model."""

    beats: Mapping[NodeId, Heartbeat] = field(default_factory=lambda: MappingProxyType({}))
    hosts: Mapping[NodeId, str] = field(default_factory=lambda: MappingProxyType({}))
    routers: tuple[RouterReply, ...] = ()

    def served(self, layout: ModelLayout, manifest: str) -> dict[Pair, Served]:
        """Who serves each expert that the model has; what nobody serves is absent."""
        has = frozenset(layout.moe_layers)
        found: dict[Pair, Served] = {}
        for node, beat in self.beats.items():
            first: set[Pair] = set()
            replica: set[Pair] = set()
            for model in beat.models:
                if model.manifest == manifest:
                    for each in model.layers:
                        first |= {(each.layer, expert) for expert in each.first}
                        replica |= {(each.layer, expert) for expert in each.replica}
            for pair in first | replica:
                if pair[0] in has and pair[1] < layout.experts:
                    before = found.get(pair, NOBODY)
                    hosts = before.hosts | {self.hosts[node]}
                    found[pair] = Served(hosts, before.nodes + 1, before.first + (pair in first))
        return found


async def look(bus: Bus, network: NetworkReply, model: ModelId, manifest: str, *, me: NodeId | None = None) -> Survey:
    """Call the roll, and listen until every node that a router sees has answered, LISTEN_S at most. `me` is left out:
    what this node served before it was started anew. A network without routers or nodes is a valid answer. Raises
    NobodyServes or NoAnswer without a bookkeeper."""
    loop = asyncio.get_running_loop()
    now_ms = (await ask(bus, "network", NetworkReply)).now_ms  # what `network` tells may be older than a beat may be
    started_s = loop.time()
    members = {NodeId(each.node): each for each in (await ask(bus, "members", MembersReply)).nodes}
    if me is not None:
        members.pop(me, None)
    roll = _Roll(network, manifest, members, lambda: now_ms + int((loop.time() - started_s) * 1000))
    beats: asyncio.Queue[Message] = asyncio.Queue(BEATS_LIMIT)

    def hear(message: Message) -> None:
        if len(message.data) <= MAX_BEAT_BYTES and not beats.full():
            beats.put_nowait(message)

    subscription = await bus.subscribe(subjects.all_heartbeats(), hear)
    try:
        await bus.publish(subjects.roll_call(), b"")
        routers = await _routers(bus, model, manifest)
        awaited = _live(routers) & members.keys() if routers else frozenset(members)
        try:
            async with asyncio.timeout(LISTEN_S):
                while not (awaited <= roll.answered and beats.empty()):
                    roll.hear(await beats.get())
        except TimeoutError:
            log.debug("no heartbeat of %s within %g s", sorted(awaited - roll.answered), LISTEN_S)
    finally:
        await subscription.unsubscribe()
    live = {node: beat for node, beat in sorted(roll.newest.items()) if roll.serves(beat)}
    return Survey(live, {node: members[node].host for node in live}, routers)


class _Roll:
    """The newest honest word of each member."""

    def __init__(
        self, network: NetworkReply, manifest: str, members: Mapping[NodeId, NodeRegistered], now_ms: Callable[[], int]
    ) -> None:
        self._network = network
        self._manifest = manifest
        self._members = members
        self._now_ms = now_ms
        self.newest: dict[NodeId, Heartbeat] = {}

    @property
    def answered(self) -> frozenset[NodeId]:
        return frozenset(self.newest)

    def hear(self, message: Message) -> None:
        """Takes a beat in, or says in the log why not."""
        try:
            self._take(message)
        except SawyerError as error:
            log.debug("heartbeat on %s does not count: %s", message.subject, error)

    def serves(self, beat: Heartbeat) -> bool:
        """Whether it serves these weights, and goes on doing so."""
        return not beat.draining and any(model.manifest == self._manifest for model in beat.models)

    def _take(self, message: Message) -> None:
        signed: Signed[Heartbeat] = parse_as(Signed[Heartbeat], message.data)
        beat = signed.body
        node = NodeId(beat.node)
        member = self._members.get(node)
        if message.subject != subjects.heartbeat(node):
            raise NotCanonical(f"a heartbeat of {node} on another node's subject")
        if beat.network != self._network.network:
            raise NotCanonical(f"a heartbeat of {node} for network {beat.network}")
        if member is None or signed.signature.key_id != member.key:
            raise BadSignature(f"a heartbeat of {node} by a key that no member has")
        check_signed(signed, HEARTBEAT_KIND)
        if abs(self._now_ms() - beat.at_ms) > FRESH_MS:
            raise NotCanonical(f"a heartbeat of {node} from another time")
        before = self.newest.get(node)
        if before is None or (before.at_ms, before.beat) < (beat.at_ms, beat.beat):
            self.newest[node] = beat


async def _routers(bus: Bus, model: ModelId, manifest: str) -> tuple[RouterReply, ...]:
    try:
        found = await survey(bus, "router", RouterReply)
    except UnreachableError:
        return ()
    return tuple(each for each in found if (each.model, each.manifest) == (model, manifest))


def _live(routers: tuple[RouterReply, ...]) -> frozenset[NodeId]:
    """The nodes that some router has heard lately."""
    return frozenset(
        NodeId(node.node)
        for router in routers
        for node in router.nodes
        if not (node.gone or node.draining) and node.silent_ms <= FRESH_MS
    )
