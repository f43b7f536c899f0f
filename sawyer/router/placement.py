"""Which replica answers for an expert: what nodes say they host, and what the router measured of them. No IO; the
caller passes loop time in seconds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from sawyer.ids import HostId, NodeId
from sawyer.schemas.events import NodeRegistered
from sawyer.schemas.messages import Heartbeat, SeenNode, Vitals

FRESH_S: Final = 3.5
"""A node whose last heartbeat is older is not chosen while another is left."""
REPLICA_FACTOR: Final = 2.0
"""A replica is preferred over the first choice only when it is this much faster."""
UNMEASURED_US: Final = 2000.0
"""What a node is expected to take before it was measured; an estimate that is not renewed ages towards it, so that a
node which was slow once is tried again."""
HALF_LIFE_S: Final = 5.0
EWMA_WEIGHT: Final = 0.2
OUTLIER_FACTOR: Final = 4.0
"""One answer moves the estimate as if it had taken at most this many times the estimate."""
WINDOW: Final = 64
FIRST_BACKOFF_S: Final = 1.0
MAX_BACKOFF_S: Final = 30.0
HEDGE_FLOOR_S: Final = 0.03
HEDGE_UNMEASURED_S: Final = 0.5
HEDGE_FACTOR: Final = 3.0
"""Of the usual slow answer (p95): from then on another replica is asked, too."""
DEADLINE_FLOOR_S: Final = 0.25
DEADLINE_UNMEASURED_S: Final = 2.0
DEADLINE_MOST_S: Final = 5.0
DEADLINE_FACTOR: Final = 6.0
ROWS_A_DEADLINE: Final = 64


@dataclass
class NodeState:
    """One node as this router sees it. Latencies are round trips of whole messages, in microseconds."""

    node: NodeId
    host: HostId
    key: str
    manifest: str = ""
    first: frozenset[tuple[int, int]] = frozenset()
    replica: frozenset[tuple[int, int]] = frozenset()
    last_beat_s: float = 0.0
    last_beat: int = 0
    last_at_ms: int = 0
    draining: bool = False
    vitals: Vitals | None = None
    latency_us: float = UNMEASURED_US
    measured_s: float = 0.0
    failures: int = 0
    avoid_until_s: float = 0.0
    gone: bool = False
    _window: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def answered(self, round_trip_us: float, now_s: float) -> None:
        """A good answer: measured, and trusted again."""
        known_us = self.expected_us(now_s)
        self.latency_us = known_us + EWMA_WEIGHT * (min(round_trip_us, OUTLIER_FACTOR * known_us) - known_us)
        self.measured_s = now_s
        self._window.append(round_trip_us)
        self.lives()

    def lives(self) -> None:
        """A good answer whose time says nothing of the node: trusted again."""
        self.failures = 0
        self.avoid_until_s = 0.0

    def slow(self, waited_us: float, now_s: float) -> None:
        """No answer yet after so long, which is unusual: not a failure, but the estimate grows."""
        known_us = self.expected_us(now_s)
        if waited_us > known_us:
            self.latency_us = known_us + EWMA_WEIGHT * (min(waited_us, OUTLIER_FACTOR * known_us) - known_us)
            self.measured_s = now_s

    def failed(self, now_s: float, *, gone: bool) -> None:
        """No answer, a late or a wrong one: avoided for a while that doubles. `gone`: nobody listens there; back with
        its next heartbeat."""
        self.failures += 1
        self.gone = self.gone or gone
        self.avoid_until_s = now_s + min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (self.failures - 1))

    def away(self, until_s: float) -> None:
        """Perhaps coming back: no failure, but others are asked first until then."""
        self.avoid_until_s = max(self.avoid_until_s, until_s)

    def expected_us(self, now_s: float) -> float:
        """The aged estimate of a round trip."""
        weight: float = 0.5 ** (max(0.0, now_s - self.measured_s) / HALF_LIFE_S)
        return UNMEASURED_US + (self.latency_us - UNMEASURED_US) * weight

    def score(self, pair: tuple[int, int], now_s: float) -> float:
        """Expected round trip, weighted against replicas."""
        return self.expected_us(now_s) * (1.0 if pair in self.first else REPLICA_FACTOR)

    def deadline_s(self, rows: int) -> float:
        """How long to wait for an answer to so many rows before this node counts as failed."""
        if not self._window:
            return DEADLINE_UNMEASURED_S
        return _patience_s(max(DEADLINE_FLOOR_S, DEADLINE_FACTOR * self.usual_s), rows)

    @property
    def measured(self) -> bool:
        """Whether any answer told how long it usually takes."""
        return bool(self._window)

    @property
    def usual_s(self) -> float:
        """An answer that is slow, and not unusual: the 95th percentile. Only of a node that was measured."""
        return sorted(self._window)[int(0.95 * (len(self._window) - 1))] / 1e6


def _patience_s(one_row_s: float, rows: int) -> float:
    return min(DEADLINE_MOST_S, one_row_s * (1 + rows / ROWS_A_DEADLINE))


class Placement:
    """The nodes that serve one model (by manifest digest), and the choice among them."""

    def __init__(self, manifest: str) -> None:
        self._manifest = manifest
        self.nodes: dict[NodeId, NodeState] = {}
        self._left: dict[NodeId, frozenset[tuple[int, int]]] = {}

    def member(self, registered: NodeRegistered) -> None:
        """A node that the book knows; its heartbeats count from now on. It may have taken another key meanwhile."""
        node = NodeId(registered.node)
        state = self.nodes.setdefault(node, NodeState(node, HostId(registered.host), registered.key))
        state.key = registered.key

    def beat(self, heartbeat: Heartbeat, now_s: float) -> None:
        """What a member says of itself. The signature is the caller's business; an older or repeated beat changes
        nothing."""
        state = self.nodes[NodeId(heartbeat.node)]
        if (heartbeat.at_ms, heartbeat.beat) <= (state.last_at_ms, state.last_beat):
            return
        state.last_at_ms, state.last_beat, state.last_beat_s = heartbeat.at_ms, heartbeat.beat, now_s
        state.draining, state.gone, state.vitals = heartbeat.draining, False, heartbeat.vitals
        self._left.pop(state.node, None)
        first: set[tuple[int, int]] = set()
        replica: set[tuple[int, int]] = set()
        for model in heartbeat.models:
            if model.manifest == self._manifest:
                for each in model.layers:
                    first.update((each.layer, expert) for expert in each.first)
                    replica.update((each.layer, expert) for expert in each.replica)
        state.first, state.replica = frozenset(first), frozenset(replica)

    def left(self, key: str, *, revoked: bool) -> None:
        """The network's authority says that the node with this key is not connected any more: it is back with its next
        heartbeat. `revoked`: it is a member no more, and no heartbeat of this key counts."""
        for state in self.nodes.values():
            if state.key == key:
                state.gone = True
                self._left[state.node] = state.first | state.replica
                if revoked:
                    state.key, state.first, state.replica = "", frozenset(), frozenset()

    def left_hosts(self, pair: tuple[int, int]) -> list[NodeId]:
        """Which nodes hosted this expert when they left, and have not been heard since."""
        return [node for node, hosted in self._left.items() if pair in hosted]

    def hedge_s(self, node: NodeId, rows: int) -> float:
        """How long to wait for this node's answer to so many rows before another replica is asked, too. One that was
        not measured yet is expected to take no longer than the slowest that was."""
        state = self.nodes[node]
        measured = [state] if state.measured else [each for each in self.nodes.values() if each.measured]
        if not measured:
            return HEDGE_UNMEASURED_S
        usual_s = max(each.usual_s for each in measured)
        patience_s = _patience_s(max(HEDGE_FLOOR_S, HEDGE_FACTOR * usual_s), rows)
        return patience_s if state.measured else min(HEDGE_UNMEASURED_S, patience_s)

    def choose(self, layer: int, expert: int, tried: frozenset[NodeId], now_s: float) -> NodeId | None:
        """The best replica that was not tried yet: healthy before avoided, first choice before others unless another is
        much faster. None if there is none."""
        pair = (layer, expert)
        candidates = [
            (now_s < state.avoid_until_s or now_s - state.last_beat_s > FRESH_S, state.score(pair, now_s), state.node)
            for state in self.nodes.values()
            if (pair in state.first or pair in state.replica)
            and not state.draining
            and not state.gone
            and state.node not in tried
        ]
        best = min(candidates, default=None)
        return None if best is None else best[2]

    def seen(self, now_s: float) -> tuple[SeenNode, ...]:
        """The nodes that have told what they serve, by name."""
        return tuple(
            SeenNode(
                node=name,
                host=state.host,
                first=len(state.first),
                replica=len(state.replica),
                expected_us=int(state.expected_us(now_s)),
                draining=state.draining,
                avoided=now_s < state.avoid_until_s,
                gone=state.gone,
                silent_ms=max(0, int((now_s - state.last_beat_s) * 1000)),
                vitals=state.vitals,
            )
            for name, state in sorted(self.nodes.items())
            if state.vitals is not None and (state.first or state.replica)
        )

    def missing(self, layers: tuple[int, ...], experts: int) -> list[tuple[int, int]]:
        """The (layer, expert) pairs that no node serves now."""
        served: set[tuple[int, int]] = set()
        for state in self.nodes.values():
            if not state.draining and not state.gone:
                served |= state.first | state.replica
        return [(layer, expert) for layer in layers for expert in range(experts) if (layer, expert) not in served]
