"""How a key becomes a member of a network, and stays one: asking its authority for a certificate, and for another
before it ends. What is answered is proven by the operator's key before it is kept."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sawyer import durable
from sawyer.bus.calls import ASK_TIMEOUT_S, ask_at
from sawyer.bus.credentials import read_creds
from sawyer.bus.protocol import Bus
from sawyer.clock import Clock
from sawyer.errors import CertificateRefused, SawyerError
from sawyer.identity import jwt
from sawyer.identity.certificate import Certificate, Chain, credentials_text
from sawyer.identity.envelope import attest, sign
from sawyer.identity.invitation import Invitation
from sawyer.identity.keys import Key
from sawyer.schemas import subjects
from sawyer.schemas.certificates import (
    INVITED_KIND,
    REQUESTED_KIND,
    SUCCEEDED_KIND,
    CertificateReply,
    CertificateRequested,
    Joining,
    Renewing,
)

LOOK_S: Final = 600.0
"""How often a certificate's life is looked at."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """Whom a certificate is for. `operator`: of the network, the root of what proves it; `models`: a node's."""

    network: str
    operator: str
    role: str
    name: str
    key: Key
    models: tuple[str, ...] = ()

    def request(self, clock: Clock) -> CertificateRequested:
        return CertificateRequested(
            network=self.network, role=self.role, name=self.name, key=self.key.id, models=self.models,
            at_ms=clock.now_ms(),
        )  # fmt: skip


async def join(bus: Bus, invitation: Invitation, member: Member, clock: Clock) -> str:
    """The certificate's JWT, proven. `bus` is connected with the invitation. Raises CertificateRefused and what else
    the authority answers, NobodyServes if none works there."""
    request, invited = member.request(clock), invitation.key
    joining = Joining(
        requested=sign(request, REQUESTED_KIND, member.name, member.key),
        invitation=invitation.certificate,
        accepted=attest(request.canonical(), INVITED_KIND, "newcomer", invited),
    )
    reply = await ask_at(bus, subjects.network("join"), CertificateReply, joining, ASK_TIMEOUT_S)
    return _proven(reply, member, clock)


async def renew(bus: Bus, member: Member, clock: Clock, former: Key | None = None) -> str:
    """Another certificate for a member, proven; with a new key, `former` is the one that counts no more soon after.
    Raises CertificateRefused for a revoked key, NobodyServes, NoAnswer."""
    request = member.request(clock)
    renewing = Renewing(
        requested=sign(request, REQUESTED_KIND, member.name, member.key),
        succeeds=attest(request.canonical(), SUCCEEDED_KIND, member.name, former) if former else None,
    )
    reply = await ask_at(bus, subjects.network("renew"), CertificateReply, renewing, ASK_TIMEOUT_S)
    return _proven(reply, member, clock)


async def keep_renewed(bus: Bus, file: Path, member: Member, clock: Clock, *, look_s: float = LOOK_S) -> None:
    """Until it is cancelled: the credentials file holds a certificate that has more than half of its life before it,
    as long as the authority is there. The connection takes it up when it is made anew."""
    while True:
        try:
            token, _ = read_creds(file)
            if _half_over(token, clock):
                write_credentials(file, await renew(bus, member, clock), member.key)
                log.info("the certificate of %s %s is renewed", member.role, member.name)
        except SawyerError as error:
            log.warning("the certificate of %s %s is not renewed: %s", member.role, member.name, error)
        await asyncio.sleep(look_s)


def write_credentials(file: Path, token: str, key: Key) -> None:
    """Keep a certificate with its key, mode 0600."""
    durable.replace(file, credentials_text(token, key).encode("ascii"))


def _half_over(token: str, clock: Clock) -> bool:
    claims = jwt.decode(token)
    return bool(claims.expires_s) and 2 * (clock.now_ms() // 1000) >= claims.issued_s + claims.expires_s


def _proven(reply: CertificateReply, member: Member, clock: Clock) -> str:
    """Raises CertificateRefused unless the operator's key stands behind this, and it is what was asked for."""
    chain = Chain(member.operator, reply.operator, reply.account)
    certificate: Certificate = chain.prove(reply.certificate, clock.now_ms() // 1000)
    if (certificate.role, certificate.name, certificate.key) != (member.role, member.name, member.key.id):
        raise CertificateRefused(f"the authority certified {certificate.role} {certificate.name}, and not us")
    return reply.certificate
