"""Signing and verifying statements: the DSSE pre-image of schemas/signed.py, signed with the keys of keys.py."""

from __future__ import annotations

import base64
from typing import TypeVar

from sawyer.errors import BadSignature
from sawyer.identity.keys import Key, public_bytes, verify
from sawyer.schemas.base import Strict
from sawyer.schemas.signed import Signature, Signed, pre_image

BodyT = TypeVar("BodyT", bound=Strict)


def sign(body: BodyT, kind: str, by: str, key: Key) -> Signed[BodyT]:
    """The body as a signed statement of this kind."""
    signature = attest(body.canonical(), kind, by, key)
    return Signed[type(body)](body=body, signature=signature)  # type: ignore[misc,operator,no-any-return]


def attest(body: bytes, kind: str, by: str, key: Key) -> Signature:
    """A signature over canonical body bytes."""
    raw = key.sign(pre_image(kind, body))
    return Signature(by=by, key_id=key.id, type=kind, sig=base64.b64encode(raw).decode("ascii"))


def check(body: bytes, kind: str, signature: Signature) -> None:
    """Raises BadSignature unless `signature` is of this kind and by its own `key_id` over exactly these bytes. Whether
    that key may say such a thing is the caller's question."""
    if signature.type != kind:
        raise BadSignature(f"expected a signature over {kind}, got one over {signature.type}")
    raw = base64.b64decode(signature.sig)
    if not verify(public_bytes(signature.key_id), pre_image(kind, body), raw):
        raise BadSignature(f"the signature of {signature.by} ({signature.key_id}) over this {kind} does not verify")


def check_signed(statement: Signed[BodyT], kind: str) -> None:
    """`check` for a statement that carries its own body."""
    check(statement.body.canonical(), kind, statement.signature)
