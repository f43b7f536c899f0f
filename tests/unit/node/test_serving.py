"""A node under fire: every bad message gets one typed refusal, and after each the node serves on."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.protocol import Message
from sawyer.errors import Busy, MalformedMessage, NoAnswer, NobodyServes, SawyerError, UnknownExpert, WrongManifest
from sawyer.identity.keys import Key
from sawyer.ids import ModelId, NodeId, RequestId
from sawyer.ledger.merkle import leaf_hash
from sawyer.node import serving
from sawyer.node.health import Health
from sawyer.node.receipts import ReceiptLog
from sawyer.node.serving import ServedModel, Serving
from sawyer.router.metering import Meter
from sawyer.schemas import subjects, tensors
from sawyer.schemas.tensors import ActivationError, ActivationReply, ActivationRequest, Part, Rows

NODE, MODEL, MANIFEST = NodeId("node-a"), ModelId("austen"), "ab" * 32
REQUEST = RequestId("0f" * 16)
HIDDEN = 4
PATIENCE_S = 10.0
LAYER = 2
CRASHES, MAKES_NAN, MAKES_INF, OVERFLOWS = 90, 91, 92, 93
BIG = 1e6


class FakePool:
    """Experts as arithmetic: twice the rows plus the expert's number. A closed gate holds every expert back."""

    provider = "FakeExecutionProvider"
    hidden = HIDDEN
    row_exact = True
    hosted = tuple((LAYER, expert) for expert in (0, 1, 3, CRASHES, MAKES_NAN, MAKES_INF, OVERFLOWS))

    def hosts(self, pair: tuple[int, int]) -> bool:
        return pair in self.hosted

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.at_work = threading.Semaphore(0)

    def is_loaded(self, layer: int, expert: int) -> bool:
        return True

    def run(self, layer: int, expert: int, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        assert rows.dtype == np.float32
        assert (layer, expert) in self.hosted
        self.at_work.release()
        assert self.gate.wait(PATIENCE_S)
        match expert:
            case 90:
                raise RuntimeError("secret internals")
            case 91:
                return rows * np.float32("nan")
            case 92:
                return np.full_like(rows, np.inf)
            case 93:
                return np.full_like(rows, BIG)
        return rows * 2 + np.float32(expert)


@dataclasses.dataclass
class Node:
    """A serving node, and somebody who asks it."""

    serving: Serving
    pool: FakePool
    receipts: ReceiptLog
    health: Health
    bus: MemoryBus

    async def ask(self, raw: bytes) -> bytes:
        return await self.bus.request(subjects.expert(NODE, MODEL, LAYER, 0), raw, PATIENCE_S)

    async def answer(self, request: ActivationRequest) -> ActivationReply | ActivationError:
        return tensors.decode_answer(await self.ask(tensors.encode_request(request)))

    async def until_busy(self) -> None:
        """Returns when the worker thread holds a message."""
        assert await asyncio.to_thread(self.pool.at_work.acquire, timeout=PATIENCE_S)


@pytest.fixture
async def node(new_log: Callable[[], ReceiptLog]) -> AsyncIterator[Node]:
    network, pool, receipts, health = MemoryNetwork(), FakePool(), new_log(), Health()
    served = ServedModel(MODEL, MANIFEST, HIDDEN, pool)  # type: ignore[arg-type]
    made = Serving(MemoryBus(network), NODE, served, receipts, health)
    await made.start()
    yield Node(made, pool, receipts, health, MemoryBus(network))
    pool.gate.set()
    await made.close()


def rows_of(count: int = 3, dtype: type = np.float16) -> Rows:
    return np.arange(count * HIDDEN, dtype=dtype).reshape(count, HIDDEN)


def request_of(
    *work: tuple[int, list[int]], rows: Rows | None = None, request: str = REQUEST, sequence: int = 1, **changes: object
) -> ActivationRequest:
    sent = rows_of() if rows is None else rows
    made = ActivationRequest(
        parts=(Part(request, sequence, len(sent)),), manifest=bytes.fromhex(MANIFEST)[:8], layer=LAYER, rows=sent,
        work=tuple((expert, np.array(indices, np.uint32)) for expert, indices in work or ((0, [0, 2]), (3, [1]))),
        deadline_ms=60_000,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


async def expect_served(node: Node, sequence: int = 77) -> None:
    answer = await node.answer(request_of((1, [0, 2]), sequence=sequence))
    assert isinstance(answer, ActivationReply)
    assert answer.parts[0].sequence == sequence
    np.testing.assert_array_equal(answer.blocks[0][1], rows_of()[[0, 2]] * 2 + 1)


async def test_every_expert_answers_for_its_own_rows(node: Node) -> None:
    answer = await node.answer(request_of())
    assert isinstance(answer, ActivationReply)
    assert (answer.parts, answer.layer) == ((Part(REQUEST, 1, 3),), LAYER)
    assert [expert for expert, _ in answer.blocks] == [0, 3]
    rows = rows_of()
    np.testing.assert_array_equal(answer.blocks[0][1], rows[[0, 2]] * 2)
    np.testing.assert_array_equal(answer.blocks[1][1], rows[[1]] * 2 + 3)
    assert (node.health.answers, node.health.rows, node.health.refused) == (1, 3, 0)
    assert node.serving.provider == "FakeExecutionProvider"


BAD_BYTES = {
    "empty": lambda raw: b"",
    "garbage": lambda raw: b"garbage " * 40,
    "wrong magic": lambda raw: b"X" + raw[1:],
    "other version": lambda raw: raw[:4] + b"\x09" + raw[5:],
    "truncated header": lambda raw: raw[: tensors.HEADER_BYTES - 1],
    "truncated rows": lambda raw: raw[:-1],
    "trailing bytes": lambda raw: raw + b"\x00",
    "a reply": lambda raw: raw[:5] + b"\x02" + raw[6:],
}


@pytest.mark.parametrize("bend", BAD_BYTES.values(), ids=BAD_BYTES.keys())
async def test_malformed_message_is_refused_and_the_node_serves_on(node: Node, bend: Callable[[bytes], bytes]) -> None:
    answer = tensors.decode_answer(await node.ask(bend(tensors.encode_request(request_of()))))
    assert isinstance(answer, ActivationError)
    assert isinstance(answer.error, MalformedMessage)
    assert node.health.refused == 1
    await expect_served(node)


REFUSED: dict[str, tuple[ActivationRequest, type[SawyerError], str]] = {
    "wider rows": (request_of(rows=np.zeros((3, HIDDEN + 1), np.float16)), MalformedMessage, "5 values"),
    "narrower rows": (request_of(rows=np.zeros((3, 1), np.float16)), MalformedMessage, "1 values"),
    "other weights": (request_of(manifest=bytes(8)), WrongManifest, "manifest"),
    "expert out of range": (request_of((999, [0])), UnknownExpert, "999"),
    "expert elsewhere": (request_of((0, [0]), (2, [1])), UnknownExpert, "expert 2"),
    "layer elsewhere": (request_of(layer=LAYER + 1), UnknownExpert, "layer 3"),
    "NaN rows": (request_of(rows=np.full((3, HIDDEN), np.nan, np.float16)), MalformedMessage, "NaN"),
    "infinite rows": (request_of(rows=np.full((3, HIDDEN), -np.inf, np.float32)), MalformedMessage, "NaN or infinity"),
    "past its deadline": (request_of(deadline_ms=0), NoAnswer, "deadline of 0 ms"),
    "an expert that crashes": (request_of((CRASHES, [0])), SawyerError, "RuntimeError"),
    "an expert that makes NaN": (request_of((0, [1]), (MAKES_NAN, [0])), SawyerError, "NaN"),
    "an expert that makes infinity": (request_of((MAKES_INF, [0])), SawyerError, "NaN or infinity"),
}


@pytest.mark.parametrize(("request_", "error", "says"), REFUSED.values(), ids=REFUSED.keys())
async def test_message_that_cannot_be_served_is_refused_typed_and_the_node_serves_on(
    node: Node, request_: ActivationRequest, error: type[SawyerError], says: str
) -> None:
    answer = await node.answer(request_)
    assert isinstance(answer, ActivationError)
    assert type(answer.error) is error
    assert says in answer.error.message
    assert "secret" not in answer.error.message
    assert (node.health.answers, node.health.refused) == (0, 1)
    assert node.receipts.open_requests == 0, "what was not answered is in no receipt"
    await expect_served(node)


@pytest.mark.parametrize(
    ("dtype", "reply_f32", "expected"),
    [(np.float16, False, np.float16), (np.float16, True, np.float32), (np.float32, False, np.float32)],
)
async def test_answer_is_as_wide_as_the_rows_or_as_asked(
    node: Node, dtype: type, reply_f32: bool, expected: type
) -> None:
    rows = rows_of(dtype=dtype)
    answer = await node.answer(request_of((3, [0, 1, 2]), rows=rows, reply_f32=reply_f32))
    assert isinstance(answer, ActivationReply)
    assert answer.blocks[0][1].dtype == expected
    np.testing.assert_array_equal(answer.blocks[0][1], rows.astype(np.float32) * 2 + 3)


async def test_value_that_does_not_fit_float16_makes_the_whole_answer_float32(node: Node) -> None:
    answer = await node.answer(request_of((0, [1]), (OVERFLOWS, [0])))
    assert isinstance(answer, ActivationReply)
    assert {block.dtype for _, block in answer.blocks} == {np.dtype(np.float32)}
    assert float(answer.blocks[1][1].max()) == BIG
    await expect_served(node)


async def test_full_queue_is_refused_at_once_and_what_was_taken_is_answered(
    new_log: Callable[[], ReceiptLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "QUEUE_LIMIT", 1)
    network, pool, health = MemoryNetwork(), FakePool(), Health()
    served = ServedModel(MODEL, MANIFEST, HIDDEN, pool)  # type: ignore[arg-type]
    receipts = new_log()
    made = Serving(MemoryBus(network), NODE, served, receipts, health)
    node = Node(made, pool, receipts, health, MemoryBus(network))
    await node.serving.start()
    pool.gate.clear()
    try:
        first = asyncio.create_task(node.answer(request_of(sequence=1)))
        await node.until_busy()
        second = asyncio.create_task(node.answer(request_of(sequence=2)))
        third = await asyncio.create_task(node.answer(request_of(sequence=3)))
        assert isinstance(third, ActivationError)
        assert type(third.error) is Busy
        assert node.serving.queue == 1
        pool.gate.set()
        answers = await asyncio.wait_for(asyncio.gather(first, second), PATIENCE_S)
        assert [type(each) for each in answers] == [ActivationReply] * 2
        await expect_served(node)
    finally:
        pool.gate.set()
        await node.serving.stop()


async def test_requests_that_waited_for_one_expert_run_together_and_each_gets_its_own_answer(node: Node) -> None:
    node.pool.gate.clear()
    first = asyncio.create_task(node.answer(request_of((3, [0]), sequence=1)))
    await node.until_busy()
    waiting = [
        asyncio.create_task(node.answer(request_of((0, [number]), sequence=2 + number, request=f"{number:032x}")))
        for number in range(3)
    ]
    late = asyncio.create_task(node.answer(request_of((0, [0]), sequence=9, deadline_ms=0)))
    nan = asyncio.create_task(
        node.answer(request_of((0, [0]), sequence=8, rows=np.full((1, HIDDEN), np.nan, np.float16)))
    )
    async with asyncio.timeout(PATIENCE_S):
        while node.serving.queue < 5:  # noqa: ASYNC110  (one turn of the loop after another)
            await asyncio.sleep(0)
        node.pool.gate.set()
        await first
        answers = await asyncio.gather(*waiting)
        refusals = await asyncio.gather(late, nan)
    for number, answer in enumerate(answers):
        assert isinstance(answer, ActivationReply)
        assert answer.parts[0][:2] == (f"{number:032x}", 2 + number)
        np.testing.assert_array_equal(answer.blocks[0][1], rows_of()[[number]] * 2)
    assert [type(each) for each in refusals] == [ActivationError] * 2
    assert (node.health.runs, node.health.answers, node.health.refused) == (2, 4, 2)
    assert node.receipts.open_requests == 4, "each request has its own receipt"


async def test_turn_that_breaks_is_refused_to_all_who_were_in_it_and_the_node_serves_on(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise MemoryError

    node.pool.gate.clear()
    first = asyncio.create_task(node.answer(request_of((3, [0]), sequence=1)))
    await node.until_busy()
    both = [asyncio.create_task(node.answer(request_of((0, [0]), (1, [0]), sequence=2 + each))) for each in (0, 1)]
    async with asyncio.timeout(PATIENCE_S):
        while node.serving.queue < 2:  # noqa: ASYNC110  (one turn of the loop after another)
            await asyncio.sleep(0)
        with monkeypatch.context() as patched:
            patched.setattr(serving, "work", breaks)
            node.pool.gate.set()
            await first
            answers = await asyncio.gather(*both)
    for answer in answers:
        assert isinstance(answer, ActivationError)
        assert "MemoryError" in answer.error.message
    assert not node.serving.worker.done()
    await expect_served(node)


async def test_where_company_changes_bits_nothing_is_joined(
    new_log: Callable[[], ReceiptLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakePool, "row_exact", False)
    network, pool, health, receipts = MemoryNetwork(), FakePool(), Health(), new_log()
    served = ServedModel(MODEL, MANIFEST, HIDDEN, pool)  # type: ignore[arg-type]
    node = Node(Serving(MemoryBus(network), NODE, served, receipts, health), pool, receipts, health, MemoryBus(network))
    await node.serving.start()
    pool.gate.clear()
    asked = [asyncio.create_task(node.answer(request_of((0, [0]), sequence=number))) for number in (1, 2, 3)]
    await node.until_busy()
    pool.gate.set()
    async with asyncio.timeout(PATIENCE_S):
        assert [type(each) for each in await asyncio.gather(*asked)] == [ActivationReply] * 3
    await node.serving.stop()
    assert health.runs == 3


async def test_flood_of_malformed_messages_is_one_line_in_the_log_and_bounded_refusals(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serving, "REFUSALS_LIMIT", 5)
    refused: list[Message] = []
    await node.bus.subscribe("told", refused.append)
    for _ in range(500):
        node.serving._enqueue(Message("x", b"garbage", "told"))
    await expect_served(node)
    assert node.health.refused == 500
    assert len(refused) == 5
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("limit", ["MAX_ROWS", "MAX_REPLY_BYTES"])
async def test_answer_that_fits_no_reply_is_refused_before_it_is_computed(
    node: Node, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request_of((0, [0, 1, 2]), (1, [0, 1]))
    if limit == "MAX_ROWS":
        asked = request_of(*((expert, list(range(20_000))) for expert in (0, 1, 3, OVERFLOWS)), rows=rows_of(20_000))
    else:
        monkeypatch.setattr(serving, limit, 5 * HIDDEN * 2 - 1)
    answer = await node.answer(asked)
    assert isinstance(answer, ActivationError)
    assert isinstance(answer.error, MalformedMessage)
    assert "the answer would hold" in answer.error.message
    assert node.health.runs == 0
    await expect_served(node)


async def test_answer_that_grows_to_float32_and_fits_no_reply_is_refused(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MAX_REPLY_BYTES", 2 * HIDDEN * 4 - 1)
    answer = await node.answer(request_of((OVERFLOWS, [0, 1])))
    assert isinstance(answer, ActivationError)
    assert isinstance(answer.error, MalformedMessage)
    assert node.receipts.open_requests == 0
    monkeypatch.undo()
    await expect_served(node)


async def test_close_answers_nothing_that_waits(node: Node) -> None:
    node.pool.gate.clear()
    asked = [asyncio.create_task(node.answer(request_of(sequence=number))) for number in (1, 2)]
    await node.until_busy()
    node.pool.gate.set()
    await node.serving.close()
    assert node.health.answers == 0
    with pytest.raises(NobodyServes):
        await node.answer(request_of(sequence=3))
    for each in asked:
        each.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_deadline_counts_the_time_in_the_queue(node: Node) -> None:
    node.pool.gate.clear()
    first = asyncio.create_task(node.answer(request_of(sequence=1)))
    await node.until_busy()
    second = asyncio.create_task(node.answer(request_of(sequence=2, deadline_ms=1)))
    third = asyncio.create_task(node.answer(request_of(sequence=3)))
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait({second}, timeout=0.01)  # longer than its deadline
    node.pool.gate.set()
    answers = await asyncio.wait_for(asyncio.gather(first, second, third), PATIENCE_S)
    assert [type(each) for each in answers] == [ActivationReply, ActivationError, ActivationReply]


async def test_stop_answers_what_waits_and_takes_no_more(node: Node) -> None:
    node.pool.gate.clear()
    taken = [asyncio.create_task(node.answer(request_of(sequence=number))) for number in (1, 2, 3)]
    await node.until_busy()
    stopping = asyncio.create_task(node.serving.stop())
    for _ in range(5):
        await asyncio.sleep(0)
    with pytest.raises(NobodyServes):
        await node.answer(request_of(sequence=4))
    node.pool.gate.set()
    answers = await asyncio.wait_for(asyncio.gather(*taken), PATIENCE_S)
    assert [type(each) for each in answers] == [ActivationReply] * 3
    await asyncio.wait_for(stopping, PATIENCE_S)


async def test_message_without_a_reply_subject_is_not_worked_on(node: Node) -> None:
    heard: list[Message] = []
    await node.bus.subscribe(">", heard.append)
    subject = subjects.expert(NODE, MODEL, LAYER, 0)
    await node.bus.publish(subject, tensors.encode_request(request_of()))
    await node.bus.publish(subject, b"garbage")
    await expect_served(node)
    assert node.health.answers == 1
    assert sum(message.subject == subject for message in heard) == 3


async def test_receipt_over_the_answers_is_the_one_the_router_expects(node: Node, keys: dict[str, Key]) -> None:
    """From bytes to receipt: what the node notes and what the router meters have one root."""
    meter = Meter(REQUEST, MODEL)
    cases = [request_of(sequence=1), request_of((1, [0]), (OVERFLOWS, [1, 2]), sequence=2), request_of(sequence=3)]
    for asked in cases[:2]:
        answer = await node.answer(asked)
        assert isinstance(answer, ActivationReply)
        leaves = [
            leaf_hash(tensors.block_leaf(LAYER, expert, asked.rows[indices], block))
            for (expert, indices), (_, block) in zip(asked.work, answer.blocks, strict=True)
        ]
        meter.used(NODE, asked.parts[0].sequence, tuple(leaves), sum(len(block) for _, block in answer.blocks))
    await node.answer(cases[2])  # answered, and not used
    receipt = node.receipts.finish(meter.finish(NODE), MANIFEST)
    assert receipt is not None
    meter.check(receipt, NODE, keys["node-a"].id, MANIFEST)
    assert receipt.body.experts == ((LAYER, 0, 2), (LAYER, 1, 1), (LAYER, 3, 1), (LAYER, OVERFLOWS, 2))


async def test_each_request_of_a_message_gets_a_receipt_as_if_it_had_come_alone(
    node: Node, keys: dict[str, Key]
) -> None:
    """Three requests in one message, of which one has rows for both experts, and one has two rows."""
    names = [f"{number:032x}" for number in (1, 2, 3)]
    parts = tuple(
        Part(RequestId(name), 4 + at, rows) for at, (name, rows) in enumerate(zip(names, (1, 2, 1), strict=True))
    )
    rows = np.concatenate([rows_of(), rows_of()[:1] + 5])
    asked = dataclasses.replace(request_of((0, [0, 2, 3]), (1, [0, 1]), rows=rows), parts=parts)
    answer = await node.answer(asked)
    assert isinstance(answer, ActivationReply)
    assert answer.parts == parts
    work = {
        names[0]: [(0, [0], [0]), (1, [0], [0])],
        names[1]: [(0, [2], [1]), (1, [1], [1])],
        names[2]: [(0, [3], [2])],
    }
    blocks = dict(answer.blocks)
    for part in parts:
        meter = Meter(part.request, MODEL)
        leaves = [
            leaf_hash(tensors.block_leaf(LAYER, expert, rows[own], blocks[expert][at]))
            for expert, own, at in work[part.request]
        ]
        meter.used(NODE, part.sequence, tuple(leaves), len(leaves))
        receipt = node.receipts.finish(meter.finish(NODE), MANIFEST)
        assert receipt is not None
        meter.check(receipt, NODE, keys["node-a"].id, MANIFEST)


async def test_asker_who_is_gone_stops_nothing(node: Node) -> None:
    await node.bus.publish(subjects.expert(NODE, MODEL, LAYER, 0), tensors.encode_request(request_of()), "nobody.there")
    await node.bus.publish(subjects.expert(NODE, MODEL, LAYER, 0), b"garbage", "nobody.there")
    await expect_served(node)
