"""Event bodies: every kind round trips, says its network, and refuses what is not its own."""

from __future__ import annotations

import re

import pytest
from pydantic import TypeAdapter

from sawyer.errors import NotCanonical
from sawyer.schemas import events
from sawyer.schemas.base import Fact, encode_canonical
from sawyer.schemas.signed import Kind

KINDS = sorted(events.KIND_OF.values())


def test_there_is_one_example_of_every_kind(event_examples: dict[str, Fact]) -> None:
    assert sorted(event_examples) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_round_trips(kind: str, event_examples: dict[str, Fact]) -> None:
    body = event_examples[kind]
    assert type(body).parse(body.canonical()) == body


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_names_its_network_so_that_a_signature_stays_in_its_book(
    kind: str, event_examples: dict[str, Fact]
) -> None:
    assert event_examples[kind].plain()["network"] == "sawyer-net/3f9a1c22"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_kind_that_a_signature_can_carry(kind: str) -> None:
    assert TypeAdapter(Kind).validate_python(kind) == kind


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_accepts_the_body_of_another(kind: str, event_examples: dict[str, Fact]) -> None:
    readers = {name: type(body) for name, body in event_examples.items()}
    raw = event_examples[kind].canonical()
    accepted = set()
    for name, reader in readers.items():
        try:
            reader.parse(raw)
        except NotCanonical:
            continue
        accepted.add(name)
    assert accepted == {kind}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_refuses_an_unknown_field_and_a_missing_one(kind: str, event_examples: dict[str, Fact]) -> None:
    body = event_examples[kind]
    fields = body.plain()
    with pytest.raises(NotCanonical, match="surprise"):
        type(body).parse(encode_canonical({**fields, "surprise": 1}))
    for name in fields:
        with pytest.raises(NotCanonical, match=rf"missing required field `{name}`"):
            type(body).parse(encode_canonical({key: value for key, value in fields.items() if key != name}))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("inference.requested.v1", "max_tokens", 0),
        ("inference.requested.v1", "token_ceiling", 2**53),
        ("inference.requested.v1", "request", "0F" * 16),
        ("inference.requested.v1", "network", "sawyer-net"),
        ("work.receipted.v1", "experts", [[0, 1, 0]]),
        ("work.receipted.v1", "experts", [[0, 1]]),
        ("network.founded.v1", "mode", "LIVE"),
        ("network.founded.v1", "operator", "X" * 56),
        ("network.founded.v1", "ledger_vkey", "sawyer-net/3f9a1c22+0a1b2c3d+" + "A" * 43 + "="),
        ("key.added.v1", "role", "node"),
        ("key.rotated.v1", "role", "router"),
        ("key.revoked.v1", "since_ms", -1),
        ("tokens.expired.v1", "tokens", 0),
        ("tokens.granted.v1", "tier", "Gold"),
        ("tokens.granted.v1", "sealed", [{"subject": "alice", "nonce": "ab", "box": ""}]),
        ("inference.completed.v1", "latencies", [{"node": "node-a", "p95_us": 0}]),
        ("snapshot.taken.v1", "digest", "AB" * 32),
        ("model.published.v1", "expert_parameters", -1),
        ("pricing.published.v1", "prices", []),
        ("node.registered.v1", "host", "bob.smith"),
        ("node.registered.v1", "device", "x" * 129),
        ("node.registered.v1", "device", "\x01"),
        ("node.registered.v1", "device", "processeur \u00e0 carte"),
        ("tokens.reserved.v1", "manifest", "ab"),
        ("tokens.granted.v1", "tokens", 0),
        ("tokens.granted.v1", "paid_uusd", 0.5),
        ("inference.completed.v1", "finish", "crashed"),
        ("inference.completed.v1", "unreceipted", [{"node": "node-b", "rows": 0}]),
        ("reservation.voided.v1", "reason", "it failed"),
    ],
)
def test_body_refuses_a_value_out_of_its_domain(
    kind: str, field: str, value: object, event_examples: dict[str, Fact]
) -> None:
    body = event_examples[kind]
    assert field in body.plain()
    with pytest.raises(NotCanonical, match=re.escape(field)):
        type(body).parse(encode_canonical({**body.plain(), field: value}))


def test_more_receipts_than_the_limit_are_refused(event_examples: dict[str, Fact]) -> None:
    body = event_examples["inference.completed.v1"]
    fields = body.plain()
    fields["receipts"] = fields["receipts"] * (events.MAX_RECEIPTS + 1)
    with pytest.raises(NotCanonical, match="length <= 1024"):
        type(body).parse(encode_canonical(fields))


def test_decided_holds_only_what_applies() -> None:
    held = (events.BucketTokens(grant="january", tokens=8),)
    assert events.Decided().canonical() == b"{}"
    assert events.Decided(held=held).canonical() == b'{"held":[{"grant":"january","tokens":8}]}'
    assert events.Decided.parse(events.Decided(held=held).canonical()).held == held


def test_entry_frame_keeps_a_body_of_an_unknown_kind_verbatim(event_examples: dict[str, Fact]) -> None:
    attestations = [event_examples["tokens.reserved.v1"].plain()["request"]["signature"]]
    entry = {
        "v": 1, "log": "sawyer-net/3f9a1c22", "seq": 7, "prev": "ab" * 32, "ts_ms": 1, "kind": "weather.observed.v9",
        "stream": "weather:today", "version": 1, "idem": "weather:1", "body": {"b": ["x", {"y": 2}], "a": True},
        "decided": {}, "attestations": attestations,
    }  # fmt: skip
    raw = encode_canonical(entry)
    frame = events.EntryFrame.parse(raw)
    assert frame.canonical() == raw
    assert encode_canonical(frame.body) == b'{"a":true,"b":["x",{"y":2}]}'
    for bad in ({"v": 2}, {"seq": 0}, {"attestations": []}, {"attestations": attestations * 5}, {"stream": "weather"}):
        with pytest.raises(NotCanonical, match=next(iter(bad))):
            events.EntryFrame.parse(encode_canonical({**entry, **bad}))
