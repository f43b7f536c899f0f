"""Messages between members and the authority of their network: asking for a certificate, renewing, revoking, and who is
one. Certificates themselves are NATS JWTs (identity/certificate.py)."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta
from pydantic import Field, StringConstraints

from sawyer.schemas.base import Count, Fact, Network, PublicKey, Slug, Strict, TimeMs
from sawyer.schemas.signed import Signature, Signed

REQUESTED_KIND: Final = "certificate.requested.v1"
INVITED_KIND: Final = "invitation.accepted.v1"
SUCCEEDED_KIND: Final = "key.succeeded.v1"
REVOKED_KIND: Final = "certificate.revoked.v1"
MAX_MODELS: Final = 64
MAX_MEMBERS: Final = 4096

Token = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$", max_length=16_384)
]
"""A JWT."""
LongToken = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$", max_length=262_144)
]
Invited = Literal["node", "account", "router"]


class CertificateRequested(Fact, frozen=True):
    """Signed by the key it names: proof that whoever asks has it. `models`: those that a node wants to serve."""

    network: Network
    role: Slug
    name: Slug
    key: PublicKey
    models: Annotated[tuple[Slug, ...], Field(max_length=MAX_MODELS), Meta(max_length=MAX_MODELS)]
    at_ms: TimeMs


class Joining(Strict):
    """A newcomer's question: what they want, and the invitation that lets them, with the signature of the invitation's
    own key over the request: who only overheard the token cannot use it up."""

    requested: Signed[CertificateRequested]
    invitation: Token
    accepted: Signature


class Renewing(Strict):
    """A member's question: a new certificate for as long again. `succeeds`: for a new key, the former one's signature
    over the request; the former counts no more then."""

    requested: Signed[CertificateRequested]
    succeeds: Signature | None = None


class CertificateReply(Strict):
    """The certificate, and the two JWTs that prove it to who knows the operator's key."""

    certificate: Token
    account: LongToken
    operator: Token


class CertificateRevoked(Fact, frozen=True):
    """The operator's word: no certificate of this key counts any more."""

    network: Network
    key: PublicKey
    at_ms: TimeMs


class Revoking(Strict):
    revoked: Signed[CertificateRevoked]


class MemberCertificate(Strict):
    """One that was issued. `expires_s`, `revoked_s`: seconds; 0: not."""

    role: Slug
    name: Slug
    key: PublicKey
    host: Annotated[str, StringConstraints(pattern=r"^([a-z0-9][a-z0-9_-]{0,62})?$")] = ""
    models: Annotated[tuple[str, ...], Field(max_length=MAX_MODELS)] = ()
    issued_s: Count
    expires_s: Count
    revoked_s: Count = 0
    here: bool = False
    """Its key is in the authority's home, which renews it by itself."""


class CertifiedReply(Strict):
    """Who has a certificate, by role and name."""

    members: Annotated[tuple[MemberCertificate, ...], Field(max_length=MAX_MEMBERS)]


class Gone(Strict):
    """Authority -> routers: this member's connection ended, or (`revoked`) it is none any more."""

    name: Slug
    key: PublicKey
    revoked: bool = False
