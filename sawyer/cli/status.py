"""`sawyer status`: asks bookkeeper and routers, and shows the network on one page."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from sawyer.cli import output
from sawyer.cli.options import ContextOption, CredsOption, HomeOption, JsonOption, NatsOption
from sawyer.cli.status_view import (
    NetworkStatus,
    Section,
    as_document,
    find_problems,
    node_sections,
    sections,
)
from sawyer.cli.supervisor import read_parts
from sawyer.errors import EXIT_FAILED, UnreachableError, UsageError
from sawyer.home import Home
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.bus.protocol import Bus


def status(
    node: Annotated[str, typer.Argument(help="Only this node, with all that is known of it.")] = "",
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the network: processes, routers, nodes, experts covered, the book. Exit code 1 if a part is missing."""
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    seen = asyncio.run(_look(settings))
    if node:
        _show_node(seen, node, as_json)
    elif as_json:
        output.emit_json(as_document(seen))
    else:
        for section in sections(seen):
            print_section(section)
    if seen.problems:
        raise typer.Exit(EXIT_FAILED)


def print_section(section: Section) -> None:
    """On stdout: a heading, lines, a table."""
    if section.title:
        output.heading(section.title)
    for line in section.lines:
        output.line(line)
    if section.columns:
        output.table(section.columns, section.rows, numeric=section.numeric)


async def collect(bus: Bus, home: Home, url: str) -> NetworkStatus:
    """What bookkeeper and routers say now."""
    from sawyer.bus.calls import ask, survey
    from sawyer.schemas.messages import NetworkReply, RouterReply
    from sawyer.schemas.metrics import Metrics, RouterMetrics

    network, routers, counted = await asyncio.gather(
        ask(bus, "network", NetworkReply), survey(bus, "router", RouterReply), survey(bus, "metrics", Metrics),
        return_exceptions=True,
    )  # fmt: skip
    problems = []
    for part, answer in (("bookkeeper", network), ("router", routers)):
        if isinstance(answer, UnreachableError):
            problems.append(f"no {part} answers")
        elif isinstance(answer, BaseException):
            raise answer
    told = network if isinstance(network, NetworkReply) else None
    heard = sorted(routers, key=lambda each: (each.router, each.model)) if isinstance(routers, list) else []
    holder = home.lock_holder()
    parts = tuple(read_parts(home.path)) if holder is not None else ()
    missing = find_problems(parts, told if heard else None, heard)
    return NetworkStatus(
        url=url,
        home=str(home.path),
        holder=holder,
        parts=parts,
        network=told,
        routers=tuple(heard),
        counted=tuple(each.m for each in counted if isinstance(each.m, RouterMetrics))
        if isinstance(counted, list)
        else (),
        problems=(*problems, *missing),
    )


async def _look(settings: Settings) -> NetworkStatus:
    """Raises VerificationError if what answers is not the network that this home is pinned to."""
    from sawyer.cli.session import reached
    from sawyer.client.door import check_pinned

    async with reached(settings, "status") as (bus, url):
        seen = await collect(bus, settings.home, url)
    if seen.network is not None:
        check_pinned(seen.network, settings.home)
    return seen


def _show_node(seen: NetworkStatus, node: str, as_json: bool) -> None:
    found = node_sections(seen, node)
    if not found:
        known = ", ".join(sorted({each.node for router in seen.routers for each in router.nodes})) or "none"
        raise UsageError(f"no router knows a node {node!r}", hint=f"Known: {known}.")
    if as_json:
        rows = [
            {"router": router.router, "model": router.model, **each.model_dump(mode="json")}
            for router in seen.routers
            for each in router.nodes
            if each.node == node
        ]
        output.emit_json(rows)
        return
    for section in found:
        print_section(section)
