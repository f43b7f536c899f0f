"""`sawyer register`: a machine joins a network: this home is pinned to it, and the node's key goes into its book."""

from __future__ import annotations

import asyncio
import shlex
from typing import Annotated

import typer

from sawyer.cli import output
from sawyer.cli.ledger import anchor_of
from sawyer.cli.options import ContextOption, CredsOption, HomeOption, JsonOption, NatsOption
from sawyer.contexts import without_secret
from sawyer.ids import HostId, NetworkId, NodeId
from sawyer.settings import DEFAULT, FLAG, Settings


def register(
    name: Annotated[str, typer.Option("--name", help="The node's name in the book (default: this machine's).")] = "",
    host: Annotated[str, typer.Option("--host", help="Who is paid (default: your user name).")] = "",
    key: Annotated[
        str,
        typer.Option("--key", metavar="VKEY", help="The network's verifier key: no other is taken."),
    ] = "",
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Join a network as a host: trust its key from now on, make the node's key, and have it recorded in the book."""
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds, node=name, host=host)
    joined = asyncio.run(_join(settings, anchor_of(key) if key else ""))
    if as_json:
        output.emit_json(joined)
        return
    output.line(f"{joined['node']} is a node of {joined['network']}; {joined['host']} is paid for its work")
    output.line(f"its key {joined['key']} is in {joined['key_file']}: keep it")
    flags = _flags(settings)
    for model in joined["models"]:
        output.say(f"next: sawyer serve {model}{flags}")


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


async def _join(settings: Settings, vkey: str) -> dict[str, str | list[str]]:
    from sawyer.cli.session import connected
    from sawyer.engine.session import CPU, device_name
    from sawyer.node.registration import NodeIdentity, register

    async with connected(settings, f"register {settings['node']}", pin=True, vkey=vkey) as (bus, network):
        file = settings.home.node_key(settings["node"])
        chosen = settings.values["host"].rank < DEFAULT
        me = NodeIdentity.open(NodeId(settings["node"]), HostId(settings["host"]), file, host_chosen=chosen)
        known = await register(bus, NetworkId(network.network), me, device_name(CPU))
    return {
        "network": network.network,
        "node": known.node,
        "host": known.host,
        "key": known.key,
        "key_file": str(file),
        "models": [each.model for each in network.models],
    }
