"""Commands at the door: what is refused before the book is asked."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest

from sawyer.errors import BadSignature, MalformedMessage
from sawyer.ledger.commands import check, command, read, signatures_of
from sawyer.schemas.base import Fact
from sawyer.schemas.events import KINDS
from sawyer.schemas.messages import LedgerCommand


def asked(scene) -> LedgerCommand:
    order = scene.order()
    return command(scene.complete(order).body, "router", scene.keys["router"])


@pytest.mark.parametrize("kind", KINDS)
def test_command_of_every_kind_survives_the_wire(kind: str, scene, event_examples: dict[str, Fact]) -> None:
    body = event_examples[kind]
    also = [scene.keys["alice-2"]] if signatures_of(type(body)) > 1 else []
    made = command(body, "router", scene.keys["router"], *also)
    checked = check(LedgerCommand.parse(made.canonical()))
    assert (checked.kind, checked.body, checked.statement) == (kind, body, body.canonical())
    assert [each.by for each in checked.attestations] == ["router"] * (1 + len(also))
    assert read(made.canonical()) == checked


def _other_body(made: LedgerCommand) -> LedgerCommand:
    return made.model_copy(update={"body": {**made.body, "output_tokens": 2}})


def _other_kind(made: LedgerCommand) -> LedgerCommand:
    (signature,) = made.attestations
    return made.model_copy(update={"attestations": (signature.changed(type="reservation.voided.v1"),)})


def _other_signature(made: LedgerCommand) -> LedgerCommand:
    (signature,) = made.attestations
    raw = bytearray(base64.b64decode(signature.sig))
    raw[0] ^= 1
    changed = signature.changed(sig=base64.b64encode(bytes(raw)).decode())
    return made.model_copy(update={"attestations": (changed,)})


@pytest.mark.parametrize("change", [_other_body, _other_kind, _other_signature])
def test_changed_command_is_refused(change: Callable[[LedgerCommand], LedgerCommand], scene) -> None:
    with pytest.raises(BadSignature):
        check(change(asked(scene)))


def test_order_changed_inside_a_well_signed_command_is_refused(scene) -> None:
    body = scene.complete(scene.order()).body
    order = body.request.changed(body=body.request.body.changed(max_tokens=99))
    forged = command(body.changed(request=order), "router", scene.keys["router"])
    with pytest.raises(BadSignature, match=r"inference\.requested\.v1"):
        check(forged)


def test_receipt_changed_inside_a_well_signed_command_is_refused(scene) -> None:
    body = scene.complete(scene.order()).body
    receipt = body.receipts[0].changed(body=body.receipts[0].body.changed(counter=9))
    forged = command(body.changed(receipts=(receipt,)), "router", scene.keys["router"])
    with pytest.raises(BadSignature, match=r"work\.receipted\.v1"):
        check(forged)


def test_unknown_kind_is_refused(scene) -> None:
    with pytest.raises(MalformedMessage, match="unknown kind"):
        check(asked(scene).model_copy(update={"kind": "tokens.invented.v1"}))


@pytest.mark.parametrize(
    "change", [{"extra": 1}, {"output_tokens": "3"}, {"output_tokens": None}, {"output_tokens": 1.5}]
)
def test_body_that_breaks_its_schema_is_refused(change: dict[str, object], scene) -> None:
    made = asked(scene)
    with pytest.raises(MalformedMessage):
        check(made.model_copy(update={"body": {**made.body, **change}}))


def test_two_attestations_are_refused(scene) -> None:
    made = asked(scene)
    with pytest.raises(MalformedMessage, match="expected 1 attestations, got 2"):
        check(made.model_copy(update={"attestations": made.attestations * 2}))


def test_rotation_with_one_attestation_is_refused(scene) -> None:
    body = scene.rotate("account", "alice", "alice-2").body
    with pytest.raises(MalformedMessage, match="expected 2 attestations, got 1"):
        check(command(body, "alice", scene.keys["alice"]))


def test_rotation_whose_second_signature_is_wrong_is_refused(scene) -> None:
    made = command(
        scene.rotate("account", "alice", "alice-2").body, "alice", scene.keys["alice"], scene.keys["alice-2"]
    )
    old, new = made.attestations
    with pytest.raises(BadSignature):
        check(made.model_copy(update={"attestations": (old, new.changed(sig=old.sig))}))


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.replace(b'"kind"', b'"kinds"'),
        lambda raw: raw.replace(b'"attestations":[', b'"attestations":[],"extra":['),
        lambda raw: raw.replace(b'"output_tokens":3', b'"output_tokens":3.0'),
        lambda raw: raw.replace(b'"output_tokens":3', b'"output_tokens":-3'),
        lambda raw: raw.replace(b'"output_tokens":3', b'"output_tokens":9007199254740992'),
        lambda raw: raw.replace(b'"output_tokens":3', b'"output_tokens":3,"output_tokens":3'),
        lambda raw: raw.replace(b'"output_tokens":3', b'"output_tokens": 3'),
        lambda raw: raw[:-1],
        lambda raw: raw.replace(b'"austen"', b'"\xff"'),
    ],
    ids=["field", "unknown", "float", "negative", "huge", "twice", "space", "cut", "not utf-8"],
)  # fmt: skip
def test_bytes_that_are_no_canonical_command_are_refused(change: Callable[[bytes], bytes], scene) -> None:
    raw = asked(scene).canonical()
    assert change(raw) != raw
    with pytest.raises(MalformedMessage):
        read(change(raw))
