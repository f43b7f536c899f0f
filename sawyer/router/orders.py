"""Signed orders: checked against the network as it is now, and their tokens held. Owns what is asked of the bookkeeper
before any work."""

from __future__ import annotations

import asyncio

from sawyer.clock import Clock
from sawyer.errors import RefusedError
from sawyer.ids import ModelId
from sawyer.router.admission import check_order, check_request, priced
from sawyer.router.billing import Biller
from sawyer.router.directory import Directory
from sawyer.schemas.events import InferenceRequested, TokensReserved
from sawyer.schemas.messages import InferRequest, NetworkReply
from sawyer.schemas.signed import Signed


class Orders:
    """Those for one model."""

    def __init__(self, directory: Directory, biller: Biller, model: ModelId, clock: Clock) -> None:
        self._directory = directory
        self._biller = biller
        self._model = model
        self._clock = clock

    async def check(self, order: Signed[InferenceRequested]) -> None:
        """Raises what `check_order` raises."""
        await asyncio.to_thread(check_order, order, await self._network(), self._model, self._clock.now_ms())

    async def check_request(self, request: InferRequest) -> None:
        """Raises what `check_request` raises."""
        await asyncio.to_thread(check_request, request, await self._network(), self._model, self._clock.now_ms())

    async def reserve(self, order: Signed[InferenceRequested], input_tokens: int) -> TokensReserved:
        """Price so many prompt tokens, and hold what they and the answer may cost. Raises what `priced` raises, and the
        ledger's refusal; then nothing is held."""
        try:
            reservation = await self._priced(order, input_tokens, await self._network())
        except RefusedError:  # prices may have changed since we asked
            reservation = await self._priced(order, input_tokens, await self._directory.refresh())
        await self._biller.reserve(reservation)
        return reservation

    async def _priced(
        self, order: Signed[InferenceRequested], input_tokens: int, network: NetworkReply
    ) -> TokensReserved:
        return await asyncio.to_thread(priced, order, input_tokens, network, self._clock.now_ms())

    async def _network(self) -> NetworkReply:
        return self._directory.network or await self._directory.refresh()
