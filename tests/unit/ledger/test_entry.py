"""The bytes of entries: one encoding, read back whole; everything else refused."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sawyer.errors import NotCanonical
from sawyer.ledger.decide import place_of
from sawyer.ledger.entry import StoredRow, check_columns, decode_entry, encode_entry, inner_statements
from sawyer.ledger.merkle import leaf_hash
from sawyer.projections.fold import Entry
from sawyer.schemas.base import Fact, encode_canonical
from sawyer.schemas.events import KINDS, NO_HASH, BucketTokens, Decided, EntryFrame, NodeRows


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


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_refused_or_are_the_one_encoding_of_another_entry(scene, data: st.DataObject) -> None:
    """A byte set, left out or put in, anywhere: what is read is exactly what stands there, or nothing is."""
    raw, entry = encode(type(scene)(scene.keys))
    at = data.draw(st.integers(0, len(raw) - 1))
    strange = st.sampled_from([b"0", b'"', b" ", b"\\u0041", b"}", b"null", b"1.0"])
    put = data.draw(st.one_of(st.binary(max_size=2), strange))
    changed = raw[:at] + put + raw[at + data.draw(st.integers(0, 2)) :]
    try:
        read = decode_entry(changed)
    except NotCanonical:
        return
    assert encode_canonical(msgspec.json.decode(changed)) == changed
    assert read.statement in changed
    assert read.leaf == leaf_hash(changed).hex()
    assert (read == entry) == (changed == raw)


@pytest.mark.parametrize("kind", KINDS)
def test_entry_of_every_kind_is_read_as_it_was_written(kind: str, scene, event_examples: dict[str, Fact]) -> None:
    body = event_examples[kind]
    stream, idem = place_of(body)
    raw, entry = encode(scene, kind=kind, stream=stream, idem=idem, body=body, statement=body.canonical())
    assert decode_entry(raw) == entry
    assert EntryFrame.parse(raw).canonical() == raw


# --- signed statements inside a body, taken out of its bytes ----------------------------------------------------------


@given(receipts=st.integers(0, 5), unreceipted=st.booleans())
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_inner_statements_are_what_their_facts_encode_to(scene, receipts: int, unreceipted: bool) -> None:
    order = scene.order()
    signed = tuple(scene.receipt(order, 1 + rows, experts=((0, 1, 1), (2, 3, rows or 1))) for rows in range(receipts))
    rest = (NodeRows(node="node-b", rows=9),) if unreceipted else ()
    body = scene.complete(order, receipts=signed, unreceipted=rest).body
    assert inner_statements(body, body.canonical()) == (*(each.canonical() for each in signed), order.canonical())
    hold = scene.reserve(order).body
    assert inner_statements(hold, hold.canonical()) == (order.canonical(),)


@pytest.mark.parametrize("kind", ["tokens.reserved.v1", "inference.completed.v1"])
@pytest.mark.parametrize("strange", ["}", '{"body":', "}}"])
def test_no_text_around_inner_statements_can_look_like_one(kind: str, strange: str, event_examples) -> None:
    """They are found by their braces. Every text there has a pattern that has none."""
    body = event_examples[kind]
    raw = body.canonical()
    texts = {text for text in _texts_in(body.plain()) if len(text) > 2}
    assert len(texts) > 8
    for text in texts:
        forged = raw.replace(b'"%b"' % text.encode(), encode_canonical(text[: -len(strange)] + strange))
        with pytest.raises(NotCanonical):
            type(body).parse(forged)


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts_in(each)


DECIDED_LIES = {
    "negative tokens": lambda raw: raw.replace(b'"tokens":8', b'"tokens":-8'),
    "no tokens": lambda raw: raw.replace(b'"tokens":8', b'"tokens":0'),
    "tokens beyond 2^53": lambda raw: raw.replace(b'"tokens":8', b'"tokens":9007199254740992'),
    "half a token": lambda raw: raw.replace(b'"tokens":8', b'"tokens":8.5'),
    "a float of whole tokens": lambda raw: raw.replace(b'"tokens":8', b'"tokens":8.0'),
    "an unknown field": lambda raw: raw.replace(b'"released":[]', b'"refunded":[],"released":[]'),
    "a grant with an illegal name": lambda raw: raw.replace(b'"grant":"january"', b'"grant":"January"'),
    "a sequence of zero": lambda raw: raw.replace(b'"seq":1', b'"seq":0'),
    "a sequence beyond 2^53": lambda raw: raw.replace(b'"seq":1', b'"seq":9007199254740992'),
    "a negative time": lambda raw: raw.replace(b'"ts_ms":', b'"ts_ms":-'),
    "a future version": lambda raw: raw.replace(b'"v":1,', b'"v":2,'),
    "nobody's signature": lambda raw: raw[: raw.index(b'"attestations":[') + 16] + raw[raw.index(b'],"body"') :],
}


@pytest.mark.parametrize("what", DECIDED_LIES)
def test_entry_that_lies_about_numbers_and_names_is_not_read(scene, what: str) -> None:
    raw, _ = encode(scene)
    changed = DECIDED_LIES[what](raw)
    assert changed != raw
    with pytest.raises(NotCanonical):
        decode_entry(changed)
