"""One MoE layer over the network: group rows by expert, one message a node, gather, fall back to a replica of the SAME
expert. Every block comes from its own expert or the layer fails with an error that names the experts."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from sawyer.bus.gather import Arrival, Call, Gatherer, Loss
from sawyer.errors import ExpertUnavailable, MalformedMessage
from sawyer.ids import ModelId, NodeId, RequestId
from sawyer.ledger.merkle import leaf_hash
from sawyer.router.metering import Meter
from sawyer.router.placement import Placement
from sawyer.schemas import subjects, tensors
from sawyer.schemas.messages import LayerCall, Takeover
from sawyer.schemas.tensors import ActivationError, ActivationReply, ActivationRequest, Dtype, Rows, block_leaf

LAYER_TIMEOUT_S: Final = 15.0
TAG_BITS: Final = 62
"""Tags of messages are random: a node cannot guess where another node's answer is awaited."""
LOOK_AGAIN_S: Final = 0.25
"""A unit that no known replica is left for is offered to nodes that appear meanwhile, this often."""
F16_MAX: Final = float(np.finfo(np.float16).max)

Block = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ExpertRows:
    """One expert's work in a layer: the rows [n] (indices into the layer's hidden states) that go through it."""

    expert: int
    rows: NDArray[np.uint32]


@dataclass
class RequestScope:
    """What one request carries through all its layers: meter, sequence numbers a node, takeovers."""

    request: RequestId
    meter: Meter
    asked: set[NodeId] = field(default_factory=set)
    sequences: Counter[NodeId] = field(default_factory=Counter)
    takeovers: dict[tuple[NodeId, NodeId], Takeover] = field(default_factory=dict)
    step: int = 0


@dataclass
class _Unit:
    """Rows of one expert that travel together. `part` of the expert's rows, from `start`."""

    work: int
    expert: int
    rows: NDArray[np.uint32]
    start: int
    lost: dict[NodeId, str] = field(default_factory=dict)
    done: bool = False


@dataclass(frozen=True)
class _Part:
    """One message to one node."""

    node: NodeId
    units: list[_Unit]
    message: ActivationRequest
    sent_s: float


class Dispatcher:
    """Calls experts of one model. `wide` sends and asks for float32 rows (parity), otherwise float16."""

    def __init__(
        self, gatherer: Gatherer, placement: Placement, model: ModelId, manifest: str, *, wide: bool = False
    ) -> None:
        self._gatherer = gatherer
        self.placement = placement
        self.model = model
        self.manifest = manifest
        self.prefix = bytes.fromhex(manifest)[: tensors.MANIFEST_PREFIX_BYTES]
        self._wide = wide

    async def layer(
        self, scope: RequestScope, layer: int, hidden: Block, work: Sequence[ExpertRows]
    ) -> tuple[list[Block], list[LayerCall]]:
        """The output block [n, H] float32 of each piece of work, in its order, and what was called.

        hidden: [T, H] float32. Raises ExpertUnavailable naming every expert that no replica answered for."""
        wire = self._to_wire(hidden)
        with self._gatherer.call() as call:
            run = _LayerRun(self, scope, layer, wire, work, call)
            await run.finish()
        return run.blocks, run.calls

    def _to_wire(self, hidden: Block) -> Rows:
        if self._wide or float(np.abs(hidden).max()) > F16_MAX:
            return hidden
        return hidden.astype(np.float16)


