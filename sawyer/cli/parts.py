"""`sawyer bookkeeper`, `sawyer route`, `sawyer serve`: one program each, until SIGTERM or Ctrl-C.

Each prints one line on stdout when it is ready, so that a person or a supervisor knows.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol

import typer

import sawyer
from sawyer.cli.log_format import start_logging
from sawyer.cli.model_here import split_names
from sawyer.cli.options import ContextOption, CredsOption, FormatOption, HomeOption, NatsOption, ThreadsOption
from sawyer.clock import SystemClock
from sawyer.errors import UsageError
from sawyer.home import Home, Pin
from sawyer.ids import ModelId, NetworkId
from sawyer.loop import run as run_on_loop
from sawyer.model.catalog import DEMO_MODEL, demo_checkpoint
from sawyer.schemas.models import MANIFEST_FILE
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.bus.connection import NatsBus
    from sawyer.identity.keys import Key

CONTEXT_PERCENT: Final = 50
"""Of the memory that is free when the trunk is loaded."""
READY: Final = "ready: "
"""How the line begins that says a program is ready."""


class Program(Protocol):
    """A program: runs until it is stopped."""

    async def run(self, started: Callable[[], None]) -> None:
        """Returns after `stop`."""

    def stop(self) -> None:
        """Begin an orderly end."""


def bookkeeper(
    home: HomeOption = None, nats: NatsOption = "", context: ContextOption = "", creds: CredsOption = None
) -> None:
    """Keep the book: the one writer of this network's ledger."""
    from sawyer.bookkeeper.collector import calm_collector
    from sawyer.bookkeeper.copying import Copying
    from sawyer.bookkeeper.service import Bookkeeper
    from sawyer.bookkeeper.verifying import Verifiers
    from sawyer.bookkeeper.witnessing import Witnessing
    from sawyer.bus.connection import NatsBus
    from sawyer.cli.own_book import open_book

    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    place, pin = settings.home, pin_of(settings.home)

    async def main() -> None:
        book = open_book(settings, pin)
        target = settings.where_nats("bookkeeper", "bookkeeper")[0]
        bus = await NatsBus.connect(target, name="bookkeeper")
        copying = Copying(settings.book, target, NetworkId(pin.network))
        witnessing = Witnessing(book, SystemClock(), place.cosigned)
        try:
            with calm_collector(), Verifiers(int(settings["ledger_verifiers"])) as verifiers:
                async with copying.running():
                    part = Bookkeeper(bus, book, SystemClock(), sawyer.__version__, copying.wake, witnessing, verifiers)
                    await until_stopped(part, bus, f"bookkeeper of {pin.network}, {book.size} entries")
        finally:
            await bus.close()
            book.close()

    run_part(main, settings)


SpeculateOption = Annotated[
    bool,
    typer.Option(
        "--speculate/--no-speculate",
        help="Compute tokens that are likely to come next with those that do, while few requests run.",
    ),
]


def route(
    model: Annotated[str, typer.Argument(help="Model id, or the folder of a split model.")],
    name: Annotated[str, typer.Option("--name", help="The router's name in the book.")] = "router-1",
    format: FormatOption = "",
    threads: ThreadsOption = None,
    context_memory: Annotated[
        str,
        typer.Option(
            "--context-memory",
            metavar="SIZE",
            help="Memory that the contexts of all running requests may take: 2GB, or 25% of this machine's.",
        ),
    ] = "",
    speculate: SpeculateOption = True,
    wire: Annotated[str, typer.Option("--wire", help="Rows on the wire: f16 or f32.")] = "f16",
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Run a router: the model's trunk and gates; experts are asked of nodes."""
    from sawyer.bus.connection import NatsBus
    from sawyer.cli.model_store import bring_shown, open_model, trunk_paths
    from sawyer.engine.loaded import Engine
    from sawyer.engine.session import configure, default_threads
    from sawyer.router.service import Router, RouterIdentity

    if wire not in ("f16", "f32"):
        raise UsageError(f"unknown wire format {wire!r}", hint="Write f16 or f32.")
    context_limit(context_memory)  # nonsense is said before anything is loaded
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds, threads=threads)
    key = _router_key(settings.home, name)
    files = open_model(settings, model, format)
    asyncio.run(bring_shown(files, trunk_paths(files.artifacts)))
    artifacts = files.artifacts
    configure(int(settings["threads"]) or default_threads())
    engine, published = Engine.load(artifacts), ModelId(artifacts.manifest.model)
    context_bytes = context_limit(context_memory)

    async def main() -> None:
        bus = await NatsBus.connect(settings.where_nats("router", name)[0], name=name)
        try:
            router = Router(
                bus,
                RouterIdentity(name, key),
                published,
                engine,
                SystemClock(),
                context_bytes=context_bytes,
                speculate=speculate,
                wide=wire == "f32",
                version=sawyer.__version__,
            )
            await until_stopped(router, bus, f"{name} routes {published}, every expert is served")
        finally:
            await bus.close()

    run_part(main, settings)


