"""Signed commands: how one is made, and how one is checked before the writer sees it. Needs no database and no book.

`check` turns a command from anywhere into a `VerifiedCommand`: typed, canonical, every signature in it valid. The
writer takes nothing else. Whether these signers may say so is decided later, at one position of the book (decide.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from sawyer.errors import MalformedMessage, NotCanonical
from sawyer.identity.envelope import attest, failure, signed_bytes
from sawyer.identity.envelope import check as check_signature
from sawyer.identity.keys import Key
from sawyer.ledger.entry import inner_statements
from sawyer.projections.fold import Entry, content_of
from sawyer.schemas.base import UNREADABLE, encode_canonical
from sawyer.schemas.events import (
    KIND_OF,
    KINDS,
    RECEIPT_KIND,
    REQUEST_KIND,
    Body,
    InferenceCompleted,
    KeyRotated,
    TokensReserved,
)
from sawyer.schemas.messages import LedgerCommand
from sawyer.schemas.signed import Signature, body_in

Job = tuple[bytes, bytes]
"""(public key, signature followed by what it signs)."""
OPERATOR_NAME: Final = "operator"
"""What the operator key signs as."""
LEDGER_NAME: Final = "ledger"
"""What the ledger key signs as."""
_WITH_ORDER: Final = (TokensReserved, InferenceCompleted)


@dataclass(frozen=True, slots=True)
class Claim:
    """One signature to verify: `signature` should be over exactly these bytes as this kind."""

    kind: str
    statement: bytes
    signature: Signature

    def check(self) -> None:
        """Raises BadSignature."""
        check_signature(self.statement, self.kind, self.signature)

    @property
    def failure(self) -> str:
        """What is wrong if it does not verify."""
        return failure(self.kind, self.signature)


class VerifiedCommand(msgspec.Struct, frozen=True, gc=False):
    """A command whose signatures hold. `statement` is the canonical body, `inner` are the signed statements in it
    (see Entry)."""

    kind: str
    body: Body
    statement: bytes
    attestations: tuple[Signature, ...]
    inner: tuple[bytes, ...]

    @property
    def signer(self) -> Signature:
        return self.attestations[0]

    @property
    def content(self) -> str:
        return content_of(self.kind, self.statement)


def command(body: Body, by: str, key: Key, *also: Key) -> LedgerCommand:
    """The signed command to record this fact. `by` is the signer's name: a node, an account, a router's name, or
    OPERATOR_NAME. `also` are further keys that sign it under the same name (a rotation: the new key)."""
    kind = KIND_OF[type(body)]
    statement = body.canonical()
    signatures = tuple(attest(statement, kind, by, each) for each in (key, *also))
    return LedgerCommand(kind=kind, body=msgspec.json.decode(statement), attestations=signatures)


def check(command: LedgerCommand) -> VerifiedCommand:
    """Parse and verify everything that can be judged without the book. Pure and thread safe; Ed25519 runs without the
    GIL. Raises MalformedMessage for an unknown kind or a body that breaks its schema, BadSignature."""
    return _checked(_typed(command.kind, encode_canonical(command.body), command.attestations))


class _CommandFrame(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A LedgerCommand whose body is left as it came."""

    kind: str
    body: msgspec.Raw
    attestations: Annotated[tuple[Signature, ...], msgspec.Meta(min_length=1, max_length=4)]


_FRAMES: Final = msgspec.json.Decoder(_CommandFrame)


def read(raw: bytes) -> VerifiedCommand:
    """`check` for a command as it came over the bus: several times faster than reading the message first."""
    return _checked(parse(raw))


def _checked(found: VerifiedCommand) -> VerifiedCommand:
    signed = _signed_in(found.kind, found.body, found.statement, found.attestations, found.inner)
    for kind, statement, signature in signed:
        check_signature(statement, kind, signature)
    return found


def parse(raw: bytes) -> VerifiedCommand:
    """`read` for bytes whose signatures another process of ours has verified, by `read`: they are not verified again.
    Raises MalformedMessage."""
    try:
        frame = _FRAMES.decode(raw)
    except UNREADABLE as error:
        raise MalformedMessage(f"not a valid LedgerCommand: {error}") from error
    return _typed(frame.kind, bytes(frame.body), frame.attestations)


def _typed(name: str, statement: bytes, attestations: tuple[Signature, ...]) -> VerifiedCommand:
    kind = KINDS.get(name)
    if kind is None:
        raise MalformedMessage(f"unknown kind of event: {name}", hint="This bookkeeper may be older than the sender.")
    expected = signatures_of(kind)
    if len(attestations) != expected:
        raise MalformedMessage(f"expected {expected} attestations, got {len(attestations)}")
    try:
        body: Body = kind.parse(statement)
    except NotCanonical as error:
        raise MalformedMessage(error.message) from error
    return VerifiedCommand(name, body, statement, attestations, inner_statements(body, statement))


def signatures_of(kind: type[Body]) -> int:
    """How many attestations a fact of this kind has: a rotation is signed by the old key and by the new one."""
    return 2 if kind is KeyRotated else 1


def claims(kind: str, body: Body | None, statement: bytes, attestations: tuple[Signature, ...]) -> list[Claim]:
    """Every signature in a command or entry, the outermost first. `statement` is the canonical body."""
    inner = inner_statements(body, statement)
    return [Claim(*each) for each in _signed_in(kind, body, statement, attestations, inner)]


def first_claims(entry: Entry) -> list[Claim]:
    """Those of an entry's claims that do not stand in the book before it: a completion repeats the order of its
    reservation, signature and all, or decide refuses it."""
    found = claims(entry.kind, entry.body, entry.statement, entry.attestations)
    return [each for each in found if not (isinstance(entry.body, InferenceCompleted) and each.kind == REQUEST_KIND)]


def jobs(entry: Entry) -> list[Job]:
    """What Ed25519 is asked for each of an entry's `first_claims`, in the same order. Raises BadSignature for one that
    cannot even be asked."""
    body, inner = entry.body, entry.inner
    found = [signed_bytes(entry.statement, entry.kind, attestation) for attestation in entry.attestations]
    if isinstance(body, TokensReserved):
        found.append(signed_bytes(body_in(inner[0]), REQUEST_KIND, body.request.signature))
    elif isinstance(body, InferenceCompleted):
        for signed, receipt in zip(inner[:-1], body.receipts, strict=True):
            found.append(signed_bytes(body_in(signed), RECEIPT_KIND, receipt.signature))
    return found


def _signed_in(
    kind: str,
    body: Body | None,
    statement: bytes,
    attestations: tuple[Signature, ...],
    inner: tuple[bytes, ...],
) -> list[tuple[str, bytes, Signature]]:
    """(kind, statement, signature). `inner`: see Entry."""
    found = [(kind, statement, attestation) for attestation in attestations]
    if isinstance(body, _WITH_ORDER):
        found.append((REQUEST_KIND, body_in(inner[-1]), body.request.signature))
    if isinstance(body, InferenceCompleted):
        for signed, receipt in zip(inner[:-1], body.receipts, strict=True):
            found.append((RECEIPT_KIND, body_in(signed), receipt.signature))
    return found
