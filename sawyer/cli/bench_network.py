"""A network that lives as long as a benchmark: founded in a temporary folder, its programs started, killed and started
again by name, all of them ended and everything removed at the end. Owns no measurement."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import urlsplit

from sawyer.bus.connection import NatsBus
from sawyer.bus.server import ANY_PORT
from sawyer.cli.children import Child, ServerChild
from sawyer.cli.founding import Founder, pinned_network
from sawyer.cli.grants import grant_of_tokens
from sawyer.cli.interrupts import interruptible
from sawyer.cli.network import FORMAT, found, open_account
from sawyer.cli.network_plan import NetworkPlan, Part
from sawyer.clock import SystemClock
from sawyer.errors import SawyerError
from sawyer.home import Home
from sawyer.identity.keys import Key, load_or_create
from sawyer.ids import ModelId
from sawyer.loop import chosen
from sawyer.loop import run as run_on_loop
from sawyer.model.artifacts import Artifacts
from sawyer.model.split import split

ACCOUNT: Final = "bench"
BUDGET_TOKENS: Final = 100_000_000
BROKEN_PATIENCE_S: Final = 1.0
"""How long a program may take to end when the benchmark was broken off: nothing of it is looked at any more."""
ResultT = TypeVar("ResultT")
Notice = Callable[[str], None]


class Programs:
    """The programs of one network, by name. Use it as an async context manager: it ends them, the last one first."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._parts: dict[str, Part] = {}
        self._children: dict[str, Child] = {}

    async def __aenter__(self) -> Programs:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for child in reversed(self._children.values()):
            if error is not None:
                child.patience_s = BROKEN_PATIENCE_S
            await child.stop()

    async def start(self, part: Part) -> Child:
        """Start it; whoever needs it ready waits for that."""
        self._parts[part.name] = part
        self._children[part.name] = child = await Child.start(part, self._home.logs)
        return child

    def pids(self) -> dict[str, int]:
        """By name, of those that were started last."""
        return {name: child.pid for name, child in self._children.items()}

    async def kill(self, name: str) -> None:
        """SIGKILL; returns when the process is gone."""
        self._children[name].kill()
        await self._children[name].died()

    async def again(self, name: str) -> None:
        """Start a program that ended, as before; returns when it is ready."""
        await (await self.start(self._parts[name])).ready()

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """SIGSTOP, and SIGCONT afterwards, whatever happens. Raises SawyerError if the process ended by itself."""
        child = self._children[name]
        try:
            os.kill(child.pid, signal.SIGSTOP)
        except ProcessLookupError as error:
            raise SawyerError(
                f"{name} ended by itself", hint="Its log says why: run it again with --logs FOLDER."
            ) from error
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGCONT)


class Server:
    """The NATS server, always at one address, that may be killed and started again."""

    def __init__(self, child: ServerChild, home: Home, program: str) -> None:
        self._child = child
        self._home = home
        self._program = program
        self.url = child.url

    @property
    def pid(self) -> int:
        return self._child.pid

    async def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        os.kill(self._child.pid, signal.SIGKILL)
        await self._child.died()

    async def again(self) -> None:
        """Start it, after it ended; returns when it is ready."""
        self._child = await ServerChild.start(self._home.nats, urlsplit(self.url).netloc, self._program)

    async def stop(self) -> None:
        """Idempotent."""
        await self._child.stop()


@dataclass(frozen=True)
class OwnNetwork:
    """A founded network: a server and a bookkeeper run, one account has a budget. `bus` is the operator's."""

    home: Home
    server: Server
    programs: Programs
    bus: NatsBus
    founder: Founder
    key: Key

    @property
    def url(self) -> str:
        return self.server.url

    def pids(self) -> dict[str, int]:
        """Of every program, by name."""
        return {"nats-server": self.server.pid, **self.programs.pids()}


@contextlib.asynccontextmanager
async def own_network(home: Home, models: Sequence[Artifacts], nats_server: str) -> AsyncIterator[OwnNetwork]:
    """Everything but router and nodes, for at least one model; ended afterwards."""
    home.logs.mkdir(parents=True, exist_ok=True)
    pin = pinned_network(home)
    async with contextlib.AsyncExitStack() as stack:
        server = Server(await ServerChild.start(home.nats, ANY_PORT, nats_server), home, nats_server)
        stack.push_async_callback(server.stop)
        programs = await stack.enter_async_context(Programs(home))
        await (await programs.start(NetworkPlan(home, server.url, 0).bookkeeper)).ready()
        bus = await NatsBus.connect(server.url, name="bench operator")
        stack.push_async_callback(bus.close)
        for artifacts in models:
            founder = await found(bus, home, pin, artifacts)
        await open_account(server.url, home, founder, ACCOUNT, at_least=1)
        await founder.record(grant_of_tokens(pin.network, ACCOUNT, BUDGET_TOKENS, SystemClock().now_ms()))
        yield OwnNetwork(home, server, programs, bus, founder, load_or_create(home.account_key(ACCOUNT)))


@contextlib.contextmanager
def own_home(keep_logs: Path | None = None) -> Iterator[Home]:
    """A home in a temporary folder that is removed, however this ends; the logs of its programs are copied to
    `keep_logs` before. SIGTERM and a closed terminal count as Ctrl-C from now on."""
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, _interrupt)
    with tempfile.TemporaryDirectory(prefix="sawyer-bench-") as folder:
        home = Home(Path(folder) / "home")
        try:
            yield home
        finally:
            if keep_logs is not None and home.logs.is_dir():
                shutil.copytree(home.logs, keep_logs, dirs_exist_ok=True)


def run_here(main: Coroutine[Any, Any, ResultT], loop: str) -> ResultT:
    """Runs it on this kind of loop, and so do the programs that it starts. Raises KeyboardInterrupt if it was
    interrupted, after it has ended in order."""
    os.environ["SAWYER_LOOP"] = chosen(loop)  # what is started here has another home, and no config file
    result = run_on_loop(interruptible(main), loop)
    if result is None:
        raise KeyboardInterrupt
    return result


def split_here(home: Home, checkpoint: Path, model: ModelId) -> Artifacts:
    """A split model in this home, its experts and trunk as a demo has them."""
    folder = home.models / f"{model}-{FORMAT}"
    split(checkpoint, folder, model=model, format="q4")
    return Artifacts.open(folder)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
