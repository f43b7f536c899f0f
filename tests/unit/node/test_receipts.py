"""A node's signed word: over exactly what was used, once, in an unbroken chain."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sawyer import durable
from sawyer.errors import RefusedError, RequestConflict, VerificationError
from sawyer.identity.envelope import check_signed
from sawyer.identity.keys import Key
from sawyer.ids import NetworkId, NodeId, RequestId
from sawyer.ledger.merkle import leaf_hash
from sawyer.node import receipts
from sawyer.node.receipts import Block, ReceiptLog
from sawyer.router.metering import Meter, runs
from sawyer.schemas.events import NO_HASH, RECEIPT_KIND, WorkReceipted
from sawyer.schemas.messages import Finish
from sawyer.schemas.signed import Signed
from sawyer.schemas.tensors import block_leaf

NODE = NodeId("node-a")
MODEL = "austen"
MANIFEST = "ab" * 32
REQUEST = RequestId("0f" * 16)

NewLog = Callable[[], ReceiptLog]


def request(number: int) -> RequestId:
    return RequestId(f"{number:032x}")


def block(layer: int, expert: int, rows: int = 1) -> Block:
    """A block whose leaf names it."""
    return Block(layer, expert, rows, leaf_hash(f"{layer} {expert}".encode()))


def finish(*used: tuple[int, int], of: RequestId = REQUEST) -> Finish:
    return Finish(request=of, model=MODEL, used=used)


def give(log: ReceiptLog, *sequences: int, of: RequestId = REQUEST) -> None:
    """Answers of one row of expert 0 and two of expert 1, in layer = sequence."""
    for sequence in sequences:
        log.note(of, MANIFEST, sequence, (block(sequence, 0), block(sequence, 1, rows=2)))


def receipt_of(log: ReceiptLog, asked: Finish) -> WorkReceipted:
    signed = log.finish(asked, MANIFEST)
    assert signed is not None
    return signed.body


def test_receipt_is_over_exactly_the_used_answers(new_log: NewLog, keys: dict[str, Key]) -> None:
    log = new_log()
    give(log, 1, 2, 3, 4)
    signed = log.finish(finish((1, 2), (4, 4)), MANIFEST)
    assert signed is not None
    check_signed(signed, RECEIPT_KIND)
    assert (signed.signature.by, signed.signature.key_id) == (NODE, keys["node-a"].id)
    body = signed.body
    assert (body.node, body.request, body.model, body.manifest) == (NODE, REQUEST, MODEL, MANIFEST)
    assert (body.rows, body.blocks) == (9, 6)
    assert body.experts == ((1, 0, 1), (1, 1, 2), (2, 0, 1), (2, 1, 2), (4, 0, 1), (4, 1, 2))
    other = new_log()
    give(other, 1, 2, 3, 4)
    assert receipt_of(other, finish((1, 4))).root != body.root


def test_rows_of_one_expert_are_added_up_over_answers(new_log: NewLog) -> None:
    log = new_log()
    for sequence, rows in ((1, 3), (2, 4)):
        log.note(REQUEST, MANIFEST, sequence, (block(7, 5, rows),))
    assert receipt_of(log, finish((1, 2))).experts == ((7, 5, 7),)


def test_same_finish_gives_the_same_receipt_and_signs_no_second(new_log: NewLog) -> None:
    log = new_log()
    give(log, 1, 2)
    first = log.finish(finish((1, 2)), MANIFEST)
    assert log.finish(finish((1, 2)), MANIFEST) == first
    give(log, 1, of=request(2))
    assert receipt_of(log, finish((1, 1), of=request(2))).counter == 2


def test_other_finish_of_a_signed_request_is_a_conflict(new_log: NewLog) -> None:
    log = new_log()
    give(log, 1, 2)
    log.finish(finish((1, 1)), MANIFEST)
    for other in (finish((1, 2)), finish((2, 2)), finish()):
        with pytest.raises(RequestConflict):
            log.finish(other, MANIFEST)


@pytest.mark.parametrize("used", [((3, 3),), ((1, 3),), ((1, 1), (9, 9)), ((2**40, 2**40),)])
def test_answers_that_were_not_given_are_refused_and_nothing_is_signed(
    new_log: NewLog, used: tuple[tuple[int, int], ...]
) -> None:
    log = new_log()
    give(log, 1, 2)
    with pytest.raises(RefusedError, match="gave no answer"):
        log.finish(finish(*used), MANIFEST)
    assert receipt_of(log, finish((1, 2))).counter == 1


@pytest.mark.parametrize(
    "used",
    [((2, 1),), ((1, 2), (2, 3)), ((1, 2), (1, 2)), ((3, 3), (1, 1)), ((1, 3), (2, 2)), ((1, 2**40),)],
)
def test_runs_that_count_an_answer_twice_or_run_backwards_are_refused(
    new_log: NewLog, used: tuple[tuple[int, int], ...]
) -> None:
    log = new_log()
    give(log, 1, 2, 3)
    with pytest.raises(RefusedError, match="not a run"):
        log.finish(finish(*used), MANIFEST)


def test_unknown_request_and_other_weights_are_refused(new_log: NewLog) -> None:
    log = new_log()
    give(log, 1)
    with pytest.raises(RefusedError, match="holds no answers"):
        log.finish(finish((1, 1), of=request(9)), MANIFEST)
    with pytest.raises(RefusedError, match="holds no answers"):
        log.finish(finish((1, 1)), "cd" * 32)


def test_empty_finish_forgets_without_a_receipt(new_log: NewLog) -> None:
    log = new_log()
    give(log, 1)
    assert log.open_requests == 1
    assert log.finish(finish(), MANIFEST) is None
    assert log.finish(finish(), MANIFEST) is None
    assert log.open_requests == 0
    with pytest.raises(RefusedError):
        log.finish(finish((1, 1)), MANIFEST)


def test_answer_after_the_receipt_opens_nothing(new_log: NewLog) -> None:
    log = new_log()
    give(log, 1)
    log.finish(finish((1, 1)), MANIFEST)
    give(log, 2)
    assert log.open_requests == 0


def test_receipts_form_a_chain_that_survives_a_restart(new_log: NewLog) -> None:
    chain: list[Signed[WorkReceipted]] = []
    before, after = new_log(), new_log()
    for number, log in enumerate((before, before, after, after), start=1):
        give(log, 1, of=request(number))
        signed = log.finish(finish((1, 1), of=request(number)), MANIFEST)
        assert signed is not None
        chain.append(signed)
    assert [each.body.counter for each in chain] == [1, 2, 3, 4]
    hashes = [hashlib.sha256(each.canonical()).hexdigest() for each in chain]
    assert [each.body.previous for each in chain] == [NO_HASH, *hashes[:-1]]


def test_state_is_on_disk_before_the_receipt_is_out(new_log: NewLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that dies while it saves must not have shown a receipt whose number it will use again."""
    log = new_log()
    give(log, 1)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            log.finish(finish((1, 1)), MANIFEST)
    assert receipt_of(log, finish((1, 1))).counter == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"{}",
        b'{"counter": 1}',
        b'{"counter": 0, "last": "' + b"00" * 32 + b'"}',
        b'{"counter": -1, "last": "' + b"00" * 32 + b'"}',
        b'{"counter": "1", "last": "' + b"00" * 32 + b'"}',
        b'{"counter": 1, "last": "not a hash"}',
    ],
)
def test_corrupt_state_is_named_and_never_starts_again(new_log: NewLog, content: bytes) -> None:
    log = new_log()
    log.state.parent.mkdir(parents=True)
    log.state.write_bytes(content)
    give(log, 1)
    with pytest.raises(VerificationError, match="receipt counter") as error:
        log.finish(finish((1, 1)), MANIFEST)
    assert log.state.name in error.value.message
    assert log.state.read_bytes() == content


