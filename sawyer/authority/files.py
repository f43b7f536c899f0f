"""What the authority of a network keeps in its home: signing keys, the JWTs that make them count, and which keys are
revoked. Made whole when it is opened; knows no bus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from sawyer import durable
from sawyer.bus.membership import write_credentials
from sawyer.bus.server import ServerTrust
from sawyer.errors import VerificationError
from sawyer.home import Home
from sawyer.identity import certificate
from sawyer.identity.certificate import Certificate, Chain
from sawyer.identity.keys import Key, KeyKind, load_or_create
from sawyer.schemas.permissions import ROLES, Role

CERTIFICATE_S: Final = 30 * 24 * 3600
"""How long a certificate is good; it is renewed when half of that is over."""


class Authority:
    """Of one network, in the home that founded it. Its keys never leave this home; what it says is signed."""

    def __init__(self, home: Home, network: str) -> None:
        self.network = network
        self.home = home
        self.folder = home.path / "authority"
        self._speaker = self._key("authority", "O")
        self._account = self._key("account", "A")
        self._system = self._key("system", "A")
        self._server_user = self._key("server-user", "U")
        self._signers = {role: self._key(f"signs-{role}", "A") for role in ROLES}

    @classmethod
    def open(cls, home: Home, network: str, operator: Key, now_s: int) -> Authority:
        """The authority in this home; what is missing of it is made. `operator`: of the network, to vouch for it once.
        Raises NotAuthorised for a key file that others may read, VerificationError for files that cannot be used."""
        authority = cls(home, network)
        if not authority._operator_file.exists():
            token = certificate.operator_jwt(
                operator, network, authority._system.id, authority._speaker.id, now_s=now_s
            )
            durable.replace(authority._operator_file, token.encode("ascii"))
            durable.replace(authority._system_file, certificate.system_jwt(
                authority._speaker, authority._system.id, now_s=now_s).encode("ascii"))  # fmt: skip
        authority.write_account(now_s)
        authority._write_server_user(now_s)
        return authority

    @property
    def account(self) -> str:
        """The public key of the network's NATS account."""
        return self._account.id

    @property
    def account_token(self) -> str:
        """The account's JWT, as it was written last."""
        return self._account_file.read_text(encoding="ascii")

    @property
    def operator_token(self) -> str:
        return self._operator_file.read_text(encoding="ascii")

    @property
    def server_credentials(self) -> Path:
        """With which the authority speaks to the server itself."""
        return self.home.credentials("server", "authority")

    @property
    def trust(self) -> ServerTrust:
        """What the NATS server of this network is started with."""
        jwts = {self._system.id: self._system_file.read_text(encoding="ascii"), self.account: self.account_token}
        return ServerTrust(self._operator_file, self._system.id, jwts, self.home.nats / "jwt")

    def chain(self, operator: str) -> Chain:
        """What proves this authority's certificates, for who knows the operator's key that it was made with."""
        return Chain(operator, self.operator_token, self.account_token)

    def write_account(self, now_s: int) -> str:
        """Sign the account's JWT anew, with the roles as this Sawyer has them, and all that is revoked."""
        signers = {role: key.id for role, key in self._signers.items()}
        token = certificate.account_jwt(self._speaker, self.account, self.network, signers, self.revoked(), now_s=now_s)
        durable.replace(self._account_file, token.encode("ascii"))
        return token

    def issue(
        self, role: Role, name: str, key: str, now_s: int, *, models: tuple[str, ...] = (), host: str = "",
        life_s: int = CERTIFICATE_S,
    ) -> str:  # fmt: skip
        """A certificate for this public key. Whether its holder should have one was decided before."""
        return certificate.certificate_jwt(
            self._signers[role],
            self.account,
            key,
            name,
            now_s=now_s,
            expires_s=now_s + life_s,
            models=models,
            host=host,
        )

    def revoke(self, key: str, now_s: int) -> str:
        """No certificate of this key counts any more, and none is issued to it. The account's JWT that says so."""
        if key not in (held := self.revoked()):
            durable.replace(self._revoked_file, _json(held | {key: now_s}))
        return self.write_account(now_s)

    def revoked(self) -> dict[str, int]:
        """Each revoked key, and when (seconds). Raises VerificationError."""
        try:
            held = json.loads(self._revoked_file.read_text(encoding="ascii"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise VerificationError(f"{self._revoked_file} is not a list of keys", hint="Restore it.") from error
        return {str(key): int(at_s) for key, at_s in held.items()}

    def prove(self, token: str, operator: str, now_s: int) -> Certificate:
        """Raises what Chain and its `prove` raise."""
        return self.chain(operator).prove(token, now_s)

    def _write_server_user(self, now_s: int) -> None:
        user = self._server_user
        token = certificate.system_user_jwt(self._system, user.id, self.account, now_s=now_s)
        write_credentials(self.server_credentials, token, user)

    def _key(self, name: str, kind: KeyKind) -> Key:
        return load_or_create(self.home.keys / "authority" / f"{name}.nk", kind)

    @property
    def _operator_file(self) -> Path:
        return self.folder / "operator.jwt"

    @property
    def _system_file(self) -> Path:
        return self.folder / "system.jwt"

    @property
    def _account_file(self) -> Path:
        return self.folder / "account.jwt"

    @property
    def _revoked_file(self) -> Path:
        return self.folder / "revoked.json"


def _json(value: dict[str, int]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode("ascii")
