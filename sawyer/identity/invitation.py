"""A join token: one text that a newcomer is given, with everything to become a member once: where the network is, whom
to trust, and a short-lived certificate that may do nothing but ask for a lasting one. A secret until it is used."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import asdict, dataclass, field
from typing import Final

from sawyer.errors import BadSignature, MalformedMessage, UsageError
from sawyer.identity import jwt
from sawyer.identity.keys import Key

PREFIX: Final = "sawyer-join-"
MAX_CHARS: Final = 16_384


@dataclass(frozen=True)
class Invitation:
    """`certificate`: the newcomer's JWT; `seed`: of the key it is for; `role`, `name`, `host`: what may be asked for
    (`name` empty: any)."""

    url: str
    network: str
    ledger_vkey: str
    operator: str
    role: str
    name: str
    host: str
    certificate: str
    seed: str = field(repr=False)

    @property
    def text(self) -> str:
        """As it is given away."""
        raw = json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode("utf-8")
        return PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")

    @property
    def key(self) -> Key:
        return Key.from_seed(self.seed)

    @property
    def expires_s(self) -> int:
        return jwt.decode(self.certificate).expires_s

    @classmethod
    def read(cls, text: str) -> Invitation:
        """Raises UsageError for text that is no join token, never telling what it holds."""
        word = "".join(text.split())
        encoded = word.removeprefix(PREFIX)
        if not word.startswith(PREFIX) or len(word) > MAX_CHARS:
            raise _no_token()
        try:
            held = json.loads(base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True))
            found = cls(**held)
        except (binascii.Error, ValueError, TypeError, RecursionError) as error:
            raise _no_token() from error
        if not all(isinstance(value, str) for value in asdict(found).values()):
            raise _no_token()
        try:
            claims = jwt.decode(found.certificate)
            own = found.key.id
        except (MalformedMessage, BadSignature, UsageError) as error:
            raise _no_token() from error
        if claims.subject != own:
            raise _no_token()
        return found


def _no_token() -> UsageError:
    return UsageError(
        "this is no join token, or a part of it is missing",
        hint=f"It begins with {PREFIX}; the operator makes one: sawyer network invite.",
    )
