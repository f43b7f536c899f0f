"""What a router tells of its work to whoever asks: its counters, and where the time of one request went. Owns the two
queries; what is counted is counted where it happens."""

from __future__ import annotations

from typing import Final

from sawyer.bus.calls import read, refuse_query
from sawyer.bus.protocol import Bus, Message
from sawyer.bus.service import Service
from sawyer.errors import UnknownRequest
from sawyer.ids import ModelId, RequestId
from sawyer.router.decoding import Decoding
from sawyer.router.dispatch import Dispatcher
from sawyer.router.times import Traces
from sawyer.schemas import subjects
from sawyer.schemas.metrics import Metrics, RouterMetrics
from sawyer.schemas.models import ModelLayout
from sawyer.schemas.traces import TraceQuery

QUERY_LIMIT: Final = 64


class Telling:
    """Of one router: start it and stop it."""

    def __init__(
        self,
        bus: Bus,
        router: str,
        model: ModelId,
        layout: ModelLayout,
        dispatcher: Dispatcher,
        decoding: Decoding,
        traces: Traces,
        started_ms: int,
    ) -> None:
        self._router = router
        self._model = model
        self._layout = layout
        self._dispatcher = dispatcher
        self._decoding = decoding
        self._traces = traces
        self._started_ms = started_ms
        self._services = (
            Service(bus, subjects.query("metrics"), self._metrics, refuse_query, limit=QUERY_LIMIT),
            Service(bus, subjects.query("trace"), self._trace, refuse_query, limit=QUERY_LIMIT),
        )

    async def start(self) -> None:
        """Answer from now on."""
        for each in self._services:
            await each.start()

    async def stop(self) -> None:
        """Answer what waits, and no more."""
        for each in self._services:
            await each.stop()

    async def _metrics(self, _: Message) -> bytes:
        counters = self._dispatcher.counters
        told = RouterMetrics(
            router=self._router,
            model=self._model,
            manifest=self._dispatcher.manifest,
            started_ms=self._started_ms,
            passes=self._decoding.passes_run,
            steps_waiting=self._decoding.waiting,
            late_answers=self._dispatcher.gatherer.late,
            nodes=counters.nodes(),
            layers=counters.layers(self._layout.moe_layers, self._layout.experts),
        )
        return Metrics(m=told).canonical()

    async def _trace(self, message: Message) -> bytes:
        request = RequestId(read(TraceQuery, message.data).request)
        times = self._traces.find(request)
        if times is None:
            raise UnknownRequest(f"{self._router} remembers no request {request}")
        return times.told(request, self._router, self._model).canonical()
