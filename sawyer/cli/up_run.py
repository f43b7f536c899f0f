"""What `sawyer up` does: the demo's network, kept running, with a table of what it does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from sawyer import durable
from sawyer.bus.connection import NatsBus
from sawyer.cli import output
from sawyer.cli.certifying import OPERATOR, certify_network, open_admission
from sawyer.cli.children import Child, ServerChild
from sawyer.cli.founding import pinned_network
from sawyer.cli.interrupts import interruptible
from sawyer.cli.logs import trim
from sawyer.cli.network import found, member_target, open_account, until_seen
from sawyer.cli.network_plan import NetworkPlan, Part
from sawyer.cli.parts import model_folder
from sawyer.cli.status import collect
from sawyer.cli.status_view import sections
from sawyer.cli.supervisor import Process, Supervisor
from sawyer.cli.up import UP_LOG
from sawyer.cli.watching import Screen
from sawyer.errors import SawyerError, UsageError
from sawyer.home import Home
from sawyer.model.artifacts import Artifacts
from sawyer.settings import Settings

LISTEN_FILE: Final = "listen.txt"
TRIM_EVERY: Final = 60
"""Refreshes between two looks at the size of the logs."""
LOW_BUDGET: Final = 10_000
REFRESH_S: Final = 1.0
MAX_PORT: Final = 65535

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UpPlan:
    """What was asked for. `listen` may be empty: as last time, at first port 4222 or a free one."""

    settings: Settings
    model: str
    format: str
    nodes: int
    listen: str

    @property
    def home(self) -> Home:
        return self.settings.home

    @property
    def threads(self) -> int:
        """Of each part that computes: one, unless a setting says otherwise. They share this machine."""
        return int(self.settings["threads"]) or 1


def run(plan: UpPlan) -> None:
    """Returns when it was told to end and everything has. Raises SawyerError if a part never started, Busy if a network
    runs here already."""
    with plan.home.alone(), contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        _log_to(plan.home)
        try:
            asyncio.run(interruptible(_up(plan)))
        except Exception:
            log.exception("the network ends")
            raise
    log.warning("ended, in order")
    output.say("ended, in order")


async def _up(plan: UpPlan) -> None:
    home, settings = plan.home, plan.settings
    artifacts = Artifacts.open(model_folder(home, plan.model, plan.format))
    pin = pinned_network(home)
    listen = choose_listen(home, plan.listen)
    url = f"nats://{listen.local}"
    size_bytes = sum(file.size_bytes for file in artifacts.manifest.files)
    parts = NetworkPlan(home, url, plan.nodes, str(artifacts.folder), size_bytes, plan.threads, settings.config_file)
    admission = open_admission(home, pin)
    certify_network(admission, parts, settings["account"], [artifacts.manifest.model])
    screen = Screen()
    async with Supervisor(home.path, screen.notice) as supervisor, contextlib.AsyncExitStack() as stack:
        stack.enter_context(screen)
        screen.waiting("starting nats-server, bookkeeper and authority")
        server = functools.partial(
            ServerChild.start, home.nats, str(listen), settings["nats_server"], admission.authority.trust
        )
        await supervisor.keep({"nats-server": server})
        await supervisor.keep(_starts(home, parts.bookkeeper), _starts(home, parts.authority))
        bus = await NatsBus.connect(member_target(url, home, OPERATOR, OPERATOR), name="operator")
        stack.push_async_callback(bus.close)
        founder = await found(bus, home, pin, artifacts)
        await open_account(url, home, founder, settings["account"], LOW_BUDGET)
        screen.waiting("starting router and nodes")
        await supervisor.keep(_starts(home, *parts.node_parts), _starts(home, parts.router))
        await until_seen(bus, (part.name for part in parts.node_parts))
        home.announce(url)
        screen.ready(f"ready: {url}, network {pin.network}, home {home.path}")
        if listen.is_open:
            screen.notice(f"other machines reach it on {listen}, with a certificate (sawyer network invite)")
        await _watch(bus, home, url, screen)


async def _watch(bus: NatsBus, home: Home, url: str, screen: Screen) -> None:
    """Draws the page, and keeps logs short, until it is cancelled."""
    for beat in itertools.count():
        with contextlib.suppress(SawyerError):  # a part that is away: the notices say so
            screen.show(sections(await collect(bus, home, url)))
        if beat % TRIM_EVERY == 0:
            await asyncio.to_thread(trim, home)
        await asyncio.sleep(REFRESH_S)


def _log_to(home: Home) -> None:
    """What is noticed, and warnings of our own connection."""
    home.logs.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.WARNING, filename=home.logs / UP_LOG, format="%(asctime)s %(message)s", force=True
    )


def _starts(home: Home, *parts: Part) -> dict[str, Callable[[], Awaitable[Process]]]:
    return {part.name: functools.partial(Child.start, part, home.logs) for part in parts}


@dataclass(frozen=True)
class Listen:
    """Where a NATS server listens; `host` without brackets, "" for every interface."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host or '0.0.0.0'}:{self.port}"  # noqa: S104

    @property
    def is_open(self) -> bool:
        """Other machines may reach it."""
        return not (self.host.startswith("127.") or self.host in ("localhost", "::1"))

    @property
    def local(self) -> str:
        """Where processes of this machine find it."""
        return f"127.0.0.1:{self.port}" if self.host in ("", "0.0.0.0", "::", "*") else str(self)  # noqa: S104

    @classmethod
    def parse(cls, text: str, source: str) -> Listen:
        """HOST:PORT, :PORT or [V6]:PORT. Raises UsageError naming the source."""
        host, colon, port = text.strip().rpartition(":")
        plain = host.removeprefix("[").removesuffix("]")
        bracketed = host != plain
        if not (colon and port.isdecimal() and 1 <= int(port) <= MAX_PORT) or (":" in plain) != bracketed:
            raise UsageError(f"{text!r} ({source}) is no address to listen on", hint="Write HOST:PORT or [IPV6]:PORT.")
        return cls(plain, int(port))


DEFAULT_LISTEN: Final = Listen("127.0.0.1", 4222)


def choose_listen(home: Home, wanted: str) -> Listen:
    """Where this home's NATS server listens: as wanted, as last time, port 4222, or a free port. Kept for the next
    time, because nodes elsewhere come back to it. Raises UsageError if it is no address, or is taken."""
    file = home.path / LISTEN_FILE
    if wanted:
        chosen = Listen.parse(wanted, "--listen")
    elif file.is_file():
        chosen = Listen.parse(file.read_text(encoding="utf-8", errors="replace"), str(file))
    else:
        chosen = DEFAULT_LISTEN if _is_free(DEFAULT_LISTEN) else Listen("127.0.0.1", _free_port())
    if not _is_free(chosen):
        raise UsageError(f"{chosen} is taken by another program", hint="Choose another: sawyer up --listen HOST:PORT")
    durable.replace(file, f"{chosen}\n".encode())
    return chosen


def _is_free(listen: Listen) -> bool:
    """Raises UsageError if it is no address of this machine."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            listen.host or None, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise UsageError(f"cannot listen on {listen}: {error.strerror}", hint="Write HOST:PORT.") from error
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
