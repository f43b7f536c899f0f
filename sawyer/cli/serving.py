"""`sawyer serve`: host experts of a model on this machine, those that it chooses or others, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, cast

import typer

import sawyer
from sawyer.cli import output
from sawyer.cli.model_store import bring_shown, open_model
from sawyer.cli.options import ContextOption, CredsOption, HomeOption, JsonOption, NatsOption, ThreadsOption
from sawyer.cli.parts import pin_of, run_part, until_stopped
from sawyer.clock import SystemClock
from sawyer.errors import SawyerError, UsageError
from sawyer.home import Home
from sawyer.ids import HostId, NetworkId, NodeId
from sawyer.model.layout import expert_file
from sawyer.schemas.models import MANIFEST_FILE
from sawyer.settings import DEFAULT, FLAG, Settings, Value

if TYPE_CHECKING:
    from sawyer.bus.connection import NatsBus
    from sawyer.cli.serve_plan import Plan
    from sawyer.engine.session import Device
    from sawyer.model.files import ModelFiles
    from sawyer.node.agent import NodeAgent
    from sawyer.schemas.messages import HostedLayer, NetworkReply


@dataclass(frozen=True)
class Serve:
    """What one command is to serve. `layers`: None if that is to be chosen."""

    settings: Settings
    files: ModelFiles
    layers: tuple[HostedLayer, ...] | None
    threads: int
    max_memory: str

    async def plan(self, bus: NatsBus, network: NetworkReply) -> Plan:
        """What would be served, and why."""
        from sawyer.cli.serve_plan import make_plan

        return await make_plan(
            bus,
            network,
            self.files.artifacts,
            node=NodeId(self.settings["node"]),
            host=self.settings["host"],
            device=self.device,
            threads=self.threads,
            max_memory=self.max_memory,
            layers=self.layers,
        )

    @property
    def device(self) -> Device:
        return cast("Device", self.settings["device"].lower())


def serve(
    model: Annotated[str, typer.Argument(help="Model id, or the folder of a split model.")],
    name: Annotated[str, typer.Option("--name", help="The node's name in the book (default: this machine's).")] = "",
    host: Annotated[str, typer.Option("--host", help="Who is paid (default: your user name).")] = "",
    share: Annotated[
        str, typer.Option("--share", metavar="PART/OF", help="Which equal share of the experts, from 0.")
    ] = "",
    experts: Annotated[
        str,
        typer.Option("--experts", metavar="LAYERS:EXPERTS,...", help="Which experts, such as 0:0-3,1:4,2:*."),
    ] = "",
    max_memory: Annotated[
        str, typer.Option("--max-memory", metavar="AMOUNT", help="For experts: 6GB, or 75% (default: 80% of the free).")
    ] = "",
    format: Annotated[
        str, typer.Option("--format", help="Format of the split model (default: what the network publishes).")
    ] = "",
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or auto (the default).")] = "",
    threads: ThreadsOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be hosted, and change nothing.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Host experts: verify their files, answer activation requests, sign receipts.

    Without --experts and --share those are chosen that the fewest hosts serve, as many as fit into memory."""
    if share and experts:
        raise UsageError("--share and --experts both say which experts", hint="Give one of them.")
    if as_json and not dry_run:
        raise UsageError("--json shows what would be hosted", hint="Add --dry-run.")
    settings = Settings.load(
        home=home, nats=nats, context=context, creds=creds, threads=threads, device=device, node=name, host=host
    )
    if not dry_run:
        pin_of(settings.home)
    if "/" in model and not (Path(model) / MANIFEST_FILE).is_file():
        raise UsageError(
            f"{model} is no folder of a split model: it has no {MANIFEST_FILE}",
            hint="Name a model, as `sawyer models list` does, or the folder that `sawyer models split` has made.",
        )
    if not dry_run:
        _serve(_asked(settings, model, format, share, experts, max_memory))
        return
    with _leaving_no_trace(settings, model, format) as opening:
        asked = _asked(opening, model, format, share, experts, max_memory)
        _show(replace(asked, settings=settings), as_json=as_json)


@contextmanager
def _leaving_no_trace(settings: Settings, model: str, format: str) -> Iterator[Settings]:
    """Settings with which a model can be opened, and this home stays as it is: those in force if a folder was named, or
    if exactly what the network publishes is in the home, else the same in a home that is removed at the end. Raises
    UnreachableError."""
    from sawyer.cli.model_store import network_told

    home = settings.home
    if (Path(model) / MANIFEST_FILE).is_file() or _is_here(home, model, format, asyncio.run(network_told(settings))):
        yield settings
        return
    with TemporaryDirectory(prefix="sawyer-dry-run-") as folder:
        elsewhere = copy(settings)
        elsewhere.home, elsewhere.values = Home(Path(folder)), dict(settings.values)
        if settings.context() is None:  # the home itself may be what knows the address
            target, source = settings.where_nats()
            elsewhere.values["nats"] = Value("nats", target.url, FLAG, source)
        yield elsewhere