class _LayerRun:
    """The state of one layer while it is out on the network."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        scope: RequestScope,
        layer: int,
        wire: Rows,
        work: Sequence[ExpertRows],
        call: Call,
    ) -> None:
        self._dispatcher = dispatcher
        self._placement = dispatcher.placement
        self._scope = scope
        self._layer = layer
        self._wire = wire
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._last_s = self._loop.time() + LAYER_TIMEOUT_S
        self._parts: dict[int, _Part] = {}
        self._deadlines: dict[int, float] = {}
        self.blocks: list[Block] = [np.empty((len(each.rows), wire.shape[1]), np.float32) for each in work]
        self.calls: list[LayerCall] = []
        self._units = list(_units(work, _rows_a_message(wire)))
        self._smooth = True  # until a message is lost or late, every unit that is not done is in hand

    async def finish(self) -> None:
        """Send, gather, fall back, until every unit is answered."""
        await self._send(self._units)
        while not all(unit.done for unit in self._units):
            now_s = self._loop.time()
            if now_s >= self._last_s:
                self._give_up(
                    [unit for unit in self._units if not unit.done], f"no answer within {LAYER_TIMEOUT_S:g} s"
                )
            look_again_s = now_s + LOOK_AGAIN_S if self._idle() else self._last_s
            waiting = min([at for tag, at in self._deadlines.items() if tag in self._call.outstanding] + [look_again_s])
            hedged = not self._call.outstanding <= self._deadlines.keys()  # whoever answers first ends the race
            for arrival in await self._call.wait(max(0.0, waiting - now_s), first=hedged):
                self._take(arrival)
            self._note_overdue(self._loop.time())
            await self._send(self._idle())

    async def _send(self, units: list[_Unit]) -> None:
        """One message a node, in parts that fit. A unit without a candidate waits for an answer that is still out."""
        chosen: dict[NodeId, list[_Unit]] = defaultdict(list)
        stranded: list[_Unit] = []
        for unit in units:
            node = self._placement.choose(self._layer, unit.expert, frozenset(unit.lost), self._loop.time())
            if node is not None:
                chosen[node].append(unit)
            elif not self._still_out(unit):
                stranded.append(unit)
        if stranded:
            self._give_up(stranded, "no other replica is left")
        for node in sorted(chosen):
            for batch in _batches(chosen[node], _rows_a_message(self._wire)):
                await self._send_part(node, batch)

    async def _send_part(self, node: NodeId, units: list[_Unit]) -> None:
        scope, now_s, tag = self._scope, self._loop.time(), secrets.randbits(TAG_BITS)
        scope.sequences[node] += 1
        scope.asked.add(node)
        rows, work = _message_rows(self._wire, units)
        deadline_s = self._placement.nodes[node].deadline_s(sum(len(unit.rows) for unit in units))
        message = ActivationRequest(
            request=scope.request,
            sequence=scope.sequences[node],
            manifest=self._dispatcher.prefix,
            layer=self._layer,
            rows=rows,
            work=work,
            deadline_ms=max(1, int((self._last_s - now_s) * 1000)),
            reply_f32=self._wire.dtype == np.float32,
        )
        self._parts[tag] = _Part(node, units, message, now_s)
        self._deadlines[tag] = now_s + deadline_s
        subject = subjects.expert(node, self._dispatcher.model, self._layer, units[0].expert)
        await self._call.send(tag, subject, tensors.encode_request(message))

    def _take(self, arrival: Arrival) -> None:
        """Use an answer whole, or not at all: a node's receipt is over whole answers. So a late one of which a part was
        answered elsewhere is dropped, and its node, which lives, may be asked for the rest again."""
        part = self._parts[arrival.tag]
        if arrival.loss is Loss.DISCONNECTED:
            self._smooth = False
            return  # our own connection, not the node's fault: its units are sent again
        if arrival.loss is not None:
            self._lose(part, arrival.loss.value, gone=True)
            return
        try:
            answer = tensors.decode_answer(arrival.data)
            if isinstance(answer, ActivationError):
                self._lose(part, answer.error.code, gone=False)
                return
            _check_answer(answer, part.message)
        except MalformedMessage:
            self._lose(part, "malformed", gone=False)
            return
        self._scope.meter.timed(part.node, int((arrival.at_s - part.sent_s) * 1e6))
        if not any(unit.done for unit in part.units):
            self._use(part, answer, arrival.at_s)
            return
        for unit in part.units:
            unit.lost.pop(part.node, None)
        self._smooth = False

    def _use(self, part: _Part, answer: ActivationReply, at_s: float) -> None:
        leaves = []
        for unit, (_, indices), (_, block) in zip(part.units, part.message.work, answer.blocks, strict=True):
            self.blocks[unit.work][unit.start : unit.start + len(block)] = block
            leaves.append(leaf_hash(block_leaf(self._layer, unit.expert, part.message.rows[indices], block)))
            unit.done = True
            for lost, reason in unit.lost.items():
                self._note_takeover(lost, part.node, reason)
        rows = sum(len(block) for _, block in answer.blocks)
        round_trip_us = (at_s - part.sent_s) * 1e6
        self._scope.meter.used(part.node, part.message.sequence, tuple(leaves), rows)
        self._placement.nodes[part.node].answered(round_trip_us, at_s)
        self.calls.append(
            LayerCall(
                node=part.node,
                experts=tuple(unit.expert for unit in part.units),
                rows=rows,
                round_trip_us=int(round_trip_us),
                compute_us=answer.compute_us,
            )
        )

    def _lose(self, part: _Part, reason: str, *, gone: bool) -> None:
        self._smooth = False
        self._placement.nodes[part.node].failed(self._loop.time(), gone=gone)
        for unit in part.units:
            if not unit.done:
                unit.lost[part.node] = reason

    def _note_overdue(self, now_s: float) -> None:
        """Units of a message past its deadline are asked of another replica, while a late answer still counts."""
        for tag, at in list(self._deadlines.items()):
            if tag in self._call.outstanding and now_s >= at:
                del self._deadlines[tag]
                self._lose(self._parts[tag], "deadline", gone=False)

    def _idle(self) -> list[_Unit]:
        """Units that are neither done nor in hand."""
        if self._smooth:
            return []
        return [unit for unit in self._units if not (unit.done or self._in_hand(unit))]

    def _in_hand(self, unit: _Unit) -> bool:
        """Some node has it, within its deadline."""
        return any(self._holds(tag, unit) for tag in self._call.outstanding & self._deadlines.keys())

    def _still_out(self, unit: _Unit) -> bool:
        """Some node has it, and may answer late."""
        return any(self._asked(tag, unit) for tag in self._parts)

    def _asked(self, tag: int, unit: _Unit) -> bool:
        return tag in self._call.outstanding and self._holds(tag, unit)

    def _holds(self, tag: int, unit: _Unit) -> bool:
        return any(each is unit for each in self._parts[tag].units)

    def _note_takeover(self, lost: NodeId, by: NodeId, reason: str) -> None:
        if lost != by:
            self._scope.takeovers.setdefault(
                (lost, by),
                Takeover(lost=lost, by=by, reason=_slug(reason), step=self._scope.step, layer=self._layer),
            )

    def _give_up(self, units: list[_Unit], why: str) -> NoReturn:
        missing = sorted({unit.expert for unit in units})
        silent = {part.node for tag, part in self._parts.items() if any(self._asked(tag, unit) for unit in units)}
        tried = dict.fromkeys(silent, "not answered yet")
        tried |= {node: reason for unit in units for node, reason in unit.lost.items()}
        named = ", ".join(str(expert) for expert in missing)
        asked = "; ".join(f"{node}: {reason}" for node, reason in sorted(tried.items())) or "no node serves them"
        raise ExpertUnavailable(
            f"layer {self._layer}: no answer for expert {named} ({asked}; {why})",
            experts=tuple((self._layer, expert) for expert in missing),
        )


def _units(work: Sequence[ExpertRows], most: int) -> list[_Unit]:
    return [
        _Unit(at, each.expert, each.rows[start : start + most], start)
        for at, each in enumerate(work)
        for start in range(0, len(each.rows), most)
    ]


def _message_rows(wire: Rows, units: list[_Unit]) -> tuple[Rows, tuple[tuple[int, NDArray[np.uint32]], ...]]:
    """The rows that these units need, each once, and for each expert the indices of its own among them."""
    if len(wire) == 1:
        return wire, tuple((unit.expert, unit.rows) for unit in units)
    needed = np.unique(np.concatenate([unit.rows for unit in units]))
    rows = wire if len(needed) == len(wire) else wire[needed]
    return rows, tuple((unit.expert, np.searchsorted(needed, unit.rows).astype(np.uint32)) for unit in units)


def _batches(units: list[_Unit], most: int) -> list[list[_Unit]]:
    """Units of distinct experts, in ascending order, at most so many rows together."""
    made: list[list[_Unit]] = []
    rows = 0
    for unit in sorted(units, key=lambda each: (each.expert, each.start)):
        fits = made and rows + len(unit.rows) <= most and made[-1][-1].expert != unit.expert
        if not fits:
            made.append([])
            rows = 0
        made[-1].append(unit)
        rows += len(unit.rows)
    return made


def _rows_a_message(wire: Rows) -> int:
    return tensors.split_limit_rows(wire.shape[1], Dtype.F32 if wire.dtype == np.float32 else Dtype.F16)


def _check_answer(answer: ActivationReply, asked: ActivationRequest) -> None:
    """Raises MalformedMessage unless this answers exactly what was asked, in numbers."""
    same = (answer.request, answer.sequence, answer.manifest, answer.layer)
    if same != (asked.request, asked.sequence, asked.manifest, asked.layer):
        raise MalformedMessage("the answer belongs to another message")
    hidden = asked.rows.shape[1]
    if len(answer.blocks) != len(asked.work):
        raise MalformedMessage("the answer has other experts than asked for")
    for (expert, indices), (answered, block) in zip(asked.work, answer.blocks, strict=True):
        if answered != expert or block.shape != (len(indices), hidden):
            raise MalformedMessage("the answer has other experts or shapes than asked for")
        if asked.reply_f32 and block.dtype != np.float32:
            raise MalformedMessage("the answer is narrower than the float32 that was asked for")
        if not np.isfinite(block).all():
            raise MalformedMessage("the answer holds NaN or infinity")


def _slug(reason: str) -> str:
    return reason.replace(" ", "-")
