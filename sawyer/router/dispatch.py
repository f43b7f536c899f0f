"""One MoE layer over the network: group rows by expert, one message a node, gather, fall back to a replica of the SAME
expert. Every block comes from its own expert, or whoever needs it gets an error that names the experts.

The rows may be those of many requests: they travel together, and each request is metered by itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from time import perf_counter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sawyer.bus.gather import Arrival, Call, Gatherer, Loss
from sawyer.errors import ExpertUnavailable, MalformedMessage
from sawyer.ids import ModelId, NodeId
from sawyer.ledger.merkle import leaf_hash
from sawyer.router.counters import Counters
from sawyer.router.placement import Placement
from sawyer.router.scope import RequestScope, Share
from sawyer.schemas import subjects, tensors
from sawyer.schemas.messages import LayerCall, Takeover
from sawyer.schemas.tensors import ActivationError, ActivationReply, ActivationRequest, Dtype, Part, Rows, part_work

LAYER_TIMEOUT_S: Final = 15.0
TAG_BITS: Final = 62
"""Tags of messages are random: a node cannot guess where another node's answer is awaited."""
LOOK_AGAIN_S: Final = 0.25
"""A unit that no known replica is left for is offered to nodes that appear meanwhile, this often."""
SETTLING_AGAIN_S: Final = 0.05
"""While all come back after the server was away, nodes that nobody is heard from are asked again this often."""
F16_MAX: Final = float(np.finfo(np.float16).max)

Block = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ExpertRows:
    """One expert's work in a layer: the rows [n] (indices into the layer's hidden states) that go through it."""

    expert: int
    rows: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class LayerAnswers:
    """Of one layer: the output block [n, H] float32 of each piece of work, in its order; for each share what was called
    (if it is traced); and the shares that some expert was not there for, whose rows in `blocks` mean nothing."""

    blocks: list[Block]
    calls: list[list[LayerCall]]
    failed: dict[int, ExpertUnavailable]


@dataclass
class _Unit:
    """Rows of one expert that travel together: of the expert's rows those from `start` on. `given_up`: done, as
    everybody who needs it has failed. `slow`: asked first, and so late that another was asked, too. `away`: not heard
    from since the server came back; asked again when nobody else is left."""

    work: int
    expert: int
    rows: NDArray[np.uint32]
    start: int
    lost: dict[NodeId, str] = field(default_factory=dict)
    away: set[NodeId] = field(default_factory=set)
    done: bool = False
    given_up: bool = False
    slow: NodeId | None = None


@dataclass(frozen=True, slots=True)
class _Sent:
    """One message to one node. `owners`: the shares that its parts are of. `sent_s`, `stamp_s`: as of an Arrival."""

    node: NodeId
    units: list[_Unit]
    owners: list[int]
    message: ActivationRequest
    sent_s: float
    stamp_s: float


class Dispatcher:
    """Calls experts of one model. `wide` sends and asks for float32 rows (parity), otherwise float16."""

    def __init__(
        self, gatherer: Gatherer, placement: Placement, model: ModelId, manifest: str, *, wide: bool = False
    ) -> None:
        self.gatherer = gatherer
        self.placement = placement
        self.model = model
        self.manifest = manifest
        self.prefix = bytes.fromhex(manifest)[: tensors.MANIFEST_PREFIX_BYTES]
        self.counters = Counters()
        self._wide = wide

    async def layer(
        self, shares: Sequence[Share], layer: int, hidden: Block, work: Sequence[ExpertRows]
    ) -> LayerAnswers:
        """What the experts made of the rows `hidden` [T, H] float32, which are those of the shares one after the other.
        A share that fails is told every expert of its own that no replica answered for."""
        wire = self._to_wire(hidden)
        with self.gatherer.call() as call:
            run = _LayerRun(self, shares, layer, wire, work, call)
            await run.finish()
        return LayerAnswers(run.blocks, run.calls, run.failed)

    def _to_wire(self, hidden: Block) -> Rows:
        if self._wide or float(np.abs(hidden).max()) > F16_MAX:
            return hidden
        return hidden.astype(np.float16)


