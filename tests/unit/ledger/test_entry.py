"""The bytes of entries: one encoding, read back whole; everything else refused."""

from __future__ import annotations

import msgspec
import pytest

from sawyer.errors import NotCanonical
from sawyer.ledger.entry import StoredRow, check_columns, decode_entry, encode_entry
from sawyer.ledger.merkle import leaf_hash
from sawyer.projections.fold import Entry
from sawyer.schemas.base import encode_canonical
from sawyer.schemas.events import NO_HASH, BucketTokens, Decided, EntryFrame


def encode(scene, **changes: object) -> tuple[bytes, Entry]:
    asked = scene.complete(scene.order())
    parts = (BucketTokens(grant="january", tokens=8),)
    fields = {
        "log": scene.network, "seq": 1, "prev": NO_HASH, "ts_ms": scene.now_ms, "kind": asked.kind,
        "stream": "account:alice", "version": 1, "idem": "complete:1", "body": asked.body,
        "statement": asked.statement, "decided": Decided(debited=parts, released=(), credits=()),
        "attestations": asked.attestations, **changes,
    }  # fmt: skip
    return encode_entry(**fields)  # type: ignore[arg-type]


def test_decoded_entry_is_the_encoded_one(scene) -> None:
    raw, entry = encode(scene)
    assert decode_entry(raw) == entry
    assert entry.leaf == leaf_hash(raw).hex()


def test_encoded_entry_is_the_canonical_form_of_its_frame_and_holds_the_statement_verbatim(scene) -> None:
    raw, entry = encode(scene)
    assert EntryFrame.parse(raw).canonical() == raw
    assert entry.statement in raw
    assert entry.statement == entry.body.canonical()


def _spaced(raw: bytes) -> bytes:
    return raw.replace(b'"seq":1', b'"seq": 1')


def _duplicated(raw: bytes) -> bytes:
    return raw.replace(b'"seq":1', b'"seq":1,"seq":1')


def _reordered(raw: bytes) -> bytes:
    return encode_canonical(msgspec.json.decode(raw)).replace(b'"seq":1,', b"")[:-1] + b',"seq":1}'


def _nulled(raw: bytes) -> bytes:
    return raw.replace(b'"released":[]', b'"held":null,"released":[]')


def _escaped(raw: bytes) -> bytes:
    return raw.replace(b'"alice"', b'"\\u0061lice"', 1)


def _unversioned(raw: bytes) -> bytes:
    return raw.replace(b'"v":1,', b'"v":2,')


@pytest.mark.parametrize("change", [_spaced, _duplicated, _reordered, _nulled, _escaped, _unversioned])
def test_other_encoding_of_the_same_entry_is_refused(change, scene) -> None:
    raw, _ = encode(scene)
    assert change(raw) != raw
    with pytest.raises(NotCanonical):
        decode_entry(change(raw))


def test_entry_of_an_unknown_kind_is_read_without_a_typed_body(scene) -> None:
    raw, entry = encode(scene, kind="tokens.invented.v7")
    read = decode_entry(raw)
    assert (read.body, read.decided, read.statement) == (None, Decided(), entry.statement)


@pytest.mark.parametrize("column", ["stream", "version", "topic"])
def test_column_that_differs_from_the_entry_is_refused(column: str, scene) -> None:
    raw, entry = encode(scene)
    row = {"stream": entry.stream, "version": entry.version, "topic": entry.kind, "state": raw}
    check_columns(StoredRow(**row), entry)
    row[column] = 2 if column == "version" else "account:mallory"
    with pytest.raises(NotCanonical, match="columns"):
        check_columns(StoredRow(**row), entry)
