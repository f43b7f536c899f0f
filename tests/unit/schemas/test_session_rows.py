"""Rows between a router and a client that runs the trunk itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.errors import Busy, MalformedMessage
from sawyer.ids import RequestId
from sawyer.schemas import tensors
from sawyer.schemas.session_rows import HiddenRows, SummedRows, decode_session, encode_session

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)
HIDDEN = HiddenRows(RequestId("0f" * 16), "5a" * 16, bytes(range(8)), 7, 3, ROWS)
RAW = encode_session(HIDDEN)


@pytest.mark.parametrize("kind", [HiddenRows, SummedRows])
@given(st.integers(0, 2**32 - 1), st.integers(0, tensors.MAX_LAYERS - 1), st.integers(1, 5), st.integers(1, 9))
def test_rows_come_back_as_they_were(
    kind: type[HiddenRows | SummedRows], step: int, layer: int, rows: int, hidden: int
) -> None:
    values = np.random.default_rng(step).standard_normal((rows, hidden)).astype(np.float32)
    sent = kind(RequestId("ab" * 16), "cd" * 16, b"manifest", step, layer, values)
    got = decode_session(encode_session(sent), kind)
    assert isinstance(got, kind)
    assert replace(got, rows=sent.rows) == sent  # type: ignore[comparison-overlap]  # arrays are compared below
    assert got.rows.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (RAW[:-1], "bytes"),
        (RAW + b"\0", "bytes"),
        (RAW[: tensors.HEADER_BYTES], "table of 1 parts"),
        (b"", "shorter than"),
        (encode_session(SummedRows(HIDDEN.request, HIDDEN.session, HIDDEN.manifest, 7, 3, ROWS)), "expected HIDDEN"),
        (encode_session(replace(HIDDEN, rows=ROWS.astype(np.float16))), "in F32"),
    ],
)
def test_other_bytes_are_refused_with_the_reason(raw: bytes, why: str) -> None:
    with pytest.raises(MalformedMessage, match=why):
        decode_session(raw, HiddenRows)


@pytest.mark.parametrize("field", ["experts", "indices", "parts"])
def test_header_that_speaks_of_experts_or_of_other_requests_is_refused(field: str) -> None:
    header = tensors.read_header(RAW)._replace(**{field: 2})
    with pytest.raises(MalformedMessage):
        decode_session(header.pack() + RAW[tensors.HEADER_BYTES :], HiddenRows)


def test_typed_error_is_raised_as_what_it_is() -> None:
    with pytest.raises(Busy, match="full"):
        decode_session(tensors.encode_error(Busy("full")), SummedRows)


@given(st.binary(max_size=200), st.integers(0, len(RAW)))
def test_no_bytes_of_a_stranger_do_more_than_be_refused(noise: bytes, at: int) -> None:
    raw = RAW[:at] + noise + RAW[at + len(noise) :]
    try:
        got = decode_session(raw, HiddenRows)
    except MalformedMessage:
        return
    assert got.rows.shape[0] >= 1
