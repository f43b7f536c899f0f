"""`sawyer serve`: host experts of a model on this machine, until SIGTERM or Ctrl-C."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

import sawyer
from sawyer.cli.options import ContextOption, CredsOption, FormatOption, HomeOption, NatsOption, ThreadsOption
from sawyer.cli.parts import model_folder, pin_of, run_part, until_stopped
from sawyer.clock import SystemClock
from sawyer.errors import UsageError
from sawyer.ids import HostId, NetworkId, NodeId
from sawyer.settings import DEFAULT, Settings

if TYPE_CHECKING:
    from sawyer.engine.session import Device


def serve(
    model: Annotated[str, typer.Argument(help="Model id, or the folder of a split model.")],
    name: Annotated[str, typer.Option("--name", help="The node's name in the book (default: this machine's).")] = "",
    host: Annotated[str, typer.Option("--host", help="Who is paid (default: your user name).")] = "",
    share: Annotated[
        str, typer.Option("--share", metavar="PART/OF", help="Which equal share of the experts, from 0 (default: 0/1).")
    ] = "",
    experts: Annotated[
        str,
        typer.Option("--experts", metavar="LAYERS:EXPERTS,...", help="Which experts instead, such as 0:0-3,1:4,2:*."),
    ] = "",
    format: FormatOption = "q4",
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or auto (the default).")] = "",
    threads: ThreadsOption = None,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Host experts: verify their files, answer activation requests, sign receipts."""
    from sawyer.bus.connection import NatsBus
    from sawyer.engine.experts import FAST
    from sawyer.engine.session import configure, default_threads
    from sawyer.model.artifacts import Artifacts
    from sawyer.model.files import FilesHere
    from sawyer.node.agent import Hosting, NodeAgent
    from sawyer.node.hosting import parse_experts, parse_share
    from sawyer.node.hosting import share as share_of
    from sawyer.node.receipts import ReceiptLog
    from sawyer.node.registration import NodeIdentity
    from sawyer.node.witness import CheckpointWitness

    if share and experts:
        raise UsageError("--share and --experts both say which experts", hint="Give one of them.")
    settings = Settings.load(
        home=home, nats=nats, context=context, creds=creds, threads=threads, device=device, node=name, host=host
    )
    place, pin = settings.home, pin_of(settings.home)
    artifacts = Artifacts.open(model_folder(place, model, format))
    layout = artifacts.layout
    layers = parse_experts(experts, layout) if experts else share_of(layout, *parse_share(share or "0/1"))
    name = settings["node"]
    chosen = settings.values["host"].rank < DEFAULT
    me = NodeIdentity.open(NodeId(name), HostId(settings["host"]), place.node_key(name), host_chosen=chosen)
    in_force = configure(int(settings["threads"]) or default_threads())
    hosting = Hosting(FilesHere(artifacts), layers, cast("Device", settings["device"].lower()), in_force, FAST)
    receipts = ReceiptLog(NetworkId(pin.network), me.node, me.key, place.path / "receipts" / f"{name}.json")

    async def main() -> None:
        bus = await NatsBus.connect(settings.where_nats()[0], name=name)
        try:
            witness = CheckpointWitness(bus, me.node, me.key, pin, place.witness(name), SystemClock())
            agent = NodeAgent(bus, me, hosting, receipts, SystemClock(), sawyer.__version__, witness)
            await until_stopped(agent, bus, lambda: agent.summary)
        finally:
            await bus.close()

    run_part(main, settings)
