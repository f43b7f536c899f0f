"""The network of one home: its founding, its account, and waiting until all of it is there. Owns no process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from sawyer.bus.calls import ask
from sawyer.bus.connection import NatsBus
from sawyer.cli.founding import Founder
from sawyer.cli.network_plan import ROUTER
from sawyer.cli.parts import model_folder
from sawyer.cli.session import opened
from sawyer.client.aio import AsyncClient
from sawyer.clock import SystemClock
from sawyer.contexts import NatsTarget
from sawyer.errors import NoAnswer
from sawyer.home import Home, Pin
from sawyer.identity.keys import load_or_create
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import DEMO_MODEL
from sawyer.schemas.messages import RouterReply

FORMAT: Final = "q4"
SEEN_POLLS: Final = 500
SEEN_POLL_S: Final = 0.02


async def found(bus: NatsBus, home: Home, pin: Pin, artifacts: Artifacts) -> Founder:
    """The first entries of the network, its router and its model; each is made once."""
    founder = Founder(bus, home, pin, SystemClock())
    await founder.found()
    await founder.add_router(ROUTER)
    await founder.publish(artifacts.manifest)
    return founder


async def open_account(url: str, home: Home, founder: Founder, account: str, at_least: int) -> None:
    """The account of this home's user, with an Explorer budget whenever less than this is left."""
    key = load_or_create(home.account_key(account))
    async with AsyncClient(member_target(url, home, "account", account), account=account, key=key) as client:
        await opened(client, key)
    await founder.top_up(account, at_least=at_least)


def member_target(url: str, home: Home, role: str, name: str) -> NatsTarget:
    """The server at this address, as this member of the home, if it has a certificate."""
    credentials = home.credentials(role, name)
    return NatsTarget(url=url, creds=credentials if credentials.is_file() else None)


async def until_seen(bus: NatsBus, nodes: Iterable[str]) -> None:
    """Returns when the router knows what each of these nodes serves, and all of them live."""
    wanted = set(nodes)
    for _ in range(SEEN_POLLS):
        seen = (await ask(bus, "router", RouterReply)).nodes
        if wanted <= {each.node for each in seen if not each.gone}:
            return
        await asyncio.sleep(SEEN_POLL_S)
    raise NoAnswer("the router does not hear every node", hint="See the logs in the home's logs folder.")


def split_demo_model(home: Home) -> Artifacts:
    """The demo model, split in this home (once)."""
    return Artifacts.open(model_folder(home, DEMO_MODEL, FORMAT))
