"""`sawyer network`: who may connect. Made once, run beside the server, and asked for invitations and revocations."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Annotated, Final

import typer

from sawyer.cli import output
from sawyer.cli.options import ContextOption, CredsOption, HomeOption, JsonOption, NatsOption
from sawyer.clock import SystemClock, iso
from sawyer.errors import UsageError
from sawyer.home import Home, Pin
from sawyer.schemas.permissions import Role
from sawyer.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Who may connect: make the authority, invite, revoke.")

_LIFE: Final = re.compile(r"([1-9][0-9]{0,4})([mhd])")
_SECONDS: Final = {"m": 60, "h": 3600, "d": 86_400}
LONGEST_S: Final = 30 * 86_400


@app.command("init", epilog="Example: sawyer network init --home DIR")
def init(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Make a network's keys and its authority in this home, once. `sawyer up` and `sawyer demo` do it by themselves."""
    from sawyer.cli.certifying import open_admission
    from sawyer.cli.founding import pinned_network

    settings = Settings.load(home=home)
    place = settings.home
    place.create()
    pin = pinned_network(place)
    authority = open_admission(place, pin).authority
    found = {
        "network": pin.network,
        "ledger_vkey": pin.ledger_vkey,
        "operator": pin.operator,
        "account": authority.account,
        "keys": str(place.keys),
        "jwts": str(authority.folder),
    }
    if as_json:
        output.emit_json(found)
        return
    output.line(f"{place.path} is the home of network {pin.network}")
    output.table(("", ""), [(name, value) for name, value in found.items() if name != "network"])
    output.say("Keep a copy of the keys: nobody can make them anew. Run it: sawyer up -d")


@app.command("invite", epilog="Example: sawyer network invite --host maria > token.txt")
def invite(
    host: Annotated[str, typer.Option("--host", help="Invite a node; who is paid for its work.")] = "",
    account: Annotated[str, typer.Option("--account", help="Invite a consumer: the account's name.")] = "",
    name: Annotated[str, typer.Option("--name", help="The node's name (default: left to the newcomer).")] = "",
    life: Annotated[str, typer.Option("--for", metavar="TIME", help="How long it is good: 30m, 24h, 7d.")] = "24h",
    home: HomeOption = None,
    nats: NatsOption = "",
) -> None:
    """Print a join token: whoever has it becomes a member, once. Give it away as you would a password."""
    from sawyer.cli.certifying import now_s, open_admission
    from sawyer.ids import is_slug

    if bool(host) == bool(account) or (name and account):
        raise UsageError("say whom the invitation is for", hint="Either --host NAME (a node) or --account NAME.")
    for word in filter(None, (host, account, name)):
        if not is_slug(word):
            raise UsageError(f"{word!r} is no name", hint="Lower-case letters, digits, - and _, at most 63.")
    life_s = _life(life)
    settings = Settings.load(home=home, nats=nats)
    pin = _founders_pin(settings.home)
    admission, now = open_admission(settings.home, pin), now_s()
    url = settings.told_nats()[0].address
    role: Role = "node" if host else "account"
    invitation = admission.invite(role, name or account, host, url, pin.ledger_vkey, now, life_s)
    sys.stdout.write(invitation.text + "\n")
    whom = f"one node of {host}" if host else f"account {account}"
    output.say(f"for {whom} at {url}, once, until {iso(1000 * (now + life_s))}")
    how = "sawyer register --join FILE" if host else f"sawyer account open {account} --join FILE"
    output.say(f"they run: {how}   (or - for FILE, and paste it)")


@app.command("serve", epilog="Example: sawyer network serve --home DIR --nats nats://127.0.0.1:4222")
def serve(
    home: HomeOption = None, nats: NatsOption = "", context: ContextOption = "", creds: CredsOption = None
) -> None:
    """Run the authority: it answers newcomers, renews certificates, revokes them, and tells routers who is gone."""
    from sawyer.authority.service import AuthorityService
    from sawyer.bus.connection import NatsBus
    from sawyer.cli.certifying import open_admission
    from sawyer.cli.network_plan import AUTHORITY
    from sawyer.cli.parts import run_part, until_stopped

    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    pin = _founders_pin(settings.home)
    admission = open_admission(settings.home, pin)

    async def main() -> None:
        target = settings.where_nats(AUTHORITY, AUTHORITY)[0]
        bus = await NatsBus.connect(target, name=AUTHORITY)
        try:
            server = await NatsBus.connect(target.with_creds(admission.authority.server_credentials), name=AUTHORITY)
            try:
                part = AuthorityService(bus, server, admission, pin, SystemClock())
                await until_stopped(part, bus, f"authority of {pin.network}")
            finally:
                await server.close()
        finally:
            await bus.close()

    run_part(main, settings)


@app.command("revoke", epilog="Example: sawyer network revoke attic --reason stolen")
def revoke(
    name: Annotated[str, typer.Argument(metavar="NODE", help="A node, as `sawyer network members` shows it.")],
    role: Annotated[str, typer.Option("--role", help="What it is: node or account.")] = "node",
    reason: Annotated[str, typer.Option("--reason", metavar="WORD", help="Why: one word.")] = "revoked",
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="Its key may have been in other hands since then (UTC).")
    ] = "",
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """End a membership at once: it is cut off, its key signs nothing any more, and the book says so."""
    from sawyer.cli.revoking import revoke_member

    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    done = asyncio.run(revoke_member(settings, role, name, since, reason))
    if as_json:
        output.emit_json(done)
        return
    output.line(f"{role} {name} is revoked (entry {done['entry']}): it is cut off, and its key signs nothing any more")


@app.command("members", epilog="Example: sawyer network members --json")
def members(
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Show who has a certificate, for what, and until when."""
    from sawyer.cli.revoking import certified

    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    found = asyncio.run(certified(settings))
    if as_json:
        output.emit_json([each.model_dump(mode="json") for each in found])
        return
    rows = [
        (each.role, each.name, each.host, ", ".join(each.models), each.key, _until(each.expires_s, each.revoked_s))
        for each in found
    ]
    output.table(("role", "name", "host", "models", "key", "good until"), rows)


def _until(expires_s: int, revoked_s: int) -> str:
    if revoked_s:
        return f"revoked {iso(1000 * revoked_s)}"
    return iso(1000 * expires_s) if expires_s else "for ever"


def _founders_pin(home: Home) -> Pin:
    from sawyer.cli.founding_keys import check_founded_here
    from sawyer.cli.parts import pin_of

    pin = pin_of(home)
    check_founded_here(home, pin)
    return pin


def _life(text: str) -> int:
    """Seconds. Raises UsageError."""
    found = _LIFE.fullmatch(text)
    life_s = int(found.group(1)) * _SECONDS[found.group(2)] if found else 0
    if not 0 < life_s <= LONGEST_S:
        raise UsageError(f"{text!r} is no time for an invitation", hint="Such as 30m, 24h or 7d, up to 30 days.")
    return life_s
