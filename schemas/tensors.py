"""Activation messages: bytes in, arrays out. Pure; knows no bus and no engine.

Layout, little-endian, no padding: a fixed header, a table of parts, a table of (expert, row count), row indices
(requests only, 32 bits each, grouped by expert in table order), then rows of `hidden` values. A message may carry rows
of many requests: each has a part, or several where it may be that not all of its rows are used, and the rows of a part
stand together. A request carries each row once and names the rows each expert works on, ascending; a reply carries one
block an expert, in table order, and the parts as asked. An error reply carries ErrorBody JSON. Between a client with a
trunk of its own and a router there are no experts: one part, and its rows. Everything is checked against the message
length before an array is made.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from sawyer.errors import MalformedMessage, SawyerError
from sawyer.ids import RequestId
from sawyer.schemas.messages import ErrorBody

MAGIC: Final = b"SWYR"
VERSION: Final = 2
NO_GRANT: Final = bytes(16)
MANIFEST_PREFIX_BYTES: Final = 8
MAX_PARTS: Final = 256
MAX_EXPERTS: Final = 1024
MAX_LAYERS: Final = 4096
MAX_ROWS: Final = 65_536
MAX_HIDDEN: Final = 65_536
MESSAGE_LIMIT_BYTES: Final = 512 * 1024
"""Larger requests and replies are split: bigger messages are slower through a broker."""

FLAG_REPLY_F32: Final = 0x01
"""The sender wants the answer in float32, whatever the request's own dtype."""
_KNOWN_FLAGS: Final = FLAG_REPLY_F32

HEADER_FIELDS: Final = (
    ("magic", "4s"), ("version", "B"), ("kind", "B"), ("dtype", "B"), ("flags", "B"), ("word_a", "I"),
    ("word_b", "I"), ("manifest", "8s"), ("layer", "H"), ("experts", "H"), ("hidden", "I"), ("rows", "I"),
    ("indices", "I"), ("parts", "I"),
)  # fmt: skip
"""(field, code of the struct module), in order. `word_a`, `word_b`: see Header."""
_HEADER: Final = struct.Struct("<" + "".join(code for _, code in HEADER_FIELDS))
PART_FIELDS: Final = (("request", "16s"), ("grant", "16s"), ("sequence", "I"), ("rows", "I"))
_PART: Final = struct.Struct("<" + "".join(code for _, code in PART_FIELDS))
PART_BYTES: Final = _PART.size
_TABLE_ROW_BYTES: Final = 8
"""Expert and row count, 32 bits each. A few numbers are faster through struct than through an array."""
HEADER_BYTES: Final = _HEADER.size

Rows = NDArray[np.floating[Any]]
"""[n, H], float16 or float32."""
Indices = NDArray[np.uint32]


class Kind(IntEnum):
    REQUEST = 1
    REPLY = 2
    ERROR = 3
    HIDDEN = 4
    SUMMED = 5


class Dtype(IntEnum):
    F16 = 1
    F32 = 2


_OF_SESSIONS: Final = (Kind.HIDDEN, Kind.SUMMED)
_KINDS: Final = {int(kind): kind for kind in Kind}
_DTYPES: Final = {int(dtype): dtype for dtype in Dtype}
NUMPY: Final[dict[Dtype, np.dtype[np.floating[Any]]]] = {Dtype.F16: np.dtype("<f2"), Dtype.F32: np.dtype("<f4")}


class Part(NamedTuple):
    """Rows of one request in a message: as many, after those of the parts before. `sequence`: the how manieth part of
    this request this node is sent; a receipt names answers by it. What may be used alone is a part of its own."""

    request: RequestId
    sequence: int
    rows: int
    grant: bytes = NO_GRANT


