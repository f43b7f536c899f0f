"""Signing and verifying statements: the DSSE pre-image of schemas/signed.py, signed with the keys of keys.py."""

from __future__ import annotations

import base64
from binascii import a2b_base64
from typing import TypeVar

from sawyer.errors import BadSignature
from sawyer.identity.keys import Key, public_bytes, verify_signed
from sawyer.schemas.base import Fact, Strict
from sawyer.schemas.signed import Signature, Signed, pre_image

BodyT = TypeVar("BodyT", bound=Fact | Strict)


def sign(body: BodyT, kind: str, by: str, key: Key) -> Signed[BodyT]:
    """The body as a signed statement of this kind."""
    signature = attest(body.canonical(), kind, by, key)
    return Signed(body=body, signature=signature)


def attest(body: bytes, kind: str, by: str, key: Key) -> Signature:
    """A signature over canonical body bytes."""
    raw = key.sign(pre_image(kind, body))
    return Signature(by=by, key_id=key.id, type=kind, sig=base64.b64encode(raw).decode("ascii"))


def check(body: bytes, kind: str, signature: Signature) -> None:
    """Raises BadSignature unless `signature` is of this kind and by its own `key_id` over exactly these bytes. Whether
    that key may say such a thing is the caller's question."""
    public, signed = signed_bytes(body, kind, signature)
    if not verify_signed(public, signed):
        raise BadSignature(failure(kind, signature))


def signed_bytes(body: bytes, kind: str, signature: Signature) -> tuple[bytes, bytes]:
    """(public key, signature followed by the pre-image): what Ed25519 is asked. Raises BadSignature for a signature of
    another kind, and for a key that is none."""
    if signature.type != kind:
        raise BadSignature(f"expected a signature over {kind}, got one over {signature.type}")
    return public_bytes(signature.key_id), pre_image(kind, body, after=a2b_base64(signature.sig))


def failure(kind: str, signature: Signature) -> str:
    """What is said of a signature that does not verify."""
    return f"the signature of {signature.by} ({signature.key_id}) over this {kind} does not verify"


def check_signed(statement: Signed[BodyT], kind: str) -> None:
    """`check` for a statement that carries its own body."""
    check(statement.body.canonical(), kind, statement.signature)
