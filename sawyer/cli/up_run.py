"""What `sawyer up` does: the demo's network, kept running, with a table of what it does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from sawyer import durable
from sawyer.bus.connection import NatsBus
from sawyer.cli import output
from sawyer.cli.children import Child, ServerChild
from sawyer.cli.founding import pinned_network
from sawyer.cli.interrupts import interruptible
from sawyer.cli.network import NetworkPlan, Part, found, open_account, until_seen
from sawyer.cli.parts import model_folder
from sawyer.cli.status import collect
from sawyer.cli.status_view import sections
from sawyer.cli.supervisor import Process, Supervisor
from sawyer.cli.up import UP_LOG
from sawyer.cli.watching import Screen
from sawyer.errors import SawyerError, UsageError
from sawyer.home import Home
from sawyer.model.artifacts import Artifacts

LISTEN_FILE: Final = "listen.txt"
DEFAULT_LISTEN: Final = "127.0.0.1:4222"
LOW_BUDGET: Final = 10_000
REFRESH_S: Final = 1.0
MAX_PORT: Final = 65535


@dataclass(frozen=True)
class UpPlan:
    """What was asked for. `listen` may be empty: as last time, at first port 4222 or a free one."""

    model: str
    format: str
    nodes: int
    listen: str
    account: str
    nats_server: str


def run(home: Home, plan: UpPlan) -> None:
    """Returns when it was told to end and everything has. Raises SawyerError if a part never started, Busy if a network
    runs here already."""
    with home.alone(), contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        asyncio.run(interruptible(_up(home, plan)))
    output.say("ended, in order")


async def _up(home: Home, plan: UpPlan) -> None:
    _log_to(home)
    artifacts = Artifacts.open(model_folder(home, plan.model, plan.format))
    pin = pinned_network(home)
    listen = choose_listen(home, plan.listen)
    screen = Screen()
    async with Supervisor(home.path, screen.notice) as supervisor, contextlib.AsyncExitStack() as stack:
        stack.enter_context(screen)
        screen.waiting("starting nats-server and bookkeeper")
        await supervisor.keep("nats-server", functools.partial(ServerChild.start, home.nats, listen, plan.nats_server))
        url = f"nats://{_reachable(listen)}"
        parts = NetworkPlan(home, url, plan.nodes, str(artifacts.folder))
        await supervisor.keep(*_kept(home, parts.bookkeeper))
        bus = await NatsBus.connect(url, name="operator")
        stack.push_async_callback(bus.close)
        founder = await found(bus, home, pin, artifacts)
        await open_account(url, home, founder, plan.account, LOW_BUDGET)
        screen.waiting("starting router and nodes")
        await supervisor.keep_all([_kept(home, part) for part in (parts.router, *parts.node_parts)])
        await until_seen(bus, plan.nodes)
        home.announce(url)
        screen.ready(f"ready: {url}, network {pin.network}, home {home.path}")
        while True:
            with contextlib.suppress(SawyerError):  # a part that is away: the notices say so
                screen.show(sections(await collect(bus, home, url)))
            await asyncio.sleep(REFRESH_S)


def _log_to(home: Home) -> None:
    """Warnings of our own connection: into a file where the page would be torn, else to stderr."""
    home.logs.mkdir(parents=True, exist_ok=True)
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    if output.stdout().is_terminal:
        logging.basicConfig(level=logging.WARNING, filename=home.logs / UP_LOG, format=form)
    else:
        logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format=form)


def _kept(home: Home, part: Part) -> tuple[str, Callable[[], Awaitable[Process]]]:
    log = home.logs / f"{part.name}.log"
    return part.name, functools.partial(Child.start, part.name, list(part.arguments), log, part.threads)


def choose_listen(home: Home, wanted: str) -> str:
    """HOST:PORT of this home's NATS server: as wanted, as last time, port 4222, or a free port; kept for the next time,
    because nodes elsewhere come back to it. Raises UsageError if it is no address, or is taken."""
    file = home.path / LISTEN_FILE
    kept = wanted or (file.read_text(encoding="ascii").strip() if file.is_file() else "")
    chosen = kept or (DEFAULT_LISTEN if _is_free(DEFAULT_LISTEN) else _free_port())
    if not _is_free(chosen):
        raise UsageError(f"{chosen} is taken by another program", hint="Choose another: sawyer up --listen HOST:PORT")
    durable.replace(file, f"{chosen}\n".encode())
    return chosen


def _is_free(listen: str) -> bool:
    """Raises UsageError if it is no address of this machine."""
    host, _, port = listen.rpartition(":")
    try:
        if not 1 <= int(port) <= MAX_PORT:
            raise ValueError("no such port")
        family, kind, _, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise UsageError(f"cannot listen on {listen}: {error.strerror}", hint="Write HOST:PORT.") from error
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{listen!r} is no address to listen on", hint="Write HOST:PORT.") from error
    return True


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _reachable(listen: str) -> str:
    """Where processes of this machine find it."""
    host, _, port = listen.rpartition(":")
    return f"127.0.0.1:{port}" if host in ("", "0.0.0.0", "[::]", "*") else listen  # noqa: S104
