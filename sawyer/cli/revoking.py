"""`sawyer network revoke` and `members`: what they ask of the book and of the authority."""

from __future__ import annotations

from typing import Any

from sawyer.bus.calls import ASK_TIMEOUT_S, ask_at
from sawyer.bus.protocol import Bus
from sawyer.cli.operating import operating
from sawyer.cli.session import connected
from sawyer.clock import SystemClock
from sawyer.errors import UnknownAccount, UsageError
from sawyer.ids import is_slug
from sawyer.schemas import subjects
from sawyer.schemas.certificates import (
    REVOKED_KIND,
    CertificateRevoked,
    CertifiedReply,
    MemberCertificate,
    Revoking,
)
from sawyer.schemas.events import KeyRevoked
from sawyer.settings import Settings

OF_MEMBERS = ("node", "account")


async def certified(settings: Settings) -> tuple[MemberCertificate, ...]:
    """Everybody who has, or had, a certificate. Raises NobodyServes if no authority works there."""
    async with connected(settings, "members") as (bus, _):
        return await _members(bus)


async def revoke_member(settings: Settings, role: str, name: str, since: str, reason: str) -> dict[str, Any]:
    """In the book first, then at the authority, which cuts it off. Cut short, the same command finishes it."""
    from sawyer.cli.moments import moment_ms

    if role not in OF_MEMBERS or not is_slug(reason):
        raise UsageError(f"{role} {name}, {reason!r}: not to be revoked so", hint="--role node|account, --reason WORD.")
    since_ms = moment_ms(since) if since else 0
    async with operating(settings) as (founder, network):
        named = [each for each in await _members(founder.bus) if (each.role, each.name) == (role, name)]
        if not named:
            raise UnknownAccount(
                f"no {role} {name} has a certificate of {network.network}", hint="See: sawyer network members."
            )
        key = max(named, key=lambda each: each.issued_s).key
        body = KeyRevoked(network=network.network, key=key, since_ms=since_ms, reason=reason)
        entry = await founder.record(body)
        told = CertificateRevoked(network=network.network, key=key, at_ms=SystemClock().now_ms())
        revoking = Revoking(revoked=founder.signed(told, REVOKED_KIND))
        await ask_at(founder.bus, subjects.network("revoke"), CertifiedReply, revoking, ASK_TIMEOUT_S)
    return {"role": role, "name": name, "key": key, "entry": entry.seq, "reason": reason}


async def _members(bus: Bus) -> tuple[MemberCertificate, ...]:
    reply = await ask_at(bus, subjects.network("members"), CertifiedReply, None, ASK_TIMEOUT_S)
    return reply.members
