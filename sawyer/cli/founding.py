"""Founding a network on this machine: its keys, its first entries. Each step is taken once."""

from __future__ import annotations

from typing import Final

from sawyer.bus.calls import ask, record
from sawyer.bus.protocol import Bus
from sawyer.cli.founding_keys import check_founded_here, key_problem
from sawyer.cli.session import checked_network
from sawyer.clock import Clock
from sawyer.economy.pricing import UUSD_PER_TOKEN
from sawyer.errors import RefusedError, VerificationError
from sawyer.home import Home, Pin
from sawyer.identity.keys import load, load_or_create
from sawyer.ids import NetworkId, new_network_id
from sawyer.ledger.checkpoint import vkey_of
from sawyer.ledger.commands import OPERATOR_NAME, command
from sawyer.schemas.events import (
    Body,
    KeyAdded,
    ModelPrice,
    ModelPublished,
    NetworkFounded,
    PricingPublished,
    TokensGranted,
)
from sawyer.schemas.messages import BalanceQuery, BalanceReply, EntryRef, MembersReply, NetworkReply
from sawyer.schemas.models import Manifest

EXPLORER_TOKENS: Final = 500_000
PERIOD_MS: Final = 30 * 24 * 3600 * 1000
ACCOUNT_CHARS_IN_GRANT: Final = 40
"""A grant is named after its account and the time; both must fit into a name of 63 characters."""


def pinned_network(home: Home) -> Pin:
    """The network that this home founded; a new one, with operator and ledger keys of its own, if it belongs to none.
    Raises UsageError for a home that joined a network of others, or that has lost a key of its own."""
    held = home.pin()
    if held is not None:
        check_founded_here(home, held)
        return held
    if home.book.exists():
        raise VerificationError(
            f"{home.path} has a book, and its pin network.json is gone: nobody can say whose book it is",
            hint="Restore network.json. To found a new network here, move book.sqlite and views.sqlite away.",
        )
    operator = load_or_create(home.operator_key, "O")
    ledger = load_or_create(home.ledger_key)
    network = new_network_id()
    pin = Pin(network=network, ledger_vkey=vkey_of(network, ledger), operator=operator.id)
    home.write_pin(pin)
    return pin


class Founder:
    """Acts for the operator of a home's network. Raises UsageError if its key is not here, or is not the pinned one."""

    def __init__(self, bus: Bus, home: Home, pin: Pin, clock: Clock) -> None:
        self._bus = bus
        self._home = home
        self._clock = clock
        self._operator = load(home.operator_key)
        if (problem := key_problem(home, pin)) is not None:
            raise problem
        self.pin = pin
        self.network = NetworkId(pin.network)

    async def found(self) -> NetworkReply:
        """The first entry, unless it stands already. Raises VerificationError if the network that answers is not the
        one that this home is pinned to."""
        try:
            return await checked_network(self._bus, self._home)
        except RefusedError:
            await self._record(
                NetworkFounded(
                    network=self.network,
                    operator=self._operator.id,
                    ledger_vkey=self.pin.ledger_vkey,
                    mode="test",
                    founded_ms=self._clock.now_ms(),
                )
            )
        return await checked_network(self._bus, self._home)

    async def add_router(self, name: str) -> None:
        """Give this home's router key its role."""
        key = load_or_create(self._home.router_key(name))
        members = await ask(self._bus, "members", MembersReply)
        if (name, key.id) not in members.routers:
            await self._record(KeyAdded(network=self.network, role="router", name=name, key=key.id))

    async def publish(self, manifest: Manifest) -> None:
        """Publish a model, and a price for every published model: one budget token a text token, q4 included."""
        network = await ask(self._bus, "network", NetworkReply)
        if manifest.digest() not in {each.manifest for each in network.models}:
            await self._record(_published(self.network, manifest))
            network = await ask(self._bus, "network", NetworkReply)
        priced = {each.model for each in network.pricing.prices} if network.pricing else set()
        models = sorted({each.model for each in network.models})
        if not priced.issuperset(models):
            prices = tuple(ModelPrice(model=model, price_milli=1000, quant_milli=1000) for model in models)
            await self._record(
                PricingPublished(
                    network=self.network,
                    sheet=f"sheet-{network.size}",
                    input_weight_milli=1000,
                    output_weight_milli=1000,
                    prices=prices,
                )
            )

    async def top_up(self, account: str, at_least: int) -> None:
        """Grant an Explorer budget (test mode: no money moves) if fewer tokens than this are left."""
        balance = await ask(self._bus, "balance", BalanceReply, BalanceQuery(account=account))
        if balance.available >= at_least:
            return
        await self.grant(account, EXPLORER_TOKENS)

    async def grant(self, account: str, tokens: int) -> EntryRef:
        """Grant a budget, at the price of every tier (test mode: no money moves), for two periods from now. Raises
        UnknownAccount, RefusedError in a live network."""
        now_ms = self._clock.now_ms()
        return await self._record(
            TokensGranted(
                network=self.network,
                account=account,
                grant=f"{account[:ACCOUNT_CHARS_IN_GRANT]}-{now_ms}",
                tokens=tokens,
                valid_from_ms=now_ms,
                expires_ms=now_ms + 2 * PERIOD_MS,
                paid_uusd=tokens * UUSD_PER_TOKEN,
                mode="test",
            )
        )

    async def _record(self, body: Body) -> EntryRef:
        return await record(self._bus, command(body, OPERATOR_NAME, self._operator))


def _published(network: NetworkId, manifest: Manifest) -> ModelPublished:
    layout = manifest.layout
    return ModelPublished(
        network=network,
        model=manifest.model,
        manifest=manifest.digest(),
        family=layout.family,
        format=manifest.format,
        moe_layers=len(layout.moe_layers),
        experts=layout.experts,
        top_k=layout.top_k,
        expert_parameters=layout.expert_parameters,
    )