def test_oldest_open_request_is_forgotten_beyond_the_limit(new_log: NewLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "MAX_OPEN_REQUESTS", 3)
    log = new_log()
    for number in range(1, 6):
        give(log, 1, of=request(number))
        assert log.open_requests <= 3
    for gone in (1, 2):
        with pytest.raises(RefusedError):
            log.finish(finish((1, 1), of=request(gone)), MANIFEST)
    assert [receipt_of(log, finish((1, 1), of=request(number))).counter for number in (3, 4, 5)] == [1, 2, 3]


def test_answers_of_one_request_are_bounded(new_log: NewLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "MAX_ANSWERS_A_REQUEST", 2)
    log = new_log()
    give(log, 1, 2, 3)
    with pytest.raises(RefusedError, match="answer 3"):
        log.finish(finish((3, 3)), MANIFEST)
    assert receipt_of(log, finish((1, 2))).blocks == 4


def test_kept_receipts_are_bounded(new_log: NewLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "MAX_KEPT_RECEIPTS", 1)
    log = new_log()
    for number in (1, 2):
        give(log, 1, of=request(number))
        log.finish(finish((1, 1), of=request(number)), MANIFEST)
    with pytest.raises(RefusedError, match="holds no answers"):
        log.finish(finish((1, 1), of=request(1)), MANIFEST)
    assert receipt_of(log, finish((1, 1), of=request(2))).counter == 2


ANSWER = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), min_size=1, max_size=4, unique_by=lambda e: e[0])
"""(expert, rows) of one answer."""


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=st.lists(ANSWER, min_size=1, max_size=6), data=st.data())
def test_root_and_rows_are_those_of_the_routers_meter(
    answers: list[list[tuple[int, int]]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, keys
) -> None:
    """Node and router never speak of digests: both compute them from the bytes that went over the wire."""
    state = tmp_path_factory.mktemp("state") / "node-a.json"
    log = ReceiptLog(NetworkId("sawyer-net/3f9a1c22"), NODE, keys["node-a"], state)
    meter, random = Meter(REQUEST, MODEL), np.random.default_rng(1)
    numbers = range(1, len(answers) + 1)
    used = data.draw(st.sets(st.sampled_from(numbers), min_size=1))
    kept = []
    for sequence, answer in zip(numbers, answers, strict=True):
        blocks, leaves = [], []
        for expert, rows in sorted(answer):
            inputs, output = (random.standard_normal((rows, 4)).astype(np.float16) for _ in range(2))
            leaf = leaf_hash(block_leaf(sequence, expert, inputs, output))
            blocks.append(Block(sequence, expert, rows, leaf))
            leaves.append(leaf)
        log.note(REQUEST, MANIFEST, sequence, tuple(blocks))
        if sequence in used:
            kept.append((sequence, tuple(leaves), sum(rows for _, rows in answer)))
    for sequence, leaves, rows in reversed(kept):
        meter.used(NODE, sequence, leaves, rows)
    assert meter.finish(NODE).used == tuple(runs(sorted(used)))
    signed = log.finish(meter.finish(NODE), MANIFEST)
    assert signed is not None
    meter.check(signed, NODE, keys["node-a"].id, MANIFEST)


def test_log_with_no_folder_yet_makes_it(new_log: NewLog) -> None:
    log = new_log()
    assert not log.state.parent.exists()
    give(log, 1)
    receipt_of(log, finish((1, 1)))
    assert [path.name for path in Path(log.state.parent).iterdir()] == [log.state.name]
