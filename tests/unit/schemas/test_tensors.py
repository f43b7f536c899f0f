"""The activation codec on valid messages: what goes in comes out, byte for byte, and limits hold at their edges."""

from __future__ import annotations

import dataclasses
import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.errors import ExpertUnavailable, MalformedMessage, UnknownExpert
from sawyer.ids import RequestId
from sawyer.schemas import tensors
from sawyer.schemas.tensors import ActivationError, ActivationReply, ActivationRequest, Dtype, Part, Rows

REQUEST = RequestId("0f" * 16)


def request_of(rows: Rows, *work: tuple[int, list[int]], layer: int = 2) -> ActivationRequest:
    return ActivationRequest(
        parts=(Part(REQUEST, 7, len(rows)),), manifest=bytes(range(8)), layer=layer, rows=rows,
        work=tuple((expert, np.array(indices, dtype=np.uint32)) for expert, indices in work), deadline_ms=250,
    )  # fmt: skip


def reply_of(*blocks: tuple[int, Rows], layer: int = 2) -> ActivationReply:
    return ActivationReply(
        parts=(Part(REQUEST, 7, 2),), manifest=bytes(range(8)), layer=layer, blocks=blocks, compute_us=90, waited_us=10
    )


@given(st.data())
def test_request_round_trips(any_request: st.SearchStrategy[ActivationRequest], data: st.DataObject) -> None:
    sent = data.draw(any_request)
    raw = tensors.encode_request(sent)
    got = tensors.decode_request(raw)
    plain = [field.name for field in dataclasses.fields(sent) if field.name not in ("rows", "work")]
    assert [getattr(got, name) for name in plain] == [getattr(sent, name) for name in plain]
    assert (got.rows.dtype, got.rows.shape, got.rows.tobytes()) == (
        sent.rows.dtype,
        sent.rows.shape,
        sent.rows.tobytes(),
    )
    assert [(e, i.tolist()) for e, i in got.work] == [(e, i.tolist()) for e, i in sent.work]
    assert tensors.encode_request(got) == raw


@given(st.data())
def test_reply_round_trips(any_reply: st.SearchStrategy[ActivationReply], data: st.DataObject) -> None:
    sent = data.draw(any_reply)
    raw = tensors.encode_reply(sent)
    got = tensors.decode_answer(raw)
    assert isinstance(got, ActivationReply)
    plain = [field.name for field in dataclasses.fields(sent) if field.name != "blocks"]
    assert [getattr(got, name) for name in plain] == [getattr(sent, name) for name in plain]
    assert [(e, b.dtype, b.shape, b.tobytes()) for e, b in got.blocks] == [
        (e, b.dtype, b.shape, b.tobytes()) for e, b in sent.blocks
    ]
    assert tensors.encode_reply(got) == raw


def test_decoded_rows_are_read_only_views_of_the_message() -> None:
    raw = tensors.encode_request(request_of(np.ones((2, 3), np.float32), (1, [0]), (4, [0, 1])))
    got = tensors.decode_request(raw)
    window = np.frombuffer(raw, np.uint8)
    assert np.shares_memory(got.rows, window)
    assert all(np.shares_memory(indices, window) for _, indices in got.work)
    with pytest.raises(ValueError, match="read-only"):
        got.rows[0, 0] = 5


def test_rows_that_are_not_contiguous_are_sent_in_row_order() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 4).T[:, ::2]
    got = tensors.decode_request(tensors.encode_request(request_of(rows, (0, [0]))))
    assert got.rows.tolist() == rows.tolist()


def test_error_reply_keeps_its_type_and_facts() -> None:
    error = ExpertUnavailable("gone", experts=((1, 2), (3, 4)), hint="wait")
    got = tensors.decode_answer(tensors.encode_error(error))
    assert isinstance(got, ActivationError)
    assert isinstance(got.error, ExpertUnavailable)
    assert (got.error.message, got.error.hint, got.error.experts) == ("gone", "wait", ((1, 2), (3, 4)))


def test_error_reply_of_a_very_long_message_is_cut_to_what_a_reader_accepts() -> None:
    got = tensors.decode_answer(tensors.encode_error(UnknownExpert("x" * 100_000)))
    assert isinstance(got, ActivationError)
    assert (type(got.error), len(got.error.message)) == (UnknownExpert, 4096)


