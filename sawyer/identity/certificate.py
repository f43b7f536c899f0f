"""Certificates: what makes a key a member of a network, in one role.

A certificate is the member's NATS user JWT, signed by its role's signing key; the account's JWT, signed by the
authority, says which key signs for which role and what the role may do; the operator's JWT, signed by the operator,
names the authority. So the operator's key alone proves a certificate. Rules of the roles: schemas/permissions.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sawyer.errors import CertificateRefused
from sawyer.identity import jwt
from sawyer.identity.jwt import Claims
from sawyer.identity.keys import Key
from sawyer.ids import is_slug
from sawyer.schemas.permissions import ROLES, SCOPES, Role

NO_LIMIT: Final = -1
NANOSECONDS: Final = 1_000_000_000
_NATS_LIMITS: Final = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), NO_LIMIT)
_JETSTREAM_LIMITS: Final = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), NO_LIMIT)


@dataclass(frozen=True)
class Certificate:
    """A proven one: this key is `name` in this role, until `expires_s` (0: for ever), for these models (a node), paid
    to this host (a node). `id`: of the JWT."""

    role: Role
    name: str
    key: str
    models: tuple[str, ...]
    host: str
    issued_s: int
    expires_s: int
    id: str

    @property
    def renew_s(self) -> int:
        """When it should be renewed: half of its life is over. 0 for one without end."""
        return (self.issued_s + self.expires_s) // 2 if self.expires_s else 0


def operator_jwt(operator: Key, network: str, system: str, authority: str, *, now_s: int) -> str:
    """The operator's word: this public key (`authority`) speaks for it, and this is the system's account."""
    nats = {"type": "operator", "system_account": system, "signing_keys": [authority]}
    return jwt.encode(operator, operator.id, network, nats, now_s=now_s)


def system_jwt(authority: Key, system: str, *, now_s: int) -> str:
    """The account in which the server tells of itself."""
    nats = {"type": "account", "limits": {**_NATS_LIMITS, "wildcards": True}}
    return jwt.encode(authority, system, "SYS", nats, now_s=now_s)


def system_user_jwt(system: Key, user: str, account: str, *, now_s: int) -> str:
    """For the authority alone: it gives the server new JWTs of this account, and hears who left it."""
    nats = {
        "type": "user",
        "pub": {"allow": ["$SYS.REQ.CLAIMS.UPDATE"]},
        "sub": {"allow": [f"_INBOX.{user}.>", f"$SYS.ACCOUNT.{account}.DISCONNECT"]},
        "subs": NO_LIMIT,
        "data": NO_LIMIT,
        "payload": NO_LIMIT,
    }
    return jwt.encode(system, user, "authority", nats, now_s=now_s)


def account_jwt(
    authority: Key, account: str, network: str, signers: Mapping[Role, str], revoked: Mapping[str, int], *, now_s: int
) -> str:
    """The network's account: which public key signs certificates of which role, what the role may do, and which keys
    are revoked: certificates issued before that time (seconds) count no more."""
    nats: dict[str, Any] = {
        "type": "account",
        "limits": {**_NATS_LIMITS, **_JETSTREAM_LIMITS, "wildcards": True},
        "signing_keys": [_scope(role, signers[role]) for role in ROLES],
    }
    if revoked:
        nats["revocations"] = dict(revoked)
    return jwt.encode(authority, account, network, nats, now_s=now_s)


def certificate_jwt(
    signer: Key, account: str, key: str, name: str, *, now_s: int, expires_s: int, models: Iterable[str] = (),
    host: str = "",
) -> str:  # fmt: skip
    """A certificate, in the role that `signer` signs for. It may do what its role may, and nothing of its own."""
    tags = [*(f"model:{model}" for model in models), *([f"host:{host}"] if host else [])]
    nats: dict[str, Any] = {"type": "user", "issuer_account": account}
    if tags:
        nats["tags"] = tags
    return jwt.encode(signer, key, name, nats, now_s=now_s, expires_s=expires_s)


def credentials_text(token: str, key: Key) -> str:
    """A NATS credentials file. Holds the seed."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        "This file holds a secret key: whoever reads it is you.\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{key.seed}\n------END USER NKEY SEED------\n"
    )


class Chain:
    """What proves certificates: the operator's key, and the two JWTs between it and them."""

    def __init__(self, operator: str, operator_token: str, account_token: str) -> None:
        """Raises CertificateRefused unless the operator's key stands behind this account; MalformedMessage and
        BadSignature for what is no JWT."""
        root, account = jwt.decode(operator_token), jwt.decode(account_token)
        if (root.kind, root.issuer, root.subject) != ("operator", operator, operator):
            raise CertificateRefused(f"the operator's JWT is of {root.issuer}, and the operator is {operator}")
        if account.kind != "account" or account.issuer not in _texts(root.nats.get("signing_keys")):
            raise CertificateRefused(
                f"the account's JWT is signed by {account.issuer}, for whom the operator has no word"
            )
        self.account = account.subject
        self._roles = _roles(account)
        self._revoked = _revocations(account)

    def prove(self, token: str, now_s: int) -> Certificate:
        """Raises CertificateRefused for one that is expired, revoked, foreign or of no role; MalformedMessage and
        BadSignature for what is no JWT."""
        claims = jwt.decode(token)
        role = self._roles.get(claims.issuer)
        if claims.kind != "user" or claims.nats.get("issuer_account") != self.account or role is None:
            raise CertificateRefused(f"the certificate of {claims.name!r} is of another network")
        if claims.expires_s and claims.expires_s <= now_s:
            raise CertificateRefused(f"the certificate of {claims.name!r} has expired", hint="Renew it.")
        if claims.issued_s <= self._revoked.get(claims.subject, -1):
            raise CertificateRefused(f"the certificate of {claims.name!r} was revoked")
        return _certificate(role, claims)


def _certificate(role: Role, claims: Claims) -> Certificate:
    tags = _texts(claims.nats.get("tags"))
    hosts = [tag.removeprefix("host:") for tag in tags if tag.startswith("host:")]
    models = tuple(tag.removeprefix("model:") for tag in tags if tag.startswith("model:"))
    if not is_slug(claims.name):
        raise CertificateRefused(f"{claims.name[:80]!r} is no name of a member")
    return Certificate(
        role=role,
        name=claims.name,
        key=claims.subject,
        models=models,
        host=hosts[0] if hosts else "",
        issued_s=claims.issued_s,
        expires_s=claims.expires_s,
        id=claims.id,
    )


def _scope(role: Role, signer: str) -> dict[str, Any]:
    scope = SCOPES[role]
    template: dict[str, Any] = {
        "pub": {"allow": list(scope.publish)},
        "sub": {"allow": list(scope.subscribe)},
        "subs": scope.subscriptions,
        "data": NO_LIMIT,
        "payload": scope.payload_bytes,
    }
    if scope.answers:
        template["resp"] = {"max": scope.answers, "ttl": scope.within_s * NANOSECONDS}
    return {"kind": "user_scope", "key": signer, "role": role, "template": template}


def _roles(account: Claims) -> dict[str, Role]:
    """Which role each signing key signs for."""
    listed = account.nats.get("signing_keys")
    scopes = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    known: dict[str, Role] = {role: role for role in ROLES}
    return {str(each.get("key")): known[each["role"]] for each in scopes if each.get("role") in known}


def _revocations(account: Claims) -> dict[str, int]:
    listed = account.nats.get("revocations")
    pairs = listed.items() if isinstance(listed, dict) else ()
    return {str(key): at for key, at in pairs if isinstance(at, int)}


def _texts(listed: object) -> list[str]:
    return [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else []
