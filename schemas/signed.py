"""A signed statement: a body, and who signed exactly its canonical bytes.

The pre-image is the DSSE pre-authentication encoding (https://github.com/secure-systems-lab/dsse, protocol.md):
`DSSEv1 <len type> <type> <len body> <body>`, so a signature over one kind never passes for another.
"""

from __future__ import annotations

from typing import Annotated, Generic, TypeVar

from pydantic import StringConstraints

from sawyer.schemas.base import PublicKey, SignatureText, Slug, Strict

Kind = Annotated[str, StringConstraints(pattern=r"^[a-z]+\.[a-z]+\.v[1-9][0-9]{0,3}$")]

BodyT = TypeVar("BodyT", bound=Strict)


class Signature(Strict):
    """`by` is the signer's name, resolved and checked against the key set; `key_id` its public key; `type` the kind
    of the statement; `sig` the Ed25519 signature in standard base64."""

    by: Slug
    key_id: PublicKey
    type: Kind
    sig: SignatureText


class Signed(Strict, Generic[BodyT]):
    body: BodyT
    signature: Signature


def media_type(kind: str) -> str:
    return f"application/vnd.sawyer.{kind}+json"


def pre_image(kind: str, body: bytes) -> bytes:
    """The bytes that are signed for a statement of this kind."""
    name = media_type(kind).encode()
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(body), body)
