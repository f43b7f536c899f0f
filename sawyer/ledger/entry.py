"""The bytes of one entry, and the entry in the bytes. Owns the encoding; whether it may stand is decide's question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from sawyer.errors import BookCorrupt, NotCanonical
from sawyer.ledger.merkle import leaf_hash
from sawyer.projections.fold import Entry
from sawyer.schemas.base import MAX_SAFE_INTEGER, encode_canonical
from sawyer.schemas.events import ENTRY_VERSION, KINDS, Body, Decided, EntryFrame
from sawyer.schemas.signed import Signature

CHECKPOINT_STREAM: Final = "log:checkpoints"
CHECKPOINT_TOPIC: Final = "checkpoint"


@dataclass(frozen=True, slots=True)
class StoredRow:
    """One row of the book's one table, as the database has it. `state` is an entry's bytes or a checkpoint note."""

    stream: str
    version: int
    topic: str
    state: bytes

    @property
    def is_checkpoint(self) -> bool:
        return self.stream == CHECKPOINT_STREAM


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
) -> tuple[bytes, Entry]:
    """The canonical bytes of a new entry, and the entry as `decode_entry` would read it. `statement` must be the
    canonical bytes of `body`: they go in verbatim."""
    frame = {
        "v": ENTRY_VERSION,
        "log": log,
        "seq": seq,
        "prev": prev,
        "ts_ms": ts_ms,
        "kind": kind,
        "stream": stream,
        "version": version,
        "idem": idem,
        "body": msgspec.Raw(statement),
        "decided": msgspec.Raw(decided.canonical()),
        "attestations": [attestation.model_dump() for attestation in attestations],
    }
    raw = encode_canonical(frame)
    leaf = leaf_hash(raw).hex()
    entry = Entry(
        seq, leaf, prev, log, ts_ms, kind, stream, version, idem, body, statement, decided, tuple(attestations)
    )
    return raw, entry


def decode_entry(raw: bytes) -> Entry:
    """The entry in these bytes; an unknown kind has no typed body and decides nothing. Raises NotCanonical for bytes
    that are not the one canonical encoding of a well-formed entry, or that encoders could differ about."""
    frame = EntryFrame.parse(raw)
    statement = encode_canonical(frame.body)
    body, decided = None, Decided()
    if frame.kind in KINDS:
        body = KINDS[frame.kind].parse(statement)
        decided = Decided.parse(encode_canonical(frame.decided))
    else:
        _check_plain([frame.body, frame.decided])
    return Entry(
        seq=frame.seq,
        leaf=leaf_hash(raw).hex(),
        prev=frame.prev,
        log=frame.log,
        ts_ms=frame.ts_ms,
        kind=frame.kind,
        stream=frame.stream,
        version=frame.version,
        idem=frame.idem,
        body=body,
        statement=statement,
        decided=decided,
        attestations=frame.attestations,
    )


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