class Header(NamedTuple):
    """What both directions share. `word_a`, `word_b`: deadline_ms and 0 in a request, compute_us and waited_us in a
    reply."""

    kind: Kind
    dtype: Dtype
    flags: int
    word_a: int
    word_b: int
    manifest: bytes
    layer: int
    experts: int
    hidden: int
    rows: int
    indices: int
    parts: int

    def pack(self) -> bytes:
        return _HEADER.pack(MAGIC, VERSION, *self)


@dataclass(frozen=True, slots=True)
class ActivationRequest:
    """`rows` [R, H] float16 or float32, each row once, those of the parts one after the other; `work[i]` = (expert,
    indices into rows), experts and indices ascending."""

    parts: tuple[Part, ...]
    manifest: bytes
    layer: int
    rows: Rows
    work: tuple[tuple[int, Indices], ...]
    deadline_ms: int
    reply_f32: bool = False


@dataclass(frozen=True, slots=True)
class ActivationReply:
    """`blocks[i]` = (expert, [rows of that expert, H]) in the order of the request's work; `parts` as asked."""

    parts: tuple[Part, ...]
    manifest: bytes
    layer: int
    blocks: tuple[tuple[int, Rows], ...]
    compute_us: int
    waited_us: int


@dataclass(frozen=True, slots=True)
class ActivationError:
    """The node refused the whole message: which one, its inbox says."""

    error: SawyerError


def encode_request(message: ActivationRequest) -> bytes:
    """Raises MalformedMessage if the message breaks a limit of the format."""
    if not message.work:
        raise MalformedMessage("an activation request without experts")
    rows = np.ascontiguousarray(message.rows)
    table = [(expert, len(indices)) for expert, indices in message.work]
    indices = [np.ascontiguousarray(indices, "<u4") for _, indices in message.work]
    header = Header(
        kind=Kind.REQUEST,
        dtype=dtype_of(rows),
        flags=FLAG_REPLY_F32 if message.reply_f32 else 0,
        word_a=message.deadline_ms,
        word_b=0,
        manifest=message.manifest,
        layer=message.layer,
        experts=len(table),
        hidden=rows.shape[1],
        rows=rows.shape[0],
        indices=sum([count for _, count in table]),
        parts=len(message.parts),
    )
    check_limits(header)
    parts = pack_parts(message.parts)
    return b"".join((header.pack(), parts, _pack_table(table), *(each.data for each in indices), rows.data))


def decode_request(raw: bytes) -> ActivationRequest:
    """The rows and indices are read-only views of `raw`. Raises MalformedMessage."""
    header = read_header(raw)
    if header.kind is not Kind.REQUEST:
        raise MalformedMessage(f"expected an activation request, got kind {header.kind.name}")
    parts, offset = read_parts(raw, header)
    if sum([part.rows for part in parts]) != header.rows:
        raise MalformedMessage(f"the parts do not add up to the {header.rows} rows that the header says")
    experts, ends, offset = _read_table(raw, header, offset)
    if ends[-1] != header.indices:
        raise MalformedMessage(f"row counts add up to {ends[-1]}, the header says {header.indices}")
    itemsize = NUMPY[header.dtype].itemsize
    expected = offset + 4 * header.indices + header.rows * header.hidden * itemsize
    if len(raw) != expected:
        raise MalformedMessage(f"expected {expected} bytes, got {len(raw)}")
    indices = np.frombuffer(raw, dtype="<u4", count=header.indices, offset=offset)
    _check_indices(indices, ends, header.rows)
    if len(parts) > 1:
        _check_all_work(parts, indices, header.rows)
    rows = read_rows(raw, header, offset + 4 * header.indices)
    work = tuple((expert, indices[a:b]) for expert, (a, b) in zip(experts, pairwise((0, *ends)), strict=True))
    return ActivationRequest(
        parts=parts,
        manifest=header.manifest,
        layer=header.layer,
        rows=rows,
        work=work,
        deadline_ms=header.word_a,
        reply_f32=bool(header.flags & FLAG_REPLY_F32),
    )


