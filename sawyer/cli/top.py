"""`sawyer top`: a network at work, drawn anew every second."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sawyer.cli import output
from sawyer.cli.options import ContextOption, CredsOption, HomeOption, JsonOption, NatsOption
from sawyer.errors import SawyerError
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.bus.protocol import Bus
    from sawyer.cli.top_view import Look

REFRESH_S: Final = 1.0
FOOT: Final = "Ctrl-C ends this view; what runs goes on"


def top(
    once: Annotated[bool, typer.Option("--once", help="Look for a second, print one picture, end.")] = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Watch routers, nodes and experts at work. In a pipe, one picture. Exit code 4 if no router answers."""
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    asyncio.run(_run(settings, once=once or as_json or not output.stdout().is_terminal, as_json=as_json))


async def look(bus: Bus) -> Look:
    """What routers and nodes say now. Raises NobodyServes or NoAnswer if no router does."""
    from sawyer.bus.calls import survey
    from sawyer.cli.top_view import Look
    from sawyer.schemas.messages import RouterReply
    from sawyer.schemas.metrics import Metrics

    routers, told = await asyncio.gather(survey(bus, "router", RouterReply), survey(bus, "metrics", Metrics))
    ordered = sorted(routers, key=lambda each: (each.router, each.model))
    return Look(asyncio.get_running_loop().time(), tuple(ordered), tuple(told))


async def _run(settings: Settings, *, once: bool, as_json: bool) -> None:
    from sawyer.cli.session import reached

    async with reached(settings, "top") as (bus, _):
        before = await look(bus)
        if not once:
            await _watch(bus, before)
            return
        await asyncio.sleep(REFRESH_S)
        now = await look(bus)
    _print(before, now, as_json=as_json)


def _print(before: Look, now: Look, *, as_json: bool) -> None:
    from sawyer.cli.status import print_section
    from sawyer.cli.top_view import as_document, sections

    if as_json:
        output.emit_json(as_document(before, now))
        return
    for section in sections(before, now):
        print_section(section)


async def _watch(bus: Bus, before: Look) -> None:
    """Until it is cancelled."""
    from sawyer.cli.top_view import sections
    from sawyer.cli.watching import Screen

    with Screen(FOOT) as screen:
        while True:
            await asyncio.sleep(REFRESH_S)
            with contextlib.suppress(SawyerError):  # nobody there just now: the last picture stays
                now = await look(bus)
                screen.show(sections(before, now))
                before = now
