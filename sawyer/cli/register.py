"""`sawyer register`: a machine joins a network: this home is pinned to it, and the node's key goes into its book."""

from __future__ import annotations

import asyncio
import shlex
from decimal import Decimal
from typing import Annotated, Any, Final

import typer

from sawyer.cli import output
from sawyer.cli.ledger import anchor_of
from sawyer.cli.options import ContextOption, CredsOption, HomeOption, JoinOption, JsonOption, NatsOption
from sawyer.contexts import without_secret
from sawyer.errors import UsageError
from sawyer.ids import HostId, NetworkId, NodeId
from sawyer.settings import DEFAULT, FLAG, Settings

MOST_PROMISED_US: Final = 60_000_000


def register(
    name: Annotated[str, typer.Option("--name", help="The node's name in the book (default: this machine's).")] = "",
    host: Annotated[str, typer.Option("--host", help="Who is paid (default: your user name).")] = "",
    key: Annotated[
        str,
        typer.Option("--key", metavar="VKEY", help="The network's verifier key: no other is taken."),
    ] = "",
    promise: Annotated[
        str,
        typer.Option(
            "--promise",
            metavar="MS",
            help="The time within which 95 % of a request's layer calls to this node are answered, network included. "
            "Work within it earns in full, within twice that 90 %, within four times that half, beyond that nothing. "
            "Cannot be changed later. Without a promise all work earns in full.",
        ),
    ] = "",
    join: JoinOption = "",
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Join a network as a host: trust its key from now on, make the node's key, and have it recorded in the book."""
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds, node=name, host=host)
    promised_us = promised(promise) if promise else None
    if join:
        settings = _joined(settings, join)
    joined = asyncio.run(_join(settings, anchor_of(key) if key else "", promised_us))
    if as_json:
        output.emit_json(joined)
        return
    output.line(f"{joined['node']} is a node of {joined['network']}; {joined['host']} is paid for its work")
    if joined["promised_us"]:
        output.line(f"it promises {joined['promised_us'] / 1000:g} ms for 95 % of its layer calls")
    output.line(f"its key {joined['key']} is in {joined['key_file']}: keep it")
    flags = _flags(settings)
    for model in joined["models"]:
        output.say(f"next: sawyer serve {model}{flags}")


def _joined(settings: Settings, given: str) -> Settings:
    """With an invitation: this home is pinned to its network and holds a certificate; the settings to go on with.
    Raises UsageError for another kind of invitation, or another host than it names."""
    from sawyer.cli.joining import check_role, join_network, read_invitation

    invitation = read_invitation(given)
    check_role(invitation, "node")
    values, home = settings.values, settings.home
    if values["host"].rank < DEFAULT and settings["host"] != invitation.host:
        raise UsageError(
            f"the invitation is for a node of {invitation.host}, not of {settings['host']}", hint="Leave --host out."
        )
    name = settings["node"] if values["node"].rank < DEFAULT or not invitation.name else invitation.name
    join_network(home, invitation, name, home.node_key(name))
    return settings.told(host=(invitation.host, "the invitation"), node=(name, "the invitation"))


def promised(text: str) -> int:
    """Microseconds of a promise in milliseconds, down to a thousandth. Raises UsageError."""
    try:
        promised_us = Decimal(text) * 1000
        whole = int(promised_us)
    except (ArithmeticError, ValueError):
        whole, promised_us = 0, Decimal(1)
    if whole != promised_us or not 1 <= whole <= MOST_PROMISED_US:
        raise UsageError(
            f"{text!r} is no promise", hint="Milliseconds, such as 20 or 2.5, up to a minute; leave it out for none."
        )
    return whole


def _flags(settings: Settings) -> str:
    """What `serve` must be told again, because it was told to us. An address that holds a secret is not among it: what
    to do instead was said when the home was joined."""
    from sawyer.cli.session import found_again

    told = [("name", "node"), ("home", "home"), ("host", "host")]
    if not found_again(settings):
        secret = without_secret(settings["nats"]) != settings["nats"]
        told += [("context", "context"), ("creds", "creds"), *([] if secret else [("nats", "nats")])]
    values = settings.values
    return "".join(f" --{flag} {shlex.quote(values[name].text)}" for flag, name in told if values[name].rank == FLAG)


async def _join(settings: Settings, vkey: str, promised_us: int | None) -> dict[str, Any]:
    from sawyer.cli.joining import certify_here
    from sawyer.cli.session import connected
    from sawyer.engine.session import CPU, device_name
    from sawyer.node.registration import NodeIdentity, register

    async with connected(settings, f"register {settings['node']}", pin=True, vkey=vkey) as (bus, network):
        file = settings.home.node_key(settings["node"])
        chosen = settings.values["host"].rank < DEFAULT
        node, host = NodeId(settings["node"]), HostId(settings["host"])
        me = NodeIdentity.open(node, host, file, host_chosen=chosen, promised_us=promised_us)
        known = await register(bus, NetworkId(network.network), me, device_name(CPU))
        await certify_here(bus, settings.home, "node", me.node, me.key)
    return {
        "network": network.network,
        "node": known.node,
        "host": known.host,
        "promised_us": known.promised_us,
        "key": known.key,
        "key_file": str(file),
        "models": [each.model for each in network.models],
    }
