"""The activation codec on bytes from an attacker: a typed refusal or a message, never a crash, never a large array."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.errors import MalformedMessage
from sawyer.ids import RequestId
from sawyer.schemas import tensors
from sawyer.schemas.tensors import ActivationReply, ActivationRequest, Part

FIELDS = {
    "magic": (0, "4s"), "version": (4, "B"), "kind": (5, "B"), "dtype": (6, "B"), "flags": (7, "B"),
    "word_a": (8, "I"), "word_b": (12, "I"), "layer": (24, "H"), "experts": (26, "H"), "hidden": (28, "I"),
    "rows": (32, "I"), "indices": (36, "I"), "parts": (40, "I"),
}  # fmt: skip
"""Where each field of the header stands: written out a second time, so that the layout cannot move unseen."""

PARTS = (Part(RequestId("0f" * 16), 1, 2), Part(RequestId("1e" * 16), 3, 1))
AT = 44 + 2 * 40
"""Where the table of experts begins."""
REQUEST = tensors.encode_request(
    ActivationRequest(
        parts=PARTS, manifest=bytes(8), layer=0, rows=np.ones((3, 4), np.float16),
        work=((2, np.array([0, 2], np.uint32)), (5, np.array([1], np.uint32))), deadline_ms=100,
    )
)  # fmt: skip
REPLY = tensors.encode_reply(
    ActivationReply(
        parts=PARTS, manifest=bytes(8), layer=0, compute_us=1, waited_us=1,
        blocks=((2, np.ones((2, 4), np.float16)), (5, np.ones((1, 4), np.float16))),
    )
)  # fmt: skip
ERROR = tensors.encode_error(MalformedMessage("no"))
DECODERS: list[Callable[[bytes], object]] = [tensors.decode_request, tensors.decode_answer]


def changed(raw: bytes, **fields: int | bytes) -> bytes:
    """`raw` with header fields overwritten."""
    edited = bytearray(raw)
    for name, value in fields.items():
        offset, code = FIELDS[name]
        struct.pack_into("<" + code, edited, offset, value)
    return bytes(edited)


def test_header_is_44_bytes_and_a_part_40() -> None:
    offset, code = FIELDS["parts"]
    assert tensors.HEADER_BYTES == 44 == offset + struct.calcsize("<" + code)
    assert tensors.PART_BYTES == 40


def _part(at: int, *, rows: int | None = None, request: bytes | None = None, sequence: int | None = None) -> bytes:
    """REQUEST with one of its parts changed."""
    edited, start = bytearray(REQUEST), 44 + 40 * at
    if rows is not None:
        struct.pack_into("<I", edited, start + 36, rows)
    if request is not None:
        edited[start : start + 16] = request
    if sequence is not None:
        struct.pack_into("<I", edited, start + 32, sequence)
    return bytes(edited)


def _indices(*indices: int) -> bytes:
    """REQUEST with other row indices."""
    return REQUEST[: AT + 16] + struct.pack("<3I", *indices) + REQUEST[AT + 28 :]


@pytest.mark.parametrize("decode", DECODERS)
@given(raw=st.binary(max_size=400))
def test_random_bytes_are_refused(decode: Callable[[bytes], object], raw: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(raw)


@pytest.mark.parametrize("decode", DECODERS)
@given(body=st.binary(max_size=300), kind=st.integers(1, 3), dtype=st.integers(1, 2), data=st.data())
def test_random_bytes_behind_a_good_start_raise_nothing_but_malformed_message(
    decode: Callable[[bytes], object], body: bytes, kind: int, dtype: int, data: st.DataObject
) -> None:
    small = st.integers(0, 4)
    raw = changed(
        bytes(44) + body, magic=tensors.MAGIC, version=2, kind=kind, dtype=dtype, experts=data.draw(small),
        hidden=data.draw(small), rows=data.draw(small), indices=data.draw(small), parts=data.draw(small),
    )  # fmt: skip
    _decodes_or_refuses(decode, raw)


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("raw", [REQUEST, REPLY, ERROR], ids=["request", "reply", "error"])
@given(data=st.data())
def test_one_changed_byte_raises_nothing_but_malformed_message(
    decode: Callable[[bytes], object], raw: bytes, data: st.DataObject
) -> None:
    edited = bytearray(raw)
    edited[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    _decodes_or_refuses(decode, bytes(edited))


@pytest.mark.parametrize("name", sorted(FIELDS))
@pytest.mark.parametrize("raw", [REQUEST, REPLY], ids=["request", "reply"])
@given(data=st.data())
def test_any_value_of_a_header_field_raises_nothing_but_malformed_message(
    name: str, raw: bytes, data: st.DataObject
) -> None:
    code = FIELDS[name][1]
    bits = 8 * struct.calcsize(code)
    value = data.draw(st.binary(min_size=4, max_size=4) if code == "4s" else st.integers(0, 2**bits - 1))
    for decode in DECODERS:
        _decodes_or_refuses(decode, changed(raw, **{name: value}))


@pytest.mark.parametrize(("raw", "decode"), [(REQUEST, tensors.decode_request), (REPLY, tensors.decode_answer)])
def test_every_truncation_is_refused(raw: bytes, decode: Callable[[bytes], object]) -> None:
    for length in range(len(raw)):
        with pytest.raises(MalformedMessage):
            decode(raw[:length])


@pytest.mark.parametrize(("raw", "decode"), [(REQUEST, tensors.decode_request), (REPLY, tensors.decode_answer)])
@pytest.mark.parametrize("extra", [1, 2, 8, 4096])
def test_extended_message_is_refused(raw: bytes, decode: Callable[[bytes], object], extra: int) -> None:
    with pytest.raises(MalformedMessage, match=f"expected {len(raw)} bytes, got {len(raw) + extra}"):
        decode(raw + bytes(extra))


def test_request_with_two_parts_of_different_sequence_is_read() -> None:
    """Each is used, and receipted, without the other."""
    parts = tensors.decode_request(_part(1, request=bytes.fromhex("0f" * 16))).parts
    assert [(part.request, part.sequence) for part in parts] == [("0f" * 16, 1), ("0f" * 16, 3)]


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (changed(REQUEST, magic=b"SWYS"), "wrong magic"),
        (changed(REQUEST, version=1), "expected message version 2, got 1"),
        (changed(REQUEST, kind=0), "unknown kind 0"),
        (changed(REQUEST, kind=6), "unknown kind 6"),
        (changed(REQUEST, dtype=0), "dtype 0"),
        (changed(REQUEST, dtype=3), "dtype 3"),
        (changed(REQUEST, flags=2), "unknown flags 0x2"),
        (changed(REQUEST, parts=0), "parts must be 1 to 256, got 0"),
        (changed(REQUEST, parts=257), "parts must be 1 to 256, got 257"),
        (changed(REQUEST, parts=2**32 - 1), "parts must be 1 to 256"),
        (changed(REQUEST, parts=200), "do not hold a table of 200 parts"),
        (_part(0, rows=1), "parts do not add up to the 3 rows"),
        (_part(0, rows=2**32 - 1), "parts do not add up to the 3 rows"),
        (_part(1, rows=0), "a part without rows"),
        (_indices(0, 1, 0), "a part that no expert works for"),
        (_part(1, request=bytes.fromhex("0f" * 16), sequence=1), "two parts of one request have one sequence number"),
        (changed(REQUEST, layer=4096), "layer must be below 4096"),
        (changed(REQUEST, experts=0), "experts must be 1 to 1024, got 0"),
        (changed(REQUEST, experts=1025), "experts must be 1 to 1024, got 1025"),
        (changed(REQUEST, rows=0), "rows must be 1 to 65536, got 0"),
        (changed(REQUEST, rows=2**32 - 1), "rows must be 1 to 65536"),
        (changed(REQUEST, hidden=2**32 - 1), "hidden must be 1 to 65536"),
        (changed(REQUEST, indices=0), "needs row indices, got 0"),
        (changed(REQUEST, indices=2**32 - 1), "needs row indices"),
        (changed(REQUEST, indices=4), "add up to 3, the header says 4"),
        (changed(REQUEST, experts=900), "do not hold a table of 900 experts"),
        (REQUEST[:AT] + struct.pack("<4I", 5, 2, 2, 1) + REQUEST[AT + 16 :], "ascending and named once"),
        (REQUEST[:AT] + struct.pack("<4I", 2, 2, 2, 1) + REQUEST[AT + 16 :], "ascending and named once"),
        (REQUEST[:AT] + struct.pack("<4I", 2, 3, 5, 0) + REQUEST[AT + 16 :], "an expert without rows"),
        (_indices(0, 3, 1), "row index 3 of 3 rows"),
        (_indices(2, 0, 1), "row indices must be ascending and named once"),
        (_indices(2, 2, 1), "row indices must be ascending and named once"),
        (REPLY, "expected an activation request, got kind REPLY"),
        (ERROR, "expected an activation request, got kind ERROR"),
        (REQUEST[:43], "43 bytes are shorter than the 44-byte header"),
    ],
)
def test_bad_request_is_refused_with_the_reason(raw: bytes, why: str) -> None:
    with pytest.raises(MalformedMessage, match=why):
        tensors.decode_request(raw)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (REQUEST, "expected an activation reply, got kind REQUEST"),
        (changed(REPLY, indices=1), "carries no row indices, the header says 1"),
        (changed(REPLY, rows=4), "blocks add up to 3 rows, the header says 4"),
        (changed(ERROR, parts=1), "an error reply with parts"),
        (ERROR[:-1], "without a readable error"),
        (ERROR[:44], "without a readable error"),
        (ERROR[:44] + b'{"code":"no such thing!","message":""}', "without a readable error"),
        (ERROR[:44] + b"\xff", "without a readable error"),
    ],
)
def test_bad_answer_is_refused_with_the_reason(raw: bytes, why: str) -> None:
    with pytest.raises(MalformedMessage, match=why):
        tensors.decode_answer(raw)


@pytest.mark.parametrize("decode", DECODERS)
def test_sizes_are_checked_before_an_array_is_made(decode: Callable[[bytes], object]) -> None:
    """44 bytes that claim 65,536 x 65,536 float32 (16 GiB) and every index: refused in little memory."""
    raw = REQUEST if decode is tensors.decode_request else REPLY
    claim = changed(raw, dtype=2, hidden=65_536, rows=65_536, experts=1024, indices=65_536 * 1024)
    tracemalloc.start()
    try:
        for length in (44, len(claim)):
            with pytest.raises(MalformedMessage):
                decode(claim[:length])
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 256 * 1024


def _decodes_or_refuses(decode: Callable[[bytes], object], raw: bytes) -> None:
    try:
        message = decode(raw)
    except MalformedMessage:
        return
    if isinstance(message, ActivationRequest):
        assert message.rows.nbytes <= len(raw)
        assert sum(indices.nbytes for _, indices in message.work) <= len(raw)
    if isinstance(message, ActivationReply):
        assert sum(block.nbytes for _, block in message.blocks) <= len(raw)