@pytest.mark.parametrize(
    ("details", "experts"),
    [
        ({"experts": "1:2 3:4"}, ((1, 2), (3, 4))),
        ({"experts": "a:b"}, ()),
        ({"experts": "1:2:3"}, ()),
        ({"experts": "9" * 5000 + ":1"}, ()),
        ({}, ()),
    ],
)
def test_error_reply_with_hostile_details_stays_a_typed_error(
    details: dict[str, str], experts: tuple[tuple[int, int], ...]
) -> None:
    error = ExpertUnavailable("gone", details=details)
    got = tensors.decode_answer(tensors.encode_error(error))
    assert isinstance(got, ActivationError)
    assert isinstance(got.error, ExpertUnavailable)
    assert (got.error.experts, got.error.details) == (experts, details)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (request_of(np.ones((1, 2), np.float32)), "without experts"),
        (request_of(np.ones((1, 2), np.float64), (0, [0])), "float16 or float32"),
        (request_of(np.ones((1, 2), np.dtype(">f4")), (0, [0])), "float16 or float32"),
        (request_of(np.ones(3, np.float32), (0, [0])), "must be a matrix"),
        (request_of(np.ones((0, 2), np.float32), (0, [0])), "rows must be 1 to"),
        (request_of(np.ones((1, 0), np.float32), (0, [0])), "hidden must be 1 to"),
        (request_of(np.ones((65_537, 1), np.float16), (0, [0])), "rows must be 1 to 65536"),
        (request_of(np.ones((1, 65_537), np.float16), (0, [0])), "hidden must be 1 to 65536"),
        (request_of(np.ones((1, 2), np.float32), *((e, [0]) for e in range(1025))), "experts must be 1 to 1024"),
        (request_of(np.ones((1, 2), np.float32), (0, [])), "needs row indices"),
        (request_of(np.ones((1, 2), np.float32), (0, [0]), layer=4096), "layer must be below 4096"),
    ],
)
def test_request_beyond_a_limit_is_not_encoded(message: ActivationRequest, why: str) -> None:
    with pytest.raises(MalformedMessage, match=why):
        tensors.encode_request(message)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (reply_of(), "without blocks"),
        (reply_of((0, np.ones((1, 2), np.int32))), "float16 or float32"),  # type: ignore[arg-type]
        (reply_of((0, np.ones((0, 2), np.float32))), "rows must be 1 to"),
        (reply_of((0, np.ones((1, 2), np.float32)), layer=4096), "layer must be below 4096"),
    ],
)
def test_reply_beyond_a_limit_is_not_encoded(message: ActivationReply, why: str) -> None:
    with pytest.raises(MalformedMessage, match=why):
        tensors.encode_reply(message)


def test_message_at_every_limit_is_encoded_and_read() -> None:
    wide = request_of(np.ones((1, 65_536), np.float16), *((e, [0]) for e in range(1024)), layer=4095)
    assert len(tensors.decode_request(tensors.encode_request(wide)).work) == 1024
    tall = request_of(np.ones((65_536, 1), np.float16), (0, [65_535]))
    assert tensors.decode_request(tensors.encode_request(tall)).work[0][1].tolist() == [65_535]


@pytest.mark.parametrize("dtype", [Dtype.F16, Dtype.F32])
@pytest.mark.parametrize("hidden", [1, 192, 4096, 6144])
def test_split_limit_is_the_most_rows_that_fit_one_message(dtype: Dtype, hidden: int) -> None:
    most = tensors.split_limit_rows(hidden, dtype)
    size = most * hidden * tensors.NUMPY[dtype].itemsize + 8 * tensors.MAX_EXPERTS
    size += 40 * tensors.MAX_PARTS + tensors.HEADER_BYTES
    assert size <= tensors.MESSAGE_LIMIT_BYTES < size + hidden * tensors.NUMPY[dtype].itemsize


def test_split_limit_is_one_row_where_even_one_does_not_fit() -> None:
    assert tensors.split_limit_rows(1_000_000, Dtype.F32) == 1


def test_block_leaf_is_three_little_endian_words_and_two_digests() -> None:
    inputs, output = np.arange(12, dtype="<f2").reshape(3, 4), np.ones((3, 4), "<f2")
    leaf = tensors.block_leaf(1, 2, inputs, output)
    digests = [hashlib.sha256(rows.tobytes()).digest() for rows in (inputs, output)]
    assert leaf == struct.pack("<III", 1, 2, 3) + b"".join(digests)
    assert leaf[:12].hex() == "010000000200000003000000"


@given(st.data())
def test_work_of_a_part_is_what_it_would_be_alone(
    any_request: st.SearchStrategy[ActivationRequest], data: st.DataObject
) -> None:
    """Leaves and counts do not depend on who travels along."""
    sent = data.draw(any_request)
    blocks = [sent.rows[indices].copy() for _, indices in sent.work]
    together = tensors.part_work(sent.layer, sent.parts, sent.work, blocks, blocks)
    start = 0
    for part, found in zip(sent.parts, together, strict=True):
        own = range(start, start + part.rows)
        kept = [(expert, [at for at in indices.tolist() if at in own]) for expert, indices in sent.work]
        work = [(expert, np.array(rows, np.uint32)) for expert, rows in kept if rows]
        alone = [sent.rows[rows] for _, rows in work]
        assert found == tensors.part_work(sent.layer, [part], work, alone, alone)[0]
        start += part.rows
    assert sum(each.rows for each in together) == sum(len(indices) for _, indices in sent.work)
