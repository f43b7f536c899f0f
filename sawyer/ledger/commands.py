"""Signed commands: how one is made, and how one is checked before the writer sees it. Needs no database and no book.

`check` turns a command from anywhere into a `VerifiedCommand`: typed, canonical, every signature in it valid. The
writer takes nothing else. Whether these signers may say so is decided later, at one position of the book (decide.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from sawyer.errors import MalformedMessage, NotCanonical
from sawyer.identity.envelope import attest
from sawyer.identity.envelope import check as check_signature
from sawyer.identity.keys import Key
from sawyer.projections.fold import content_of
from sawyer.schemas.base import encode_canonical
from sawyer.schemas.events import (
    KIND_OF,
    KINDS,
    RECEIPT_KIND,
    REQUEST_KIND,
    Body,
    InferenceCompleted,
    TokensReserved,
)
from sawyer.schemas.messages import LedgerCommand
from sawyer.schemas.signed import Signature

OPERATOR_NAME: Final = "operator"
"""What the operator key signs as."""
LEDGER_NAME: Final = "ledger"
"""What the ledger key signs as."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One signature to verify: `signature` should be over exactly these bytes as this kind."""

    kind: str
    statement: bytes
    signature: Signature

    def check(self) -> None:
        """Raises BadSignature."""
        check_signature(self.statement, self.kind, self.signature)


@dataclass(frozen=True, slots=True)
class VerifiedCommand:
    """A command whose signatures hold. `statement` is the canonical body."""

    kind: str
    body: Body
    statement: bytes
    attestations: tuple[Signature, ...]

    @property
    def signer(self) -> Signature:
        return self.attestations[0]

    @property
    def content(self) -> str:
        return content_of(self.kind, self.statement)


def command(body: Body, by: str, key: Key) -> LedgerCommand:
    """The signed command to record this fact. `by` is the signer's name: a node, an account, a router's name, or
    OPERATOR_NAME."""
    kind = KIND_OF[type(body)]
    statement = body.canonical()
    signature = attest(statement, kind, by, key)
    return LedgerCommand(kind=kind, body=msgspec.json.decode(statement), attestations=(signature,))


def check(command: LedgerCommand) -> VerifiedCommand:
    """Parse and verify everything that can be judged without the book. Pure and thread safe; Ed25519 runs without the
    GIL. Raises MalformedMessage for an unknown kind or a body that breaks its schema, BadSignature."""
    kind = KINDS.get(command.kind)
    if kind is None:
        raise MalformedMessage(
            f"unknown kind of event: {command.kind}", hint="This bookkeeper may be older than the sender."
        )
    if len(command.attestations) != 1:
        raise MalformedMessage(f"expected one attestation, got {len(command.attestations)}")
    statement = encode_canonical(command.body)
    try:
        body = kind.parse(statement)
    except NotCanonical as error:
        raise MalformedMessage(error.message) from error
    for claim in claims(command.kind, body, statement, command.attestations):
        claim.check()
    return VerifiedCommand(command.kind, body, statement, command.attestations)


def claims(kind: str, body: Body | None, statement: bytes, attestations: tuple[Signature, ...]) -> Iterator[Claim]:
    """Every signature in a command or entry, the outermost first."""
    for attestation in attestations:
        yield Claim(kind, statement, attestation)
    if isinstance(body, TokensReserved | InferenceCompleted):
        yield Claim(REQUEST_KIND, body.request.body.canonical(), body.request.signature)
    if isinstance(body, InferenceCompleted):
        for receipt in body.receipts:
            yield Claim(RECEIPT_KIND, receipt.body.canonical(), receipt.signature)