def encode_reply(message: ActivationReply) -> bytes:
    """Raises MalformedMessage if the message breaks a limit of the format."""
    if not message.blocks:
        raise MalformedMessage("an activation reply without blocks")
    blocks = [np.ascontiguousarray(block) for _, block in message.blocks]
    table = [(expert, len(block)) for expert, block in message.blocks]
    header = Header(
        kind=Kind.REPLY,
        dtype=dtype_of(blocks[0]),
        flags=0,
        word_a=message.compute_us,
        word_b=message.waited_us,
        manifest=message.manifest,
        layer=message.layer,
        experts=len(table),
        hidden=blocks[0].shape[1],
        rows=sum([len(block) for block in blocks]),
        indices=0,
        parts=len(message.parts),
    )
    check_limits(header)
    parts = pack_parts(message.parts)
    return b"".join((header.pack(), parts, _pack_table(table), *(block.data for block in blocks)))


def encode_error(error: SawyerError) -> bytes:
    """A typed refusal of a whole message."""
    header = Header(
        kind=Kind.ERROR, dtype=Dtype.F32, flags=0, word_a=0, word_b=0, manifest=bytes(MANIFEST_PREFIX_BYTES), layer=0,
        experts=0, hidden=0, rows=0, indices=0, parts=0,
    )  # fmt: skip
    return header.pack() + ErrorBody.of(error).canonical()


def decode_answer(raw: bytes) -> ActivationReply | ActivationError:
    """What a node sent back. Raises MalformedMessage for anything that is neither a reply nor a typed error."""
    header = read_header(raw)
    if header.kind is Kind.ERROR:
        return ActivationError(read_error(raw, header))
    if header.kind is not Kind.REPLY:
        raise MalformedMessage(f"expected an activation reply, got kind {header.kind.name}")
    parts, offset = read_parts(raw, header)
    experts, ends, offset = _read_table(raw, header, offset)
    if header.indices:
        raise MalformedMessage(f"an activation reply carries no row indices, the header says {header.indices}")
    if ends[-1] != header.rows:
        raise MalformedMessage(f"blocks add up to {ends[-1]} rows, the header says {header.rows}")
    expected = offset + header.rows * header.hidden * NUMPY[header.dtype].itemsize
    if len(raw) != expected:
        raise MalformedMessage(f"expected {expected} bytes, got {len(raw)}")
    rows = read_rows(raw, header, offset)
    blocks = tuple((expert, rows[a:b]) for expert, (a, b) in zip(experts, pairwise((0, *ends)), strict=True))
    return ActivationReply(
        parts=parts,
        manifest=header.manifest,
        layer=header.layer,
        blocks=blocks,
        compute_us=header.word_a,
        waited_us=header.word_b,
    )


def read_error(raw: bytes, header: Header) -> SawyerError:
    """The typed error in an error reply with this header. Raises MalformedMessage."""
    if header.parts:
        raise MalformedMessage("an error reply with parts")
    try:
        return ErrorBody.model_validate_json(raw[HEADER_BYTES:]).to_error()
    except ValidationError as problem:
        raise MalformedMessage("an error reply without a readable error") from problem


def read_header(raw: bytes) -> Header:
    """The header alone, every field checked against its limits. Raises MalformedMessage."""
    if len(raw) < HEADER_BYTES:
        raise MalformedMessage(f"{len(raw)} bytes are shorter than the {HEADER_BYTES}-byte header")
    (
        magic, version, kind, dtype, flags, word_a, word_b, manifest, layer, experts, hidden, rows, indices, parts,
    ) = _HEADER.unpack_from(raw)  # fmt: skip
    if magic != MAGIC:
        raise MalformedMessage("not a Sawyer activation message (wrong magic)")
    if version != VERSION:
        raise MalformedMessage(f"expected message version {VERSION}, got {version}")
    if kind not in _KINDS or dtype not in _DTYPES:
        raise MalformedMessage(f"unknown kind {kind} or dtype {dtype}")
    if flags & ~_KNOWN_FLAGS:
        raise MalformedMessage(f"unknown flags {flags:#x}")
    header = Header(
        _KINDS[kind], _DTYPES[dtype], flags, word_a, word_b, manifest, layer, experts, hidden, rows, indices, parts
    )
    if header.kind is not Kind.ERROR:
        check_limits(header)
    return header


