"""The operator at work: connected to the network of this home, with the key that is the operator's now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sawyer.cli.founding import Founder
from sawyer.cli.session import connected
from sawyer.clock import SystemClock
from sawyer.errors import NotAuthorised, RefusedError
from sawyer.home import Home, Pin
from sawyer.schemas.messages import NetworkReply
from sawyer.settings import Settings


@asynccontextmanager
async def operating(settings: Settings) -> AsyncIterator[tuple[Founder, NetworkReply]]:
    """Raises NotAuthorised if this home does not hold its network's operator key, and what `connected` does."""
    pin = operators_pin(settings.home)
    async with connected(settings, "operator") as (bus, network):
        founder = Founder(bus, settings.home, pin, SystemClock())
        yield founder, founder.take_office(network)


def operators_pin(home: Home) -> Pin:
    """The pin of a home that holds an operator key. Raises NotAuthorised for any other."""
    pin = home.pin()
    if pin is None or not home.operator_key.is_file():
        raise NotAuthorised(
            f"{home.path} does not hold the operator's key of a network",
            hint="Only the operator may do that: run it with the home that founded the network (--home DIR).",
        )
    return pin


def check_test_mode(network: NetworkReply) -> None:
    """Raises RefusedError in a live network: there tokens are bought, not given."""
    if network.mode != "test":
        raise RefusedError(f"{network.network} is a live network", hint="There, tokens are bought.")
