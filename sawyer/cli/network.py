"""The network of one home: which processes it has, how each is started, and its founding. Owns no process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from sawyer.bus.calls import ask
from sawyer.bus.connection import NatsBus
from sawyer.cli.founding import Founder
from sawyer.cli.parts import model_folder
from sawyer.client.aio import AsyncClient
from sawyer.clock import SystemClock
from sawyer.errors import NoAnswer
from sawyer.home import Home, Pin
from sawyer.identity.keys import load_or_create
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import DEMO_MODEL
from sawyer.schemas.messages import RouterReply

BOOKKEEPER: Final = "bookkeeper"
ROUTER: Final = "router-1"
FORMAT: Final = "q4"
SEEN_POLLS: Final = 500
SEEN_POLL_S: Final = 0.02


@dataclass(frozen=True)
class Part:
    """One process: its name, and the arguments of `sawyer` that make it. `threads` bounds numeric libraries."""

    name: str
    arguments: tuple[str, ...]
    threads: int = 0


@dataclass(frozen=True)
class NetworkPlan:
    """A network on this machine: one bookkeeper, one router, some nodes with equal shares of the experts."""

    home: Home
    url: str
    nodes: int
    model: str = DEMO_MODEL
    """Model id, or the folder of a split model."""
    _threads: int = field(default=1)

    @property
    def bookkeeper(self) -> Part:
        return Part(BOOKKEEPER, (BOOKKEEPER, *self._common))

    @property
    def router(self) -> Part:
        arguments = ("route", self.model, "--name", ROUTER, "--threads", str(self._threads), *self._common)
        return Part(ROUTER, arguments, self._threads)

    @property
    def node_parts(self) -> list[Part]:
        return [self._node(part) for part in range(self.nodes)]

    def _node(self, part: int) -> Part:
        name = f"node-{part + 1}"
        arguments = ["serve", self.model, "--name", name, "--host", f"host-{part + 1}"]
        arguments += ["--share", f"{part}/{self.nodes}", "--threads", str(self._threads), *self._common]
        return Part(name, tuple(arguments), self._threads)

    @property
    def _common(self) -> tuple[str, ...]:
        return ("--home", str(self.home.path), "--nats", self.url)


async def found(bus: NatsBus, home: Home, pin: Pin, artifacts: Artifacts) -> Founder:
    """The first entries of the network, its router and its model; each is made once."""
    founder = Founder(bus, home, pin, SystemClock())
    await founder.found()
    await founder.add_router(ROUTER)
    await founder.publish(artifacts.manifest)
    return founder


async def open_account(url: str, home: Home, founder: Founder, account: str, at_least: int) -> None:
    """The account of this home's user, with an Explorer budget whenever less than this is left."""
    async with AsyncClient(url, account=account, key=load_or_create(home.key(account))) as client:
        await client.open_account()
    await founder.top_up(account, at_least=at_least)


async def until_seen(bus: NatsBus, nodes: int) -> None:
    """Returns when the router knows what every node serves."""
    for _ in range(SEEN_POLLS):
        if len((await ask(bus, "router", RouterReply)).nodes) >= nodes:
            return
        await asyncio.sleep(SEEN_POLL_S)
    raise NoAnswer("the router does not hear every node", hint="See the logs in the home's logs folder.")


def split_demo_model(home: Home) -> Artifacts:
    """The demo model, split in this home (once)."""
    return Artifacts.open(model_folder(home, DEMO_MODEL, FORMAT))