def context_limit(amount: str) -> int:
    """Bytes that running requests may take for the tokens before; by default a part of what is free. Raises
    UsageError."""
    from sawyer.node.choosing import parse_memory
    from sawyer.node.memory import read_memory

    memory = read_memory()
    if amount:
        return parse_memory(amount, memory.total_bytes, "--context-memory")
    return memory.free_bytes * CONTEXT_PERCENT // 100


def model_folder(home: Home, model: str, format: str) -> Path:
    """The split model of this name in the home, or the folder that was named itself. The demo model comes with the
    package and is split when it is first needed. Raises UsageError."""
    named = Path(model)
    if (named / MANIFEST_FILE).is_file():
        return named
    folder = home.models / f"{model}-{format}"
    if model == DEMO_MODEL and not (folder / MANIFEST_FILE).is_file():
        from sawyer.cli.models import known_format
        from sawyer.cli.splitting import split_with_progress

        split_with_progress(demo_checkpoint(), folder, DEMO_MODEL, known_format(format))
    if not folder.is_dir():
        others = (f"{name} ({fmt})" for name, fmt in split_names(home) if name != DEMO_MODEL)
        here = ", ".join([DEMO_MODEL, *others])
        raise UsageError(
            f"no split model {model} ({format}) in {home.models}",
            hint=f"There are: {here}. Make it: sawyer models split CHECKPOINT --name {model} --format {format}",
        )
    return folder


def _router_key(home: Home, name: str) -> Key:
    """Raises UsageError if this home has none of that name."""
    from sawyer.identity.keys import load

    file = home.router_key(name)
    if not file.is_file():
        raise UsageError(
            f"{home.path} has no key of a router {name}",
            hint=f"`sawyer up` makes one. For a router elsewhere copy {file.relative_to(home.path)} "
            f"and {home.credentials('router', name).relative_to(home.path)} from its founder.",
        )
    return load(file)


def pin_of(home: Home) -> Pin:
    """What this home trusts. Raises UsageError if it belongs to no network."""
    pin = home.pin()
    if pin is not None:
        return pin
    raise UsageError(
        f"{home.path} belongs to no network yet",
        hint="Join one: sawyer register --nats URL. Found one: sawyer up. Or name its --home.",
    )


def run_part(main: Callable[[], Coroutine[Any, Any, None]], settings: Settings) -> None:
    start_logging(settings)
    run_on_loop(main(), settings["loop"])


async def until_stopped(part: Program, bus: NatsBus, ready: str | Callable[[], str]) -> None:
    """Run a part, and say when it is ready (what with may be known only then). SIGTERM and Ctrl-C end it in order, a
    second signal at once. Raises ServerUnreachable or CertificateRefused if the server closed our connection for good:
    nobody would hear us any more."""
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(part.run(lambda: _say_ready(ready if isinstance(ready, str) else ready())))

    def on_signal() -> None:
        part.stop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, running.cancel)

    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, on_signal)
    closed = asyncio.create_task(bus.closed.wait())
    await asyncio.wait({running, closed}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        running.cancel()
        raise bus.why_closed
    closed.cancel()
    await running


def _say_ready(text: str) -> None:
    sys.stdout.write(READY + text + "\n")
    sys.stdout.flush()