def block_leaf(layer: int, expert: int, inputs: Rows, output: Rows) -> bytes:
    """The leaf data of one answered expert block in a receipt's Merkle tree: little-endian (layer u32, expert u32,
    rows u32), then SHA-256 of the expert's input rows and of its output block, both as they stood on the wire."""
    return struct.pack("<III", layer, expert, len(output)) + _sha256(inputs) + _sha256(output)


@dataclass(frozen=True, slots=True)
class PartWork:
    """What an answer did for one part: leaf data of its blocks (`block_leaf`), experts ascending, and how many rows
    each has."""

    leaves: tuple[bytes, ...]
    experts: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Summed over experts."""
        return sum(self.counts)


def part_work(
    layer: int,
    parts: Sequence[Part],
    work: Sequence[tuple[int, Indices]],
    inputs: Sequence[Rows],
    blocks: Sequence[Rows],
) -> list[PartWork]:
    """For each part what is receipted and metered for it alone, whoever it travelled with. `inputs[i]` and `blocks[i]`
    [n, H], as they stood on the wire, are those of `work[i]`, whose indices ascend."""
    if len(parts) == 1:
        leaves = tuple(
            block_leaf(layer, expert, rows, block)
            for (expert, _), rows, block in zip(work, inputs, blocks, strict=True)
        )
        return [PartWork(leaves, tuple(expert for expert, _ in work), tuple(map(len, blocks)))]
    ends = np.fromiter(accumulate(part.rows for part in parts), np.uint32, len(parts))
    made: list[tuple[list[bytes], list[int], list[int]]] = [([], [], []) for _ in parts]
    for (expert, indices), rows, block in zip(work, inputs, blocks, strict=True):
        bounds = [0, *np.searchsorted(indices, ends).tolist()]
        for (leaves_of, experts, counts), (a, b) in zip(made, pairwise(bounds), strict=True):
            if a < b:
                leaves_of.append(block_leaf(layer, expert, rows[a:b], block[a:b]))
                experts.append(expert)
                counts.append(b - a)
    return [PartWork(tuple(leaves_of), tuple(experts), tuple(counts)) for leaves_of, experts, counts in made]


def split_limit_rows(hidden: int, dtype: Dtype) -> int:
    """How many rows of expert input (so of expert output) fit one message under MESSAGE_LIMIT_BYTES; at least 1."""
    room = MESSAGE_LIMIT_BYTES - HEADER_BYTES - _TABLE_ROW_BYTES * MAX_EXPERTS - PART_BYTES * MAX_PARTS
    return max(1, room // (hidden * NUMPY[dtype].itemsize))


def _sha256(rows: Rows) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(rows).data).digest()


def check_limits(header: Header) -> None:
    """Raises MalformedMessage for a number that the format does not take."""
    of_session = header.kind in _OF_SESSIONS
    if of_session and (header.experts or header.indices):
        raise MalformedMessage("rows between client and router name no experts")
    for name, value, most in (
        ("parts", header.parts, 1 if of_session else MAX_PARTS),
        *(() if of_session else (("experts", header.experts, MAX_EXPERTS),)),
        ("rows", header.rows, MAX_ROWS),
        ("hidden", header.hidden, MAX_HIDDEN),
    ):
        if not 1 <= value <= most:
            raise MalformedMessage(f"{name} must be 1 to {most}, got {value}")
    if header.layer >= MAX_LAYERS:
        raise MalformedMessage(f"layer must be below {MAX_LAYERS}, got {header.layer}")
    if header.kind is Kind.REQUEST and not 1 <= header.indices <= MAX_ROWS * MAX_EXPERTS:
        raise MalformedMessage(f"an activation request needs row indices, got {header.indices}")


def pack_parts(parts: tuple[Part, ...]) -> bytes:
    """The table of parts."""
    packed = [_PART.pack(bytes.fromhex(part.request), part.grant, part.sequence, part.rows) for part in parts]
    return packed[0] if len(packed) == 1 else b"".join(packed)


def read_parts(raw: bytes, header: Header) -> tuple[tuple[Part, ...], int]:
    """The table of parts, and the offset of what follows. Raises MalformedMessage."""
    offset = HEADER_BYTES + header.parts * PART_BYTES
    if len(raw) < offset:
        raise MalformedMessage(f"{len(raw)} bytes do not hold a table of {header.parts} parts")
    parts = tuple(
        Part(RequestId(request.hex()), sequence, rows, grant)
        for request, grant, sequence, rows in _PART.iter_unpack(raw[HEADER_BYTES:offset])
    )
    if any(part.rows == 0 for part in parts):
        raise MalformedMessage("a part without rows")
    if len(parts) > 1 and len({(part.request, part.sequence) for part in parts}) < len(parts):
        raise MalformedMessage("two parts of one request have one sequence number")
    return parts, offset


def _check_indices(indices: Indices, ends: Sequence[int], rows: int) -> None:
    """Each expert's ascend, and name rows that are there."""
    if len(indices) == len(ends):  # one each, as where a single row is decoded: those are in order, and few
        last = max(indices.tolist())
    else:
        ascending = indices[1:] > indices[:-1]
        if len(ends) > 1:
            ascending[np.array(ends[:-1]) - 1] = True  # where the next expert's begin
        if not ascending.all():
            raise MalformedMessage("row indices must be ascending and named once")
        last = int(indices.max())
    if last >= rows:
        raise MalformedMessage(f"row index {last} of {rows} rows")


