"""Activation messages as hypothesis strategies: any valid one of a small size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st

from sawyer.ids import RequestId
from sawyer.schemas.tensors import ActivationReply, ActivationRequest, Part, Rows

U32 = st.integers(0, 2**32 - 1)
IDS = st.binary(min_size=16, max_size=16)
EXPERTS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4, unique=True).map(sorted)


@st.composite
def _requests(draw: st.DrawFn) -> ActivationRequest:
    rows = draw(_rows(draw(st.integers(1, 6)), draw(st.integers(1, 9)), draw(st.sampled_from(["<f2", "<f4"]))))
    indices = st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5, unique=True).map(sorted)
    work = tuple((expert, np.array(draw(indices), dtype="<u4")) for expert in draw(EXPERTS))
    asked = sorted({int(row) for _, each in work for row in each})
    return ActivationRequest(
        parts=_parts(draw, len(rows), asked),
        manifest=draw(st.binary(min_size=8, max_size=8)),
        layer=draw(st.integers(0, 4095)),
        rows=rows,
        work=work,
        deadline_ms=draw(U32),
        reply_f32=draw(st.booleans()),
    )


@st.composite
def _replies(draw: st.DrawFn) -> ActivationReply:
    hidden, dtype = draw(st.integers(1, 9)), draw(st.sampled_from(["<f2", "<f4"]))
    counts = st.integers(1, 5)
    return ActivationReply(
        parts=_parts(draw, draw(st.integers(1, 6))),
        manifest=draw(st.binary(min_size=8, max_size=8)),
        layer=draw(st.integers(0, 4095)),
        blocks=tuple((expert, draw(_rows(draw(counts), hidden, dtype))) for expert in draw(EXPERTS)),
        compute_us=draw(U32),
        waited_us=draw(U32),
    )


def _parts(draw: st.DrawFn, rows: int, asked: list[int] | None = None) -> tuple[Part, ...]:
    """So many rows of one request or of some, each of which has one of those that are asked for."""
    starts = range(1, rows) if asked is None else asked[1:]
    ends = [*sorted(draw(st.sets(st.sampled_from(starts)))), rows] if starts else [rows]
    names = draw(st.lists(IDS, min_size=len(ends), max_size=len(ends), unique=True))
    return tuple(
        Part(RequestId(name.hex()), draw(U32), end - start, draw(IDS))
        for name, start, end in zip(names, [0, *ends[:-1]], ends, strict=True)
    )


def _rows(rows: int, hidden: int, dtype: str) -> st.SearchStrategy[Rows]:
    """Any bit patterns, NaN and infinities among them: the codec carries values and never looks at them."""
    size = rows * hidden * np.dtype(dtype).itemsize
    return st.binary(min_size=size, max_size=size).map(lambda raw: np.frombuffer(raw, dtype).reshape(rows, hidden))


@pytest.fixture(scope="session")
def any_request() -> st.SearchStrategy[ActivationRequest]:
    return _requests()


@pytest.fixture(scope="session")
def any_reply() -> st.SearchStrategy[ActivationReply]:
    return _replies()
