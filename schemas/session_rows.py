"""Rows between a router and a client that runs the trunk itself: bytes in, arrays out. Header and errors are those of
activations (tensors.py); then one part, whose grant is the session and whose sequence is the step, and its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np

from sawyer.errors import MalformedMessage
from sawyer.ids import RequestId
from sawyer.schemas.tensors import (
    NUMPY,
    Dtype,
    Header,
    Kind,
    Part,
    Rows,
    check_limits,
    dtype_of,
    pack_parts,
    read_error,
    read_header,
    read_parts,
    read_rows,
)


@dataclass(frozen=True, slots=True)
class _SessionRows:
    """`rows` [T, H] float32 of one layer of one step of a request. `session` (hex) is the secret that the router gave
    the client."""

    kind: ClassVar[Kind]
    request: RequestId
    session: str
    manifest: bytes
    step: int
    layer: int
    rows: Rows


class HiddenRows(_SessionRows):
    """What enters the experts: normed, after attention."""

    kind = Kind.HIDDEN


class SummedRows(_SessionRows):
    """What the experts that the gate chose add to each row: the sum of their blocks, weighted."""

    kind = Kind.SUMMED


SessionT = TypeVar("SessionT", HiddenRows, SummedRows)


def encode_session(message: HiddenRows | SummedRows) -> bytes:
    """Raises MalformedMessage if the message breaks a limit of the format."""
    rows = np.ascontiguousarray(message.rows)
    header = Header(
        kind=message.kind, dtype=dtype_of(rows), flags=0, word_a=0, word_b=0, manifest=message.manifest,
        layer=message.layer, experts=0, hidden=rows.shape[1], rows=rows.shape[0], indices=0, parts=1,
    )  # fmt: skip
    check_limits(header)
    part = Part(message.request, message.step, rows.shape[0], bytes.fromhex(message.session))
    return b"".join((header.pack(), pack_parts((part,)), rows.data))


def decode_session(raw: bytes, of: type[SessionT]) -> SessionT:
    """The rows are a read-only view of `raw`. Raises MalformedMessage, and the typed error if that is what came."""
    header = read_header(raw)
    if header.kind is Kind.ERROR:
        raise read_error(raw, header)
    if header.kind is not of.kind or header.dtype is not Dtype.F32:
        raise MalformedMessage(f"expected {of.kind.name} rows in F32, got {header.kind.name} in {header.dtype.name}")
    (part,), offset = read_parts(raw, header)
    expected = offset + header.rows * header.hidden * NUMPY[header.dtype].itemsize
    if part.rows != header.rows or len(raw) != expected:
        raise MalformedMessage(f"expected {header.rows} rows in {expected} bytes, got {part.rows} in {len(raw)}")
    rows = read_rows(raw, header, offset)
    return of(part.request, part.grant.hex(), header.manifest, part.sequence, header.layer, rows)