def _check_all_work(parts: Sequence[Part], indices: Indices, rows: int) -> None:
    """Some expert works for every part: a receipt over nothing cannot be told."""
    asked = np.zeros(rows, np.bool_)
    asked[indices] = True
    starts = [0, *accumulate(part.rows for part in parts[:-1])]
    if not np.logical_or.reduceat(asked, starts).all():
        raise MalformedMessage("a part that no expert works for")


def _pack_table(table: list[tuple[int, int]]) -> bytes:
    return struct.pack(f"<{2 * len(table)}I", *(number for row in table for number in row))


def _read_table(raw: bytes, header: Header, start: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The experts, where the rows of each end, and the offset of what follows."""
    offset = start + header.experts * _TABLE_ROW_BYTES
    if len(raw) < offset:
        raise MalformedMessage(f"{len(raw)} bytes do not hold a table of {header.experts} experts")
    table = struct.unpack_from(f"<{2 * header.experts}I", raw, start)
    experts, counts = table[::2], table[1::2]
    if 0 in counts:
        raise MalformedMessage("an expert without rows")
    if any(after <= before for before, after in pairwise(experts)):
        raise MalformedMessage("experts must be ascending and named once")
    return experts, tuple(accumulate(counts)), offset


def read_rows(raw: bytes, header: Header, offset: int) -> Rows:
    """A read-only view of the rows that end a message."""
    return np.ndarray((header.rows, header.hidden), NUMPY[header.dtype], raw, offset)


def dtype_of(rows: Rows) -> Dtype:
    """Raises MalformedMessage unless this is a matrix of float16 or float32."""
    if rows.ndim != 2:
        raise MalformedMessage(f"rows must be a matrix, got {rows.ndim} dimensions")
    if rows.dtype == np.float16:
        return Dtype.F16
    if rows.dtype == np.float32:
        return Dtype.F32
    raise MalformedMessage(f"rows must be float16 or float32, got {rows.dtype}")
