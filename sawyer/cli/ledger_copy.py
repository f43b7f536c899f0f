"""`sawyer ledger copy`: bring the copy in JetStream up to the book, or make it anew. Owns arguments and printing; the
bookkeeper does the same by itself, all the time."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sawyer.cli import output
from sawyer.cli.options import ContextOption, CredsOption, HomeOption, JsonOption, NatsOption
from sawyer.cli.parts import pin_of
from sawyer.errors import UsageError
from sawyer.ids import NetworkId
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.contexts import NatsTarget


@dataclass(frozen=True)
class CopyReport:
    """Where the copy stands. `added` rows were missing."""

    network: str
    nats: str
    stream: str
    rows: int
    added: int
    rebuilt: bool


def register(app: typer.Typer) -> None:
    """Add the command to `sawyer ledger`."""
    app.command("copy", epilog="Example: sawyer ledger copy --nats nats://127.0.0.1:4222")(copy_command)


def copy_command(
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Delete the copy first, whatever it holds, and make it anew.")
    ] = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
    json: JsonOption = False,
) -> None:
    """Bring the copy of the book in JetStream up to date. Exit code 3 if what is there is no copy of this book.

    The bookkeeper does the same all the time."""
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    pin, book = pin_of(settings.home), settings.book
    if isinstance(book, Path) and not book.is_file():
        raise UsageError(f"there is no book in {settings.home.path}", hint="Run this where the bookkeeper runs.")
    with output.waiting("copying"):
        report = asyncio.run(_copy(book, settings.where_nats()[0], NetworkId(pin.network), rebuild=rebuild))
    if json:
        output.emit_json(asdict(report))
        return
    made = "made anew" if report.rebuilt else f"{report.added} added now" if report.added else "up to date"
    output.line(f"{report.rows} rows of {report.network} in stream {report.stream} on {report.nats}: {made}")


async def _copy(book: Path | str, target: NatsTarget, network: NetworkId, *, rebuild: bool) -> CopyReport:
    from sawyer.bookkeeper.copying import Copier
    from sawyer.bus.connection import NatsBus
    from sawyer.bus.journal import Journal
    from sawyer.ledger.store import open_store

    store = open_store(book)
    try:
        bus = await NatsBus.connect(target, name="sawyer-ledger-copy")
        try:
            journal = Journal(bus, network)
            rebuilt = rebuild and await journal.destroy()
            copier = Copier(store, journal)
            await copier.locate()
            before = copier.copied
            await copier.catch_up()
        finally:
            await bus.close()
    finally:
        store.close()
    return CopyReport(network, target.address, journal.stream, copier.copied, copier.copied - before, rebuilt)
