"""Commands at the door: what is refused before the book is asked."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest

from sawyer.errors import BadSignature, MalformedMessage
from sawyer.ledger.commands import check, command
from sawyer.schemas.base import Strict
from sawyer.schemas.events import KINDS
from sawyer.schemas.messages import LedgerCommand


def asked(scene) -> LedgerCommand:
    order = scene.order()
    return command(scene.complete(order).body, "router", scene.keys["router"])


@pytest.mark.parametrize("kind", KINDS)
def test_command_of_every_kind_survives_the_wire(kind: str, scene, event_examples: dict[str, Strict]) -> None:
    body = event_examples[kind]
    made = command(body, "router", scene.keys["router"])
    read = check(LedgerCommand.parse(made.canonical()))
    assert (read.kind, read.body, read.statement, read.signer.by) == (kind, body, body.canonical(), "router")


def _other_body(made: LedgerCommand) -> LedgerCommand:
    return made.model_copy(update={"body": {**made.body, "output_tokens": 2}})


def _other_kind(made: LedgerCommand) -> LedgerCommand:
    (signature,) = made.attestations
    return made.model_copy(update={"attestations": (signature.model_copy(update={"type": "reservation.voided.v1"}),)})


def _other_signature(made: LedgerCommand) -> LedgerCommand:
    (signature,) = made.attestations
    raw = bytearray(base64.b64decode(signature.sig))
    raw[0] ^= 1
    changed = signature.model_copy(update={"sig": base64.b64encode(bytes(raw)).decode()})
    return made.model_copy(update={"attestations": (changed,)})


@pytest.mark.parametrize("change", [_other_body, _other_kind, _other_signature])
def test_changed_command_is_refused(change: Callable[[LedgerCommand], LedgerCommand], scene) -> None:
    with pytest.raises(BadSignature):
        check(change(asked(scene)))


def test_order_changed_inside_a_well_signed_command_is_refused(scene) -> None:
    body = scene.complete(scene.order()).body
    order = body.request.model_copy(update={"body": body.request.body.model_copy(update={"max_tokens": 99})})
    forged = command(body.model_copy(update={"request": order}), "router", scene.keys["router"])
    with pytest.raises(BadSignature, match=r"inference\.requested\.v1"):
        check(forged)


def test_receipt_changed_inside_a_well_signed_command_is_refused(scene) -> None:
    body = scene.complete(scene.order()).body
    receipt = body.receipts[0].model_copy(update={"body": body.receipts[0].body.model_copy(update={"counter": 9})})
    forged = command(body.model_copy(update={"receipts": (receipt,)}), "router", scene.keys["router"])
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
    with pytest.raises(MalformedMessage, match="one attestation, got 2"):
        check(made.model_copy(update={"attestations": made.attestations * 2}))
