"""Joining with an invitation: this home is pinned to its network, and given a certificate. Owns reading the token."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from sawyer.bus.calls import ASK_TIMEOUT_S, ask_at
from sawyer.bus.connection import NatsBus
from sawyer.bus.credentials import read_creds
from sawyer.bus.membership import Member, join, keep_renewed, renew, write_credentials
from sawyer.bus.protocol import Bus
from sawyer.cli.output import say
from sawyer.cli.parts import pin_of
from sawyer.cli.session import connected
from sawyer.clock import SystemClock, iso
from sawyer.contexts import NatsTarget
from sawyer.errors import NobodyServes, RefusedError, UsageError
from sawyer.home import Home, Pin
from sawyer.identity import jwt
from sawyer.identity.invitation import MAX_CHARS, Invitation
from sawyer.identity.keys import Key, load_or_create
from sawyer.schemas import subjects
from sawyer.schemas.certificates import CertifiedReply
from sawyer.settings import Settings

STDIN: Final = "-"


def read_invitation(given: str) -> Invitation:
    """The invitation in a file, on standard input (-), or in the text itself. Raises UsageError."""
    if given == STDIN:
        return Invitation.read(sys.stdin.read(MAX_CHARS + 1))
    file = Path(given)
    try:
        is_file = file.is_file()
    except OSError:  # a name too long: it is the token
        is_file = False
    if is_file:
        return Invitation.read(file.read_text(encoding="ascii", errors="replace"))
    found = Invitation.read(given)
    say("A token on the command line is seen by every user of this machine: a file, or - for standard input, is not.")
    return found


def join_network(home: Home, invitation: Invitation, name: str, key_file: Path) -> None:
    """This home belongs to the invitation's network from now on, and holds a certificate for the key in this file,
    which is made if there is none, and does not stay if it is refused. Raises UsageError if the home belongs to another
    network, CertificateRefused, ServerUnreachable."""
    home.create()
    was_there = key_file.exists()
    try:
        asyncio.run(_join(home, invitation, name, load_or_create(key_file)))
    except RefusedError:
        if not was_there:  # a key that nobody certified would only mislead
            key_file.unlink(missing_ok=True)
        raise


async def _join(home: Home, invitation: Invitation, name: str, key: Key) -> None:
    pin = Pin(invitation.network, invitation.ledger_vkey, invitation.operator)
    if home.pin() not in (None, pin):
        home.write_pin(pin)  # says what is wrong
    member = Member(invitation.network, invitation.operator, invitation.role, name, key)
    asking = home.credentials("newcomer", name)
    write_credentials(asking, invitation.certificate, invitation.key)
    try:
        bus = await NatsBus.connect(NatsTarget(url=invitation.url, creds=asking), name=f"join {name}")
        try:
            token = await join(bus, invitation, member, SystemClock())
        finally:
            await bus.close()
    finally:
        asking.unlink(missing_ok=True)
    home.write_pin(pin)
    home.write_joined(invitation.url)
    write_credentials(home.credentials(invitation.role, name), token, key)
    say(f"{home.path} belongs to network {pin.network}; its certificate is good until {_until(token)}")


def certify_node_here(settings: Settings, name: str) -> None:
    """A key and a certificate for a node in the home that founded the network, before it connects as itself."""
    home = settings.home
    if home.is_authority and not home.credentials("node", name).is_file():
        asyncio.run(_certify_node_here(settings, name))


async def _certify_node_here(settings: Settings, name: str) -> None:
    async with connected(settings, f"certify {name}") as (bus, _):
        with suppress(NobodyServes):  # a server that asks nobody who they are
            await ask_at(bus, subjects.network("members"), CertifiedReply, None, ASK_TIMEOUT_S)
            await certify_here(bus, settings.home, "node", name, load_or_create(settings.home.node_key(name)))


async def certify_for_model(settings: Settings, name: str, key: Key, model: str) -> None:
    """A certificate that lets this node hear what is asked of it for this model. Nothing is done where it has one that
    does, or none. Raises what the authority answers."""
    home, file = settings.home, settings.home.credentials("node", name)
    models = certified_models(file)
    if models is None or model in models:
        return
    bus = await NatsBus.connect(settings.where_nats("node", name)[0], name=f"renew {name}")
    try:
        wanted = _node(home, name, key, tuple(sorted({*models, model})))
        write_credentials(file, await renew(bus, wanted, SystemClock()), key)
    finally:
        await bus.close()


async def certify_new_key(settings: Settings, role: str, name: str, key: Key) -> None:
    """The certificate of a member whose key was replaced; nothing is done where it has none, or one for this key."""
    home, file = settings.home, settings.home.credentials(role, name)
    models = certified_models(file)
    if models is None or (former := read_creds(file)[1]).id == key.id:
        return
    pin = pin_of(home)
    bus = await NatsBus.connect(settings.where_nats(role, name)[0], name=f"renew {name}")
    try:
        member = Member(pin.network, pin.operator, role, name, key, models)
        write_credentials(file, await renew(bus, member, SystemClock(), former), key)
    finally:
        await bus.close()


@asynccontextmanager
async def staying_certified(bus: Bus, home: Home, name: str, key: Key) -> AsyncIterator[None]:
    """Meanwhile this node's certificate is renewed before it ends; in the authority's home, that does it."""
    file = home.credentials("node", name)
    models = certified_models(file)
    if models is None or home.is_authority:
        yield
        return
    task = asyncio.create_task(keep_renewed(bus, file, _node(home, name, key, models), SystemClock()))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _node(home: Home, name: str, key: Key, models: tuple[str, ...]) -> Member:
    pin = pin_of(home)
    return Member(pin.network, pin.operator, "node", name, key, models)


def certified_models(file: Path) -> tuple[str, ...] | None:
    """Which models the certificate in a credentials file is for; None if there is no file."""
    if not file.is_file():
        return None
    tags = jwt.decode(read_creds(file)[0]).nats.get("tags") or ()
    return tuple(tag.removeprefix("model:") for tag in tags if tag.startswith("model:"))


async def certify_here(bus: Bus, home: Home, role: str, name: str, key: Key) -> None:
    """A certificate for a member whose key was made in the home that founded the network: it invites itself. Nothing is
    done in another home, or where there is one already."""
    from sawyer.cli.certifying import now_s, open_admission

    pin = home.pin()
    if pin is None or not home.is_authority or home.credentials(role, name).is_file():
        return
    if role not in ("node", "account"):
        raise RefusedError(f"a {role} is not invited")
    admission = open_admission(home, pin)
    invitation = admission.invite("node" if role == "node" else "account", name, "", "", pin.ledger_vkey, now_s(), 60)
    member = Member(pin.network, invitation.operator, role, name, key)
    with suppress(NobodyServes):  # a server that asks nobody who they are
        write_credentials(home.credentials(role, name), await join(bus, invitation, member, SystemClock()), key)


def check_role(invitation: Invitation, role: str) -> None:
    """Raises UsageError for an invitation of another kind."""
    if invitation.role != role:
        how = "sawyer register --join" if invitation.role == "node" else f"sawyer account open {invitation.name} --join"
        raise UsageError(f"this invitation is for role {invitation.role}, not {role}", hint=f"Use: {how}")


def _until(token: str) -> str:
    return iso(1000 * jwt.decode(token).expires_s)
