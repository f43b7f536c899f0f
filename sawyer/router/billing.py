"""The two ledger writes of a request: hold before any work, post (or void) after it, with the nodes' receipts."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Final

from sawyer.bus.calls import read, record
from sawyer.bus.protocol import Bus
from sawyer.engine.answer import FinishReason
from sawyer.errors import NoAnswer, NotAuthorised, SawyerError, UnreachableError
from sawyer.identity.keys import Key
from sawyer.ids import NodeId
from sawyer.ledger.commands import command
from sawyer.router.placement import Placement
from sawyer.router.scope import RequestScope
from sawyer.schemas import subjects
from sawyer.schemas.events import (
    InferenceCompleted,
    InferenceRequested,
    ReservationVoided,
    TokensReserved,
    WorkReceipted,
)
from sawyer.schemas.messages import FinishReply, NodeUse, Usage
from sawyer.schemas.signed import Signed

FINISH_TIMEOUT_S: Final = 2.0
FINISH_FIRST_S: Final = 0.5
"""The question, or its answer, may be lost: then it is asked again. A node signs once."""
SETTLE_PAUSE_S: Final = 0.2
"""A node signs within milliseconds. One that does not in this time has no receipt, and earns nothing."""
POST_PATIENCE_S: Final = 45.0
"""How long a finished request waits for a bookkeeper that is away: not beyond the hold."""
EMPTY_ANSWER: Final = "empty_answer"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What was generated. `fed_tokens` went through the model: prompt and output without the last sampled token; not
    `drafted_tokens` that were not `accepted_tokens`."""

    finish: FinishReason
    output_tokens: int
    fed_tokens: int
    prefill_us: int
    decode_us: int
    speculative: bool = False
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Biller:
    """Talks to the bookkeeper and, for receipts, to nodes."""

    def __init__(self, bus: Bus, name: str, key: Key, placement: Placement, manifest: str) -> None:
        self._bus = bus
        self._name = name
        self._key = key
        self._placement = placement
        self._manifest = manifest

    async def reserve(self, reservation: TokensReserved) -> None:
        """Raises the ledger's refusal: BudgetTooSmall, UnknownAccount, AlreadyCompleted, ..."""
        await record(self._bus, command(reservation, self._name, self._key))

    async def post(
        self, order: Signed[InferenceRequested], input_tokens: int, scope: RequestScope, work: Work
    ) -> Usage:
        """Collect receipts, book the request, tell the bill. An empty answer costs nothing."""
        if work.output_tokens == 0:
            voided = await self.void(order.body, scope, EMPTY_ANSWER)
            return self._usage(input_tokens, scope, work, {}, voided, 0)
        begun_ns = perf_counter_ns()
        receipts = await self._collect(scope)
        collected_ns = perf_counter_ns()
        scope.times.receipts_us = (collected_ns - begun_ns) // 1000
        while True:
            body = InferenceCompleted(
                network=order.body.network,
                request=order,
                input_tokens=input_tokens,
                output_tokens=work.output_tokens,
                fed_tokens=work.fed_tokens,
                finish=work.finish,
                receipts=tuple(receipts[node] for node in sorted(receipts)),
                unreceipted=scope.meter.unreceipted(receipts),
                latencies=scope.meter.latencies(sorted(receipts)),
            )
            try:
                entry = await record(self._bus, command(body, self._name, self._key), patience_s=POST_PATIENCE_S)
            except NotAuthorised as refused:
                node = NodeId(refused.details.get("node", ""))
                if receipts.pop(node, None) is None:
                    raise
                log.warning(
                    "request %s: the ledger refuses the receipt of %s: %s", scope.request, node, refused,
                    extra={"request": scope.request},
                )  # fmt: skip
                continue
            scope.times.posting_us = (perf_counter_ns() - collected_ns) // 1000
            billed = sum(each.tokens for each in entry.decided.debited or ())
            log.info(
                "request %s: %d tokens billed in entry %d", scope.request, billed, entry.seq,
                extra={"request": scope.request},
            )  # fmt: skip
            return self._usage(input_tokens, scope, work, receipts, entry.seq, billed)

    async def void(self, order: InferenceRequested, scope: RequestScope, reason: str) -> int:
        """Give the hold back and let the nodes forget. Returns the entry's seq."""
        await asyncio.gather(*(self._forget(node, scope) for node in sorted(scope.asked)))
        body = ReservationVoided(network=order.network, account=order.account, request=order.request, reason=reason)
        return (await record(self._bus, command(body, self._name, self._key))).seq

    async def _collect(self, scope: RequestScope) -> dict[NodeId, Signed[WorkReceipted]]:
        """Valid receipts by node. A node that is gone, late or wrong simply has none."""
        used = sorted(scope.meter.nodes)
        idle = [self._forget(node, scope) for node in sorted(scope.asked.difference(used))]
        found, _ = await asyncio.gather(
            asyncio.gather(*(self._receipt(node, scope) for node in used)), asyncio.gather(*idle)
        )
        return {node: receipt for node, receipt in zip(used, found, strict=True) if receipt is not None}

    async def _receipt(self, node: NodeId, scope: RequestScope) -> Signed[WorkReceipted] | None:
        finish = scope.meter.finish(node)
        try:
            raw = await self._ask_finish(node, finish.canonical())
            reply = read(FinishReply, raw)
            if reply.error is not None:
                raise reply.error.to_error()
            if reply.receipt is None:
                raise SawyerError(f"{node} answered without a receipt")
            key = self._placement.nodes[node].key
            await asyncio.to_thread(scope.meter.check, reply.receipt, node, key, self._manifest)
        except SawyerError as error:
            log.warning(
                "request %s: no receipt of %s: %s", scope.request, node, error, extra={"request": scope.request}
            )
            return None
        return reply.receipt

    async def _ask_finish(self, node: NodeId, finish: bytes) -> bytes:
        """The node's answer. One that is gone is not waited for, but while all are coming back after the server did;
        and what was lost with the connection is asked again."""
        now_s = asyncio.get_running_loop().time
        until_s = now_s() + FINISH_TIMEOUT_S
        while True:
            try:
                return await self._bus.request(subjects.finish(node), finish, FINISH_FIRST_S)
            except UnreachableError as error:
                waits = self._bus.settling or isinstance(error, NoAnswer)
                if not waits or now_s() + SETTLE_PAUSE_S >= until_s:
                    raise
                await asyncio.sleep(SETTLE_PAUSE_S)

    async def _forget(self, node: NodeId, scope: RequestScope) -> None:
        nothing = scope.meter.finish(node).model_copy(update={"used": ()})
        try:
            await self._bus.publish(subjects.finish(node), nothing.canonical())
        except SawyerError as error:
            log.warning(
                "cannot tell %s that request %s is over: %s", node, scope.request, error,
                extra={"request": scope.request},
            )  # fmt: skip

    def _usage(
        self,
        input_tokens: int,
        scope: RequestScope,
        work: Work,
        receipts: dict[NodeId, Signed[WorkReceipted]],
        entry: int,
        billed: int,
    ) -> Usage:
        nodes = tuple(
            NodeUse(
                node=node,
                host=self._placement.nodes[node].host,
                rows=scope.meter.nodes[node].rows,
                receipted=node in receipts,
            )
            for node in sorted(scope.meter.nodes)
        )
        return Usage(
            input_tokens=input_tokens,
            output_tokens=work.output_tokens,
            billed_tokens=billed,
            entry=entry,
            nodes=nodes,
            takeovers=tuple(scope.takeovers.values()),
            prefill_us=work.prefill_us,
            decode_us=work.decode_us,
            speculative=work.speculative,
            drafted_tokens=work.drafted_tokens,
            accepted_tokens=work.accepted_tokens,
        )
