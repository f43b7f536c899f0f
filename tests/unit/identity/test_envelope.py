"""Signed statements: a signature holds for one body, one kind, one key, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.errors import BadSignature
from sawyer.identity.envelope import attest, check, check_signed, sign
from sawyer.identity.keys import Key, encode_public
from sawyer.schemas import events
from sawyer.schemas.base import Fact, parse_as
from sawyer.schemas.signed import Signed

KIND = "account.opened.v1"
BODY = b'{"account":"alice"}'
KINDS = sorted(events.KIND_OF.values())


@pytest.mark.parametrize("kind", KINDS)
def test_signed_statement_of_every_kind_verifies_and_round_trips(
    kind: str, event_examples: dict[str, Fact], keys: dict[str, Key]
) -> None:
    body = event_examples[kind]
    statement = sign(body, kind, "alice", keys["alice"])
    check_signed(statement, kind)
    again = parse_as(Signed[type(body)], statement.canonical())  # type: ignore[misc]
    assert again == statement
    check_signed(again, kind)


def test_signature_names_its_signer_key_and_kind(keys: dict[str, Key]) -> None:
    signature = attest(BODY, KIND, "alice", keys["alice"])
    assert (signature.by, signature.key_id, signature.type) == ("alice", keys["alice"].id, KIND)
    check(BODY, KIND, signature)


def test_signature_for_one_kind_is_refused_for_another(keys: dict[str, Key]) -> None:
    signature = attest(BODY, KIND, "alice", keys["alice"])
    with pytest.raises(
        BadSignature, match=r"expected a signature over key\.added\.v1, got one over account\.opened\.v1"
    ):
        check(BODY, "key.added.v1", signature)


def test_signature_relabelled_as_another_kind_is_refused(keys: dict[str, Key]) -> None:
    signature = attest(BODY, KIND, "alice", keys["alice"]).changed(type="key.added.v1")
    with pytest.raises(BadSignature, match="does not verify"):
        check(BODY, "key.added.v1", signature)


def test_signature_of_another_key_is_refused(keys: dict[str, Key]) -> None:
    signature = attest(BODY, KIND, "alice", keys["mallory"]).changed(key_id=keys["alice"].id)
    with pytest.raises(BadSignature, match="the signature of alice"):
        check(BODY, KIND, signature)


def test_signature_by_a_weak_key_is_refused(keys: dict[str, Key]) -> None:
    """With the neutral point as key, one made-up signature fits every message."""
    weak = encode_public("U", bytes([1]) + bytes(31))
    signature = attest(BODY, KIND, "alice", keys["alice"]).changed(key_id=weak)
    with pytest.raises(BadSignature, match="not a valid Ed25519 point"):
        check(BODY, KIND, signature)


@given(st.data())
def test_any_changed_byte_of_the_body_is_refused(keys: dict[str, Key], data: st.DataObject) -> None:
    signature = attest(BODY, KIND, "alice", keys["alice"])
    changed = bytearray(BODY)
    changed[data.draw(st.integers(0, len(BODY) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadSignature, match="does not verify"):
        check(bytes(changed), KIND, signature)


def test_statement_carried_to_another_network_is_refused(
    event_examples: dict[str, Fact], signed: Callable[[Fact, str], Signed[Fact]]
) -> None:
    statement = signed(event_examples[KIND], "alice")
    moved = statement.body.changed(network="sawyer-net/ffffffff")
    with pytest.raises(BadSignature, match="does not verify"):
        check_signed(statement.changed(body=moved), KIND)