class _LayerRun:
    """The state of one layer while it is out on the network."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        shares: Sequence[Share],
        layer: int,
        wire: Rows,
        work: Sequence[ExpertRows],
        call: Call,
    ) -> None:
        self._dispatcher = dispatcher
        self._placement = dispatcher.placement
        self._counters = dispatcher.counters
        self._shares = shares
        self._ends = list(accumulate(share.rows for share in shares))
        self._layer = layer
        self._wire = wire
        self._call = call
        self._gatherer = dispatcher.gatherer
        self._loop = asyncio.get_running_loop()
        self._last_s = self._loop.time() + LAYER_TIMEOUT_S
        self._sent: dict[int, _Sent] = {}
        self._deadlines: dict[int, float] = {}
        self._hedges: dict[int, float] = {}
        """When another node is asked, too."""
        self._racing = False
        self._again_s = 0.0
        """Nothing is sent again before."""
        self.blocks: list[Block] = [np.empty((len(each.rows), wire.shape[1]), np.float32) for each in work]
        self.calls: list[list[LayerCall]] = [[] for _ in shares]
        self.failed: dict[int, ExpertUnavailable] = {}
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
                return
            again_s = self._again_s if self._again_s > now_s else now_s + LOOK_AGAIN_S
            look_again_s = again_s if self._idle() else self._last_s
            out = self._call.outstanding
            waiting = min([at for times in (self._hedges, self._deadlines) for tag, at in times.items() if tag in out],
                          default=look_again_s)  # fmt: skip
            racing = self._racing or not out <= self._deadlines.keys()  # whoever answers first ends the race
            for arrival in await self._call.wait(max(0.0, min(waiting, look_again_s) - now_s), first=racing):
                self._take(arrival)
            self._note_overdue(self._loop.time())
            if not self._call.outstanding:
                await asyncio.sleep(max(0.0, self._again_s - self._loop.time()))
            if self._loop.time() >= self._again_s:
                await self._send(self._idle())
            await self._hedge(self._loop.time())

    async def _send(self, units: list[_Unit]) -> None:
        """One message a node, in parts that fit. A unit without a candidate waits for an answer that is still out."""
        chosen: dict[NodeId, list[_Unit]] = defaultdict(list)
        stranded: list[_Unit] = []
        for unit in units:
            tried = frozenset((*unit.lost, *unit.away))
            node = self._placement.choose(self._layer, unit.expert, tried, self._loop.time())
            if node is not None:
                chosen[node].append(unit)
                self._note_left(unit)
            elif unit.away:
                unit.away.clear()
                self._again_s = self._loop.time() + SETTLING_AGAIN_S
            elif not self._still_out(unit):
                stranded.append(unit)
        if stranded:
            self._give_up(stranded, "no other replica is left")
        for node in sorted(chosen):
            wanted = [unit for unit in chosen[node] if not unit.done]
            for batch in _batches(wanted, _rows_a_message(self._wire)):
                await self._send_message(node, batch)

    async def _send_message(self, node: NodeId, units: list[_Unit], *, hedge: bool = False) -> None:
        now_s, tag = self._loop.time(), secrets.randbits(TAG_BITS)
        needed = _needed(units, len(self._wire))
        owners, parts = self._parts(node, needed)
        rows = self._wire if len(needed) == len(self._wire) else self._wire[needed]
        work = tuple((unit.expert, _places(needed, unit.rows, len(self._wire))) for unit in units)
        count, state = sum([len(unit.rows) for unit in units]), self._placement.nodes[node]
        message = ActivationRequest(
            parts=parts,
            manifest=self._dispatcher.prefix,
            layer=self._layer,
            rows=rows,
            work=work,
            deadline_ms=max(1, int((self._last_s - now_s) * 1000)),
            reply_f32=self._wire.dtype == np.float32,
        )
        self._sent[tag] = _Sent(node, units, owners, message, now_s, perf_counter())
        self._deadlines[tag] = now_s + state.deadline_s(count)
        self._hedges[tag] = now_s + self._placement.hedge_s(node, count)
        subject = subjects.expert(node, self._dispatcher.model, self._layer, units[0].expert)
        data = tensors.encode_request(message)
        self._counters.sent(node, len(data), hedge=hedge)
        for owner in owners if hedge else ():
            self._scope(owner).times.hedged(self._layer)
        await self._call.send(tag, subject, data)

    def _parts(self, node: NodeId, needed: NDArray[np.uint32]) -> tuple[list[int], tuple[Part, ...]]:
        """The shares that these rows are of, and their part of a message to this node: its next in each request."""
        if len(self._shares) == 1:
            counted = {0: len(needed)}
        elif len(self._shares) == len(self._wire):  # a row each
            counted = dict.fromkeys(needed.tolist(), 1)
        else:
            counted = Counter(np.searchsorted(self._ends, needed, side="right").tolist())
        parts = []
        for owner, rows in counted.items():
            scope = self._scope(owner)
            scope.sequences[node] += 1
            scope.asked.add(node)
            parts.append(Part(scope.request, scope.sequences[node], rows))
        return list(counted), tuple(parts)

    def _take(self, arrival: Arrival) -> None:
        """Use an answer whole, or not at all: a node's receipt is over whole answers. So a late one of which a part was
        answered elsewhere is dropped, and its node, which lives, may be asked for the rest again."""
        sent = self._sent[arrival.tag]
        if arrival.loss is Loss.DISCONNECTED:
            self._smooth = False
            for unit in sent.units:  # our own connection: no node was to blame lately, and all may be asked again
                unit.lost.clear()
                unit.away.clear()
            return
        if arrival.loss is Loss.NO_RESPONDERS and self._gatherer.settling:
            self._smooth = False  # the server was away, and its node may be coming back
            self._placement.nodes[sent.node].away(self._loop.time() + SETTLING_AGAIN_S)
            for unit in sent.units:
                unit.away.add(sent.node)
            return
        if arrival.loss is not None:
            self._lose(sent, arrival.loss.value, gone=True)
            return
        try:
            answer = tensors.decode_answer(arrival.data)
            if isinstance(answer, ActivationError):
                self._lose(sent, answer.error.code, gone=False)
                return
            _check_answer(answer, sent.message)
        except MalformedMessage:
            self._lose(sent, "malformed", gone=False)
            return
        took_us = int((arrival.stamp_s - sent.stamp_s) * 1e6)
        self._counters.received(sent.node, len(arrival.data), took_us)
        for meter in {scope.request: scope.meter for scope in map(self._scope, sent.owners)}.values():
            meter.timed(sent.node, took_us)
        if not any(unit.done and not unit.given_up for unit in sent.units):
            self._use(sent, answer, arrival.at_s, took_us)
            return
        for unit in sent.units:
            unit.lost.pop(sent.node, None)
        self._smooth = False

    def _use(self, sent: _Sent, answer: ActivationReply, at_s: float, took_us: int) -> None:
        for unit, (_, block) in zip(sent.units, answer.blocks, strict=True):
            self.blocks[unit.work][unit.start : unit.start + len(block)] = block
            unit.done = True
            for lost, reason in unit.lost.items():
                self._note_takeover(unit, lost, sent.node, reason)
            if unit.slow is not None and unit.slow not in unit.lost:
                self._note_takeover(unit, unit.slow, sent.node, "hedged")
        state = self._placement.nodes[sent.node]
        if self._gatherer.settling:  # most of it was the server's being away: hedges would come late for long
            state.lives()
        else:
            state.answered(took_us, at_s)
        asked = [(unit.expert, len(unit.rows)) for unit in sent.units]
        self._counters.used(sent.node, self._layer, asked, took_us)
        message = sent.message
        inputs = [message.rows[indices] for _, indices in message.work]
        blocks = [block for _, block in answer.blocks]
        done = part_work(self._layer, message.parts, message.work, inputs, blocks)
        for owner, part, own in zip(sent.owners, message.parts, done, strict=True):
            scope = self._scope(owner)
            scope.meter.used(sent.node, part.sequence, tuple(map(leaf_hash, own.leaves)), own.rows)
            scope.times.answered(self._layer, sent.node, own.rows, took_us, answer.compute_us)
            if scope.traced:
                self.calls[owner].append(
                    LayerCall(
                        node=sent.node,
                        experts=own.experts,
                        rows=own.rows,
                        round_trip_us=took_us,
                        compute_us=answer.compute_us,
                    )
                )

    def _lose(self, sent: _Sent, reason: str, *, gone: bool) -> None:
        self._smooth = False
        self._counters.lost(sent.node, _slug(reason))
        self._placement.nodes[sent.node].failed(self._loop.time(), gone=gone)
        for unit in sent.units:
            if not unit.done:
                unit.lost[sent.node] = reason

    def _note_overdue(self, now_s: float) -> None:
        """Units of a message past its deadline are asked of another replica, while a late answer still counts."""
        for tag, at in list(self._deadlines.items()):
            if tag in self._call.outstanding and now_s >= at:
                del self._deadlines[tag]
                if self._gatherer.settling:  # it may have been lost on the way, and its node be as good as before
                    self._smooth = False
                else:
                    self._lose(self._sent[tag], "deadline", gone=False)

    async def _hedge(self, now_s: float) -> None:
        """Units of a message that takes unusually long are asked of another replica, too, once: of one that is avoided
        if no other is left. No failure: the first answer counts, and no bit depends on whose it is."""
        chosen: dict[NodeId, list[_Unit]] = defaultdict(list)
        for tag in [tag for tag, at in self._hedges.items() if now_s >= at]:
            del self._hedges[tag]
            sent = self._sent[tag]
            if tag not in self._call.outstanding or all(unit.done for unit in sent.units):
                continue
            self._placement.nodes[sent.node].slow((now_s - sent.sent_s) * 1e6, now_s)
            for unit in sent.units:
                if unit.done or unit.slow is not None:
                    continue
                tried = frozenset((*unit.lost, sent.node))
                other = self._placement.choose(self._layer, unit.expert, tried, now_s)
                if other is not None:
                    unit.slow = sent.node
                    chosen[other].append(unit)
        for node in sorted(chosen):
            self._racing = True
            for batch in _batches(chosen[node], _rows_a_message(self._wire)):
                await self._send_message(node, batch, hedge=True)

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
        return any(self._asked(tag, unit) for tag in self._sent)

    def _asked(self, tag: int, unit: _Unit) -> bool:
        return tag in self._call.outstanding and self._holds(tag, unit)

    def _holds(self, tag: int, unit: _Unit) -> bool:
        return any(each is unit for each in self._sent[tag].units)

    def _note_takeover(self, unit: _Unit, lost: NodeId, by: NodeId, reason: str) -> None:
        if lost == by:
            return
        self._counters.taken_over(lost, self._layer, unit.expert)
        for owner in self._owners(unit):
            scope = self._scope(owner)
            scope.times.taken_over(self._layer)
            scope.takeovers.setdefault(
                (lost, by), Takeover(lost=lost, by=by, reason=_slug(reason), step=scope.step, layer=self._layer)
            )

    def _note_left(self, unit: _Unit) -> None:
        """Of nodes that left, as the authority said: whoever answers takes over from those that were asked before."""
        for left in self._placement.left_hosts((self._layer, unit.expert)):
            scopes = (self._scope(owner) for owner in self._owners(unit))
            if any(left in scope.asked and all(left != lost for lost, _ in scope.takeovers) for scope in scopes):
                unit.lost.setdefault(left, "gone")

    def _scope(self, owner: int) -> RequestScope:
        return self._shares[owner].scope

    def _owners(self, unit: _Unit) -> set[int]:
        """The shares that have rows in this unit."""
        return set(np.searchsorted(self._ends, unit.rows, side="right").tolist())

    def _give_up(self, units: list[_Unit], why: str) -> None:
        """Fail who has rows in these units; what only they wait for is not waited for."""
        for owner in sorted({owner for unit in units for owner in self._owners(unit)} - self.failed.keys()):
            self.failed[owner] = self._unavailable([unit for unit in units if owner in self._owners(unit)], why)
        for unit in self._units:
            if not unit.done and self._owners(unit) <= self.failed.keys():
                unit.done = unit.given_up = True
                self.blocks[unit.work][unit.start : unit.start + len(unit.rows)] = 0.0

    def _unavailable(self, units: list[_Unit], why: str) -> ExpertUnavailable:
        missing = sorted({unit.expert for unit in units})
        silent = {sent.node for tag, sent in self._sent.items() if any(self._asked(tag, unit) for unit in units)}
        tried = dict.fromkeys(silent, "not answered yet")
        tried |= {node: reason for unit in units for node, reason in unit.lost.items()}
        named = ", ".join(str(expert) for expert in missing)
        asked = "; ".join(f"{node}: {reason}" for node, reason in sorted(tried.items())) or "no node serves them"
        return ExpertUnavailable(
            f"layer {self._layer}: no answer for expert {named} ({asked}; {why})",
            experts=tuple((self._layer, expert) for expert in missing),
        )


def _units(work: Sequence[ExpertRows], most: int) -> list[_Unit]:
    return [
        _Unit(at, each.expert, each.rows[start : start + most], start)
        for at, each in enumerate(work)
        for start in range(0, len(each.rows), most)
    ]


def _needed(units: list[_Unit], count: int) -> NDArray[np.uint32]:
    """The rows, of so many, that these units need: each once, ascending."""
    if count == 1:
        return units[0].rows
    return np.unique(np.concatenate([unit.rows for unit in units]))


def _places(needed: NDArray[np.uint32], rows: NDArray[np.uint32], count: int) -> NDArray[np.uint32]:
    """Where among the needed rows, of so many in all, these stand."""
    if len(needed) == count:
        return rows
    return np.searchsorted(needed, rows).astype(np.uint32)


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
    if (answer.parts, answer.manifest, answer.layer) != (asked.parts, asked.manifest, asked.layer):
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
