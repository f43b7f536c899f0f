"""`sawyer trace`: where the time of one request went, layer by layer."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Annotated

import typer

from sawyer.cli import output
from sawyer.cli.options import ContextOption, CredsOption, HomeOption, JsonOption, NatsOption
from sawyer.cli.status_view import Section
from sawyer.errors import UnknownRequest, UsageError
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.schemas.traces import RequestTrace


def trace(
    request: Annotated[str, typer.Argument(help="The request's id, as `sawyer generate --json` tells it.")],
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show where the time of a request went. Routers remember their last 128. Exit code 5 if none remembers it."""
    if re.fullmatch("[0-9a-f]{32}", request) is None:
        raise UsageError(
            f"{request!r} is no request id", hint="It has 32 hexadecimal digits; `sawyer generate --json` tells it."
        )
    found = asyncio.run(_ask(Settings.load(home=home, nats=nats, context=context, creds=creds), request))
    if as_json:
        output.emit_json(found.model_dump(mode="json"))
        return
    from sawyer.cli.status import print_section

    for section in sections(found):
        print_section(section)


async def _ask(settings: Settings, request: str) -> RequestTrace:
    from sawyer.bus.calls import survey
    from sawyer.cli.session import reached
    from sawyer.schemas.traces import RequestTrace, TraceQuery

    async with reached(settings, "trace") as (bus, _):
        told = await survey(bus, "trace", RequestTrace, TraceQuery(request=request))
    for each in told:
        if each.request == request:
            return each
    raise UnknownRequest(f"no router remembers request {request}")


def sections(trace: RequestTrace) -> list[Section]:
    """The whole trace on one page. Pure."""
    head = (
        f"request   {trace.request}",
        f"router    {trace.router}, model {trace.model}",
        f"state     {trace.state}, {trace.input_tokens} tokens in, {trace.output_tokens} sampled",
    )
    return [Section("", head), _phases(trace), _layers(trace), _nodes(trace)]


def _phases(trace: RequestTrace) -> Section:
    attend_us = sum(each.attend_us for each in trace.layers)
    experts_us = sum(each.experts_us for each in trace.layers)
    working_us = trace.prefill_us + trace.decode_us
    known_us = attend_us + experts_us + trace.head_us + trace.sample_us
    inside = (
        ("  attention and gates", attend_us),
        ("  experts", experts_us),
        ("  logits", trace.head_us),
        ("  sampling", trace.sample_us),
        (
            "  waiting for others, streaming",
            max(0, working_us - known_us),
        ),
    )
    outside = (
        ("queue", trace.queue_us),
        ("check and tokenise", trace.check_us),
        ("room for its context", trace.room_us),
        ("hold tokens in the book", trace.reserve_us),
        ("prefill", trace.prefill_us),
        ("decode", trace.decode_us),
    )
    after = (("receipts of nodes", trace.receipts_us), ("post the bill", trace.posting_us))
    total_us = sum(took for _, took in (*outside, *after))
    rows = [(name, _ms(took), _share(took, total_us)) for name, took in (*outside, *inside, *after, ("sum", total_us))]
    return Section("Where the time went", (), ("phase", "ms", "%"), tuple(rows), ("ms", "%"))


def _layers(trace: RequestTrace) -> Section:
    columns = (
        "layer",
        "passes",
        "attend ms",
        "experts ms",
        "rows",
        "messages",
        "hedges",
        "takeovers",
        "slowest",
        "its ms",
    )
    rows: list[tuple[object, ...]] = [
        (each.layer, each.passes, _ms(each.attend_us), _ms(each.experts_us), each.rows, each.messages, each.hedges,
         each.takeovers, each.slowest or "-", _ms(each.slowest_us))
        for each in trace.layers
    ]  # fmt: skip
    names = ("attend_us", "experts_us", "rows", "messages", "hedges", "takeovers")
    attend, experts, *counts = (sum(getattr(each, name) for each in trace.layers) for name in names)
    rows.append(("sum", "", _ms(attend), _ms(experts), *counts, "", ""))
    return Section("Layers", (), columns, tuple(rows), (*columns[:8], columns[9]))


def _nodes(trace: RequestTrace) -> Section:
    columns = ("node", "messages", "rows", "mean ms", "of it computing", "longest ms")
    rows = tuple(
        (each.node, each.messages, each.rows, _ms(each.round_trip_us // max(1, each.messages)),
         f"{_share(each.compute_us, each.round_trip_us)} %", _ms(each.slowest_us))
        for each in trace.nodes
    )  # fmt: skip
    return Section("Nodes", (), columns, rows, columns[1:])


def _ms(took_us: int) -> str:
    return f"{took_us / 1000:,.2f}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}" if whole else "-"
