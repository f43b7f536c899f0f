"""NATS JWTs, version 2: claims that an NKEY signed, as nats-server, nsc and the nats CLI read them. Writing and
reading; what the claims mean is certificate.py's. Format: nats-io/jwt v2.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sawyer.errors import BadSignature, MalformedMessage
from sawyer.identity.keys import Key, public_bytes, verify

HEADER: Final = {"typ": "JWT", "alg": "ed25519-nkey"}
VERSION: Final = 2
MAX_BYTES: Final = 256 * 1024
"""An account's JWT carries its roles and its revocations."""
_PART: Final = re.compile(r"[A-Za-z0-9_-]+")
_ISSUERS: Final = "OAU"
_LATEST_S: Final = 2**40


@dataclass(frozen=True)
class Claims:
    """What a JWT says: who says it, of whom, under which name, since and until when (seconds; 0: for ever), and what
    NATS makes of it (`nats`: type, permissions, limits). Its signature holds; whether the issuer may say it is for the
    caller to judge."""

    issuer: str
    subject: str
    name: str
    id: str
    issued_s: int
    expires_s: int
    nats: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """operator, account or user; "" where it does not say."""
        found = self.nats.get("type")
        return found if isinstance(found, str) else ""


def encode(issuer: Key, subject: str, name: str, nats: Mapping[str, Any], *, now_s: int, expires_s: int = 0) -> str:
    """A signed JWT about the public key `subject`."""
    claims: dict[str, Any] = {
        "iat": now_s,
        "iss": issuer.id,
        "name": name,
        "nats": {**nats, "version": VERSION},
        "sub": subject,
    }
    if expires_s:
        claims["exp"] = expires_s
    digest = hashlib.new("sha512_256", _json(claims)).digest()
    claims["jti"] = base64.b32encode(digest).rstrip(b"=").decode("ascii")
    signed = f"{_base64(_json(HEADER))}.{_base64(_json(claims))}"
    return f"{signed}.{_base64(issuer.sign(signed.encode('ascii')))}"


def decode(token: str) -> Claims:
    """What the JWT says. Raises MalformedMessage for what is none, BadSignature where its issuer did not sign it."""
    parts = token.split(".") if len(token) <= MAX_BYTES else []
    if len(parts) != 3:
        raise MalformedMessage("not a NATS JWT: it has three parts with dots between")
    head, body, signature = (_unbase64(part) for part in parts)
    if _object(head) != HEADER:
        raise MalformedMessage("not a NATS JWT: its header is another one")
    claims = _read(_object(body))
    public = public_bytes(claims.issuer, _ISSUERS)
    if not verify(public, f"{parts[0]}.{parts[1]}".encode("ascii"), signature):
        raise BadSignature(f"the JWT of {claims.name!r} is not signed by {claims.issuer}, whom it names")
    return claims


def _read(held: Mapping[str, Any]) -> Claims:
    texts = {name: held.get(name) for name in ("iss", "sub", "name", "jti")}
    times = {"iat": held.get("iat"), "exp": held.get("exp", 0)}
    nats = held.get("nats")
    whole = all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LATEST_S
                for value in times.values())  # fmt: skip
    if not (whole and all(isinstance(value, str) for value in texts.values()) and isinstance(nats, dict)):
        raise MalformedMessage("not a NATS JWT: a claim is missing, or of another type")
    if nats.get("version") != VERSION:
        raise MalformedMessage(f"not a NATS JWT of version {VERSION}")
    return Claims(
        issuer=str(texts["iss"]),
        subject=str(texts["sub"]),
        name=str(texts["name"]),
        id=str(texts["jti"]),
        issued_s=int(times["iat"] or 0),
        expires_s=int(times["exp"] or 0),
        nats=nats,
    )


def _object(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage("not a NATS JWT: a part of it is no JSON") from error
    if not isinstance(found, dict):
        raise MalformedMessage("not a NATS JWT: a part of it is no JSON object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A name that stands twice would mean one thing to us and another to the server."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("utf-8")


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _unbase64(text: str) -> bytes:
    if not _PART.fullmatch(text):
        raise MalformedMessage("not a NATS JWT: a part of it is no base64url")
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise MalformedMessage("not a NATS JWT: a part of it is no base64url") from error
    if _base64(raw) != text:  # bits that nobody reads would give one statement two texts
        raise MalformedMessage("not a NATS JWT: a part of it is not in its one form")
    return raw
