"""The bytes of one entry, and the entry in the bytes. Owns the encoding; whether it may stand is decide's question."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, TypeVar

import msgspec

from sawyer.errors import BookCorrupt, NotCanonical
from sawyer.ledger.merkle import leaf_hash
from sawyer.projections.fold import Entry
from sawyer.schemas.base import MAX_SAFE_INTEGER, UNREADABLE, Positive, TimeMs, encode_canonical
from sawyer.schemas.events import (
    ENTRY_VERSION,
    KINDS,
    Body,
    Decided,
    EntryFrame,
    InferenceCompleted,
    TokensReserved,
)
from sawyer.schemas.signed import Signature, inner_signed

CHECKPOINT_STREAM: Final = "log:checkpoints"
CHECKPOINT_TOPIC: Final = "checkpoint"


class StoredRow(NamedTuple):
    """One row of the book's one table, as the database has it. `state` is an entry's bytes or a checkpoint note."""

    stream: str
    version: int
    topic: str
    state: bytes

    @property
    def is_checkpoint(self) -> bool:
        return self.stream == CHECKPOINT_STREAM


BodyT = TypeVar("BodyT")


class _Frame(msgspec.Struct, Generic[BodyT], forbid_unknown_fields=True, kw_only=True, gc=False):
    """An entry around its body. Its own texts are not checked here: each must equal what it has to be (chain.py,
    decide.py), whatever its form."""

    v: Literal[1]
    log: str
    seq: Positive
    prev: str
    ts_ms: TimeMs
    kind: str
    stream: str
    version: Positive
    idem: str
    body: BodyT
    decided: Decided
    attestations: Annotated[tuple[Signature, ...], msgspec.Meta(min_length=1, max_length=4)]


@functools.cache
def _decoder(kind: Any, frame: Any = _Frame) -> msgspec.json.Decoder[_Frame[Body]]:
    return msgspec.json.Decoder(frame[kind])


_WITH_STATEMENTS: Final = (TokensReserved, InferenceCompleted)
_KIND: Final = b',"kind":"'
_BODY: Final = b'],"body":'
_DECIDED: Final = b',"decided":{'
"""Where these fields begin, in canonical JSON: attestations, body, decided, idem, kind, ... No text can hold such
bytes: it has no quotation mark without a backslash before it. Only inside the body could such a field come again."""


def encode_entry(
    *,
    log: str,
    seq: int,
    prev: str,
    ts_ms: int,
    kind: str,
    stream: str,
    version: int,
    idem: str,
    body: Body,
    statement: bytes,
    decided: Decided,
    attestations: Sequence[Signature],
    inner: tuple[bytes, ...] | None = None,
) -> tuple[bytes, Entry]:
    """The canonical bytes of a new entry, and the entry as `decode_entry` would read it. `statement` must be the
    canonical bytes of `body`: they go in verbatim. `inner`: its `inner_statements`, where the caller has them."""
    signed = tuple(attestations)
    frame: _Frame[msgspec.Raw] = _Frame(
        v=ENTRY_VERSION,
        log=log,
        seq=seq,
        prev=prev,
        ts_ms=ts_ms,
        kind=kind,
        stream=stream,
        version=version,
        idem=idem,
        body=msgspec.Raw(statement),
        decided=decided,
        attestations=signed,
    )
    raw = encode_canonical(frame)
    leaf = leaf_hash(raw).hex()
    if inner is None:
        inner = inner_statements(body, statement)
    return raw, Entry(seq, leaf, prev, log, ts_ms, kind, stream, version, idem, body, statement, decided, signed, inner)


def decode_entry(raw: bytes) -> Entry:
    """The entry in these bytes; an unknown kind has no typed body and decides nothing. Raises NotCanonical for bytes
    that are not the one canonical encoding of a well-formed entry, or that encoders could differ about."""
    at = raw.rfind(_KIND) + len(_KIND)
    name = raw[at : raw.find(b'"', at)]
    kind = KINDS.get(name.decode(errors="replace"))
    if kind is None:
        return _decode_unknown(raw)
    try:
        frame = _decoder(kind).decode(raw)
    except UNREADABLE as error:
        raise NotCanonical(f"not a valid entry: {error}") from error
    if encode_canonical(frame) != raw or frame.kind.encode() != name:
        raise NotCanonical("not the canonical encoding of this entry")
    statement = raw[raw.find(_BODY) + len(_BODY) : raw.rfind(_DECIDED)]
    return _entry(frame, raw, frame.body, statement, frame.decided)


def _decode_unknown(raw: bytes) -> Entry:
    """Of a kind that we do not know all that can be checked is the frame, and that encoders agree about the rest."""
    frame = EntryFrame.parse(raw)
    if frame.kind in KINDS:
        raise NotCanonical("not the canonical encoding of this entry")
    _check_plain([frame.body, frame.decided])
    return _entry(frame, raw, None, encode_canonical(frame.body), Decided())


def _entry(
    frame: _Frame[Body] | EntryFrame, raw: bytes, body: Body | None, statement: bytes, decided: Decided
) -> Entry:
    return Entry(
        frame.seq,
        leaf_hash(raw).hex(),
        frame.prev,
        frame.log,
        frame.ts_ms,
        frame.kind,
        frame.stream,
        frame.version,
        frame.idem,
        body,
        statement,
        decided,
        frame.attestations,
        inner_statements(body, statement),
    )


def inner_statements(body: Body | None, statement: bytes) -> tuple[bytes, ...]:
    """The signed statements inside a body, as canonical bytes: each receipt, then the order."""
    return inner_signed(statement) if isinstance(body, _WITH_STATEMENTS) else ()


def _check_plain(value: object) -> None:
    """Schemas say this of the kinds that we know. Source: RFC 8785 section 3.2, where encoders differ."""
    match value:
        case str() | bool():
            pass
        case int():
            if abs(value) > MAX_SAFE_INTEGER:
                raise NotCanonical(f"holds an integer beyond 2^53: {value}")
        case list():
            for each in value:
                _check_plain(each)
        case dict():
            for key, each in value.items():
                if not key.isascii():
                    raise NotCanonical(f"holds a field whose name is not ASCII: {key!r}")
                _check_plain(each)
        case _:
            raise NotCanonical(f"holds {value!r}, expected text, integers, lists and objects only")


def check_row_id(expected: int, row_id: int) -> None:
    """Raises BookCorrupt unless rows are numbered 1, 2, 3, ... A gap or a jump is a row that was taken out or moved, or
    a number after which SQLite appends in another order."""
    if row_id != expected:
        raise BookCorrupt(f"expected row {expected} of the book's table, got row {row_id}")


def check_columns(row: StoredRow, entry: Entry) -> None:
    """Raises NotCanonical if the database's columns say other than the signed entry."""
    columns = (row.stream, row.version, row.topic)
    signed = (entry.stream, entry.version, entry.kind)
    if columns != signed:
        raise NotCanonical(f"database columns {columns} differ from the entry {signed}")