def _is_here(home: Home, model: str, format: str, network: NetworkReply) -> bool:
    from sawyer.cli.model_here import pulled_models
    from sawyer.model.artifacts import Artifacts

    wanted = next((each for each in network.models if each.model == model and format in ("", each.format)), None)
    if wanted is None:
        return False
    if any(each.manifest.digest() == wanted.manifest for each in pulled_models(home, model)):
        return True
    split = home.models / f"{wanted.model}-{wanted.format}"
    try:
        return (split / MANIFEST_FILE).is_file() and Artifacts.open(split).digest == wanted.manifest
    except SawyerError:
        return False


def _asked(settings: Settings, model: str, format: str, share: str, experts: str, max_memory: str) -> Serve:
    """Raises UsageError for what makes no sense, before anything is loaded."""
    from sawyer.engine.session import configure, default_threads
    from sawyer.node.choosing import parse_memory
    from sawyer.node.hosting import parse_experts, parse_share
    from sawyer.node.hosting import share as share_of

    if max_memory:
        parse_memory(max_memory, 1 << 40)
    files = open_model(settings, model, format)
    layout, layers = files.artifacts.layout, None
    if experts:
        layers = parse_experts(experts, layout)
    elif share:
        layers = share_of(layout, *parse_share(share))
    return Serve(settings, files, layers, configure(int(settings["threads"]) or default_threads()), max_memory)


def _show(asked: Serve, *, as_json: bool) -> None:
    from sawyer.cli.serve_plan import as_document, show, warn
    from sawyer.cli.session import connected
    from sawyer.loop import run

    async def look() -> Plan:
        async with connected(asked.settings, "serve --dry-run") as (bus, network):
            return await asked.plan(bus, network)

    with output.waiting("looking at machine and network"):
        plan = run(look(), asked.settings["loop"])
    warn(plan)
    if as_json:
        output.emit_json(as_document(plan))
    else:
        show(plan)


def _serve(asked: Serve) -> None:
    from sawyer.bus.connection import NatsBus
    from sawyer.cli.joining import certify_for_model, certify_node_here, staying_certified
    from sawyer.engine.experts import FAST
    from sawyer.node.agent import Hosting, NodeAgent
    from sawyer.node.receipts import ReceiptLog
    from sawyer.node.registration import NodeIdentity
    from sawyer.node.witness import CheckpointWitness

    settings = asked.settings
    place, pin, name = settings.home, pin_of(settings.home), settings["node"]
    chosen = settings.values["host"].rank < DEFAULT
    certify_node_here(settings, name)
    me = NodeIdentity.open(NodeId(name), HostId(settings["host"]), place.node_key(name), host_chosen=chosen)
    receipts = ReceiptLog(NetworkId(pin.network), me.node, me.key, place.path / "receipts" / f"{name}.json")

    async def main() -> None:
        await certify_for_model(settings, name, me.key, asked.files.artifacts.manifest.model)
        bus = await NatsBus.connect(settings.where_nats("node", name)[0], name=name)
        try:
            layers, limit_bytes, follows = await _settled(asked, bus)
            await bring_shown(asked.files, _paths(asked.files, layers))
            hosting = Hosting(asked.files, layers, asked.device, asked.threads, FAST, limit_bytes, follows)
            witness = CheckpointWitness(bus, me.node, me.key, pin, place.witness(name), SystemClock())
            agent = NodeAgent(bus, me, hosting, receipts, SystemClock(), sawyer.__version__, witness)
            async with staying_certified(bus, place, name, me.key):
                await until_stopped(agent, bus, lambda: _where_it_runs(asked, agent))
        finally:
            await bus.close()

    run_part(main, settings)


def _paths(files: ModelFiles, layers: tuple[HostedLayer, ...]) -> list[str]:
    from sawyer.node.hosting import pairs

    return [expert_file(layer, expert, files.artifacts.manifest.format) for layer, expert in pairs(layers)]


async def _settled(asked: Serve, bus: NatsBus) -> tuple[tuple[HostedLayer, ...], int | None, int]:
    """What to host; how many bytes loaded experts may take of the memory that they are in, None for what there is; and
    how many experts it may be when the demand moves, 0 if somebody named them."""
    from sawyer.cli.serve_plan import announce, measure, warn
    from sawyer.cli.session import checked_network

    if asked.layers is not None:
        if not asked.max_memory:
            return asked.layers, None, 0
        machine = await asyncio.to_thread(measure, asked.files.artifacts, asked.device, asked.threads, asked.max_memory)
        return asked.layers, machine.budget_bytes, 0
    plan = await asked.plan(bus, await checked_network(bus, asked.settings.home))
    warn(plan)
    announce(plan)
    limit_bytes = plan.machine.budget_bytes if asked.max_memory else None
    return plan.choice.layers, limit_bytes, plan.choice.most


def _where_it_runs(asked: Serve, agent: NodeAgent) -> str:
    """What it serves; and first, on stderr, why not on the GPU for which it was installed."""
    from sawyer.engine.session import CUDA, CUDA_HINT, may_run_cuda, why_not_cuda

    if asked.device == "auto" and may_run_cuda() and agent.provider != CUDA:
        output.say(f"experts run on the CPU, not on CUDA{why_not_cuda()}")
        output.say(f"  {CUDA_HINT}")
    return agent.summary
