"""Who gets a certificate: the rules of joining, renewing and revoking. Decides and remembers; knows no bus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, cast

from sawyer.authority.files import CERTIFICATE_S, Authority
from sawyer.authority.registry import Registry, UsedInvitation
from sawyer.bus.credentials import read_creds
from sawyer.bus.membership import write_credentials
from sawyer.errors import BadSignature, CertificateRefused, NotAuthorised, UnknownAccount
from sawyer.identity import jwt
from sawyer.identity.certificate import Certificate
from sawyer.identity.envelope import check, check_signed
from sawyer.identity.invitation import Invitation
from sawyer.identity.keys import Key
from sawyer.schemas.certificates import (
    INVITED_KIND,
    REQUESTED_KIND,
    REVOKED_KIND,
    SUCCEEDED_KIND,
    CertificateRequested,
    Joining,
    MemberCertificate,
    Renewing,
    Revoking,
)
from sawyer.schemas.permissions import Role
from sawyer.schemas.signed import Signed

MAX_SKEW_MS: Final = 10 * 60 * 1000
"""How far the clocks of a member and its authority may differ: an older request is not taken."""
SOON_S: Final = 60
"""Who renews again within this time gets the same again: nothing is written, so asking all the time costs little."""
ANY_NAME: Final = "any"
"""The name in an invitation that leaves it to the newcomer."""
INVITED: Final[tuple[Role, ...]] = ("node", "account")


@dataclass
class Admission:
    """Of one authority. `operator`: the key that its JWTs were made with."""

    authority: Authority
    registry: Registry
    operator: str

    @classmethod
    def open(cls, authority: Authority) -> Admission:
        """Raises VerificationError for files that cannot be used."""
        operator = jwt.decode(authority.operator_token).issuer
        return cls(authority, Registry.open(authority.folder / "issued.json"), operator)

    def invite(
        self, role: Role, name: str, host: str, url: str, ledger_vkey: str, now_s: int, life_s: int
    ) -> Invitation:
        """A join token for one newcomer in this role, under this name ("": any), paid to this host (a node)."""
        key = Key.generate()
        token = self.authority.issue(
            "newcomer", name or ANY_NAME, key.id, now_s, life_s=life_s, host=host, models=(f"as-{role}",)
        )
        return Invitation(
            url=url, network=self.authority.network, ledger_vkey=ledger_vkey, operator=self.operator, role=role,
            name=name, host=host, certificate=token, seed=key.seed,
        )  # fmt: skip

    def join(self, joining: Joining, now_s: int) -> str:
        """The newcomer's certificate; asked again with the same key, a certificate again. Raises CertificateRefused
        for an invitation that is expired, foreign, used, or for something else; BadSignature."""
        wanted = self._requested(joining.requested, now_s)
        invited = self.authority.prove(joining.invitation, self.operator, now_s)
        check(joining.requested.body.canonical(), INVITED_KIND, joining.accepted)
        if joining.accepted.key_id != invited.key:
            raise BadSignature("the request is not signed with the invitation's own key")
        role = _invited_role(invited, wanted)
        used = self.registry.used(invited.id)
        if used is not None and used.key != wanted.key:
            raise CertificateRefused("this invitation was used already", hint="Ask the operator for another one.")
        self._check_free(role, wanted)
        spent = UsedInvitation(id=invited.id, key=wanted.key, expires_s=invited.expires_s)
        return self._issue(role, wanted, invited.host, now_s, spent)

    def renew(self, renewing: Renewing, now_s: int) -> str:
        """A member's new certificate, for as long again, in the same role, name and host; its former key, if it has
        another now, counts no more. Raises CertificateRefused for a key that has none, or that was revoked."""
        wanted, former = self._requested(renewing.requested, now_s), renewing.succeeds
        member = self.registry.of_key(wanted.key if former is None else former.key_id)
        if member is None or member.revoked_s or (member.role, member.name) != (wanted.role, wanted.name):
            raise CertificateRefused(f"the key of {wanted.role} {wanted.name} has no certificate here")
        if former is not None:
            check(wanted.canonical(), SUCCEEDED_KIND, former)
            self.revoke_key(member.key, now_s)
        elif wanted.models == member.models and now_s < member.issued_s + SOON_S:
            return self.authority.issue(
                cast("Role", member.role), member.name, member.key, now_s, models=member.models, host=member.host,
                life_s=member.expires_s - now_s,
            )  # fmt: skip
        return self._issue(cast("Role", member.role), wanted, member.host, now_s)

    def revoke(self, revoking: Revoking, operator: str, now_s: int) -> tuple[MemberCertificate, str]:
        """Who it was, and the account's JWT that says so. Raises NotAuthorised for another's word than the operator's,
        UnknownAccount for a key that has no certificate."""
        revoked = revoking.revoked
        if revoked.signature.key_id != operator or revoked.body.network != self.authority.network:
            raise NotAuthorised("only the operator of this network revokes a certificate")
        check_signed(revoked, REVOKED_KIND)
        return self.revoke_key(revoked.body.key, now_s)

    def revoke_key(self, key: str, now_s: int) -> tuple[MemberCertificate, str]:
        """The same, where the operator's word is not needed: in its own home."""
        member = self.registry.revoke(key, now_s)
        if member is None:
            raise UnknownAccount(f"{key} has no certificate of this network")
        return member, self.authority.revoke(key, now_s)

    def issue_here(
        self, role: Role, name: str, key: Key, now_s: int, *, models: tuple[str, ...] = (), host: str = ""
    ) -> None:
        """A certificate for a member whose key is in this home, kept beside it. Its former key, if it had another,
        counts no more."""
        former = self.registry.named(role, name)
        if former is not None and former.key != key.id:
            self.revoke_key(former.key, now_s)
        self.registry.note(_member(role, name, key.id, host, models, now_s, here=True))
        token = self.authority.issue(role, name, key.id, now_s, models=models, host=host)
        write_credentials(self.authority.home.credentials(role, name), token, key)

    def renew_here(self, now_s: int) -> None:
        """Certificates in this home whose life is half over. One whose credentials file is gone stays as it is."""
        home = self.authority.home
        for member in self.registry.members:
            file = home.credentials(member.role, member.name)
            due = 2 * now_s >= member.issued_s + member.expires_s
            if member.here and due and not member.revoked_s and file.exists():
                _, key = read_creds(file)
                if key.id == member.key:
                    role = cast("Role", member.role)
                    self.issue_here(role, member.name, key, now_s, models=member.models, host=member.host)

    def _requested(self, signed: Signed[CertificateRequested], now_s: int) -> CertificateRequested:
        wanted = signed.body
        if wanted.network != self.authority.network:
            raise CertificateRefused(f"the request is for network {wanted.network}, this is {self.authority.network}")
        if signed.signature.key_id != wanted.key or signed.signature.by != wanted.name:
            raise BadSignature(f"the request for {wanted.name} is not signed with the key that it names")
        if not wanted.key.startswith("U"):
            raise CertificateRefused(f"{wanted.key} is no participant's key")
        if abs(wanted.at_ms - 1000 * now_s) > MAX_SKEW_MS:
            raise CertificateRefused("the request is old, or from the future", hint="Set this machine's clock.")
        check_signed(signed, REQUESTED_KIND)
        if wanted.key in self.authority.revoked():
            raise CertificateRefused(f"the key of {wanted.name} was revoked", hint="Join with a new key.")
        return wanted

    def _check_free(self, role: Role, wanted: CertificateRequested) -> None:
        other = self.registry.named(role, wanted.name)
        if other is not None and other.key != wanted.key:
            raise CertificateRefused(f"there is another {role} {wanted.name} already", hint="Choose another --name.")

    def _issue(
        self, role: Role, wanted: CertificateRequested, host: str, now_s: int, used: UsedInvitation | None = None
    ) -> str:
        self.registry.note(_member(role, wanted.name, wanted.key, host, wanted.models, now_s), used)
        return self.authority.issue(role, wanted.name, wanted.key, now_s, models=wanted.models, host=host)


def _invited_role(invited: Certificate, wanted: CertificateRequested) -> Role:
    """Raises CertificateRefused if this invitation is for something else."""
    role = next((each for each in INVITED if f"as-{each}" in invited.models), None)
    if invited.role != "newcomer" or role is None:
        raise CertificateRefused("this is no invitation", hint="The operator makes one: sawyer network invite.")
    if wanted.role != role or invited.name not in (ANY_NAME, wanted.name):
        name = "" if invited.name == ANY_NAME else f" {invited.name}"
        raise CertificateRefused(f"the invitation is for a {role}{name}, not for {wanted.role} {wanted.name}")
    return role


def _member(
    role: str, name: str, key: str, host: str, models: tuple[str, ...], now_s: int, *, here: bool = False
) -> MemberCertificate:
    return MemberCertificate(
        role=role, name=name, key=key, host=host, models=models, issued_s=now_s, expires_s=now_s + CERTIFICATE_S,
        here=here,
    )  # fmt: skip
