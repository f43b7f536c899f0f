"""What a node that follows the demand looks at: the routers' counters, and everybody's heartbeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from sawyer.bus.calls import ask, survey
from sawyer.bus.protocol import Bus
from sawyer.ids import ModelId
from sawyer.node.choosing import Pair, Served
from sawyer.node.survey import look
from sawyer.schemas.messages import NetworkReply
from sawyer.schemas.metrics import Metrics, RouterMetrics
from sawyer.schemas.models import ModelLayout


class Watched:
    """One model on one network, seen from a node. `mine`: see following.Follows."""

    def __init__(
        self, bus: Bus, model: ModelId, manifest: str, layout: ModelLayout,
        mine: Callable[[], tuple[frozenset[Pair], int]],
    ) -> None:  # fmt: skip
        self._bus = bus
        self._model = model
        self._manifest = manifest
        self._layout = layout
        self.mine = mine

    async def demand(self) -> Mapping[Pair, int]:
        """Rows of each expert that routers had answered since they started. Raises UnreachableError without any."""
        rows: Counter[Pair] = Counter()
        for told in await survey(self._bus, "metrics", Metrics):
            if isinstance(told.m, RouterMetrics) and told.m.manifest == self._manifest:
                for layer in told.m.layers:
                    for expert, count in enumerate(layer.rows):
                        rows[layer.layer, expert] += count
        return rows

    async def served(self) -> Mapping[Pair, Served]:
        """Who serves each expert now, by the nodes' own heartbeats."""
        network = await ask(self._bus, "network", NetworkReply)
        return (await look(self._bus, network, self._model, self._manifest)).served(self._layout, self._manifest)
