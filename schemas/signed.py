"""A signed statement: a body, and who signed exactly its canonical bytes.

The pre-image is the DSSE pre-authentication encoding (https://github.com/secure-systems-lab/dsse, protocol.md):
`DSSEv1 <len type> <type> <len body> <body>`, so a signature over one kind never passes for another.
"""

from __future__ import annotations

import functools
from typing import Annotated, Final, Generic, TypeVar

from pydantic import StringConstraints

from sawyer.schemas.base import Fact, PublicKey, SignatureText, Slug

Kind = Annotated[str, StringConstraints(pattern=r"^[a-z]+\.[a-z]+\.v[1-9][0-9]{0,3}$")]

BodyT = TypeVar("BodyT")


class Signature(Fact, frozen=True):
    """`by` is the signer's name, resolved and checked against the key set; `key_id` its public key; `type` the kind
    of the statement; `sig` the Ed25519 signature in standard base64."""

    by: Slug
    key_id: PublicKey
    type: Kind
    sig: SignatureText


class Signed(Fact, Generic[BodyT], frozen=True):
    """A fact, or a message, and its signature."""

    body: BodyT
    signature: Signature


_SIGNED: Final = b'{"body":'
"""No text of canonical JSON can hold this: it has no quotation mark without a backslash before it."""
_END: Final = b"}"
"""No text of a fact can hold this: every one has a pattern."""


def inner_signed(statement: bytes) -> tuple[bytes, ...]:
    """The signed statements inside a canonical statement, in its own order, word for word: what `Signed.canonical`
    gives for each, without writing it again. Their bodies must be flat, with no object inside."""
    found = []
    at = statement.find(_SIGNED)
    while at >= 0:
        body_end = statement.index(_END, at) + 1
        end = statement.index(_END, body_end) + 2  # of the signature, and of the whole
        found.append(statement[at:end])
        at = statement.find(_SIGNED, end)
    return tuple(found)


def body_in(signed: bytes) -> bytes:
    """The canonical body of one of these: what is signed."""
    return signed[len(_SIGNED) : signed.index(_END) + 1]


def media_type(kind: str) -> str:
    return f"application/vnd.sawyer.{kind}+json"


def pre_image(kind: str, body: bytes, *, after: bytes = b"") -> bytes:
    """The bytes that are signed for a statement of this kind; `after` these bytes."""
    return b"%b%b%d %b" % (after, _head(kind), len(body), body)


@functools.cache
def _head(kind: str) -> bytes:
    name = media_type(kind).encode()
    return b"DSSEv1 %d %b " % (len(name), name)
