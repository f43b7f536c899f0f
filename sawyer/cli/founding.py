"""Founding a network on this machine: its keys, its first entries. Each step is taken once."""

from __future__ import annotations

from typing import TypeVar

from sawyer.bus.calls import ask, record
from sawyer.bus.protocol import Bus
from sawyer.cli.founding_keys import check_founded_here, key_problem
from sawyer.cli.grants import grant_of_tokens
from sawyer.cli.price_sheet import next_sheet
from sawyer.cli.seeds import settled
from sawyer.cli.session import checked_network
from sawyer.clock import Clock
from sawyer.economy.tiers import TIERS
from sawyer.errors import NotAuthorised, RefusedError, VerificationError
from sawyer.home import Home, Pin
from sawyer.identity.envelope import sign
from sawyer.identity.keys import load, load_or_create
from sawyer.ids import NetworkId, new_network_id
from sawyer.ledger.checkpoint import vkey_of
from sawyer.ledger.commands import OPERATOR_NAME, command
from sawyer.ledger.succession import trusted
from sawyer.schemas.base import Fact
from sawyer.schemas.events import (
    KIND_OF,
    Body,
    KeyAdded,
    ModelPrice,
    ModelPublished,
    NetworkFounded,
)
from sawyer.schemas.messages import BalanceQuery, BalanceReply, EntryRef, MembersReply, NetworkReply
from sawyer.schemas.models import Manifest
from sawyer.schemas.signed import Signed

FactT = TypeVar("FactT", bound=Fact)


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
    """Acts for the operator of a home's network. Raises UsageError if its key is not here, or is not the operator's."""

    def __init__(self, bus: Bus, home: Home, pin: Pin, clock: Clock) -> None:
        self.bus = bus
        self._home = home
        self._clock = clock
        if (problem := key_problem(home, pin)) is not None:
            raise problem
        self._operator = load(home.operator_key)
        self.pin = pin
        self.network = NetworkId(pin.network)

    async def found(self) -> NetworkReply:
        """The first entry, unless it stands already. Raises VerificationError if the network that answers is not the
        one that this home is pinned to."""
        try:
            return self.take_office(await checked_network(self.bus, self._home))
        except NotAuthorised:
            raise
        except RefusedError:
            await self.record(
                NetworkFounded(
                    network=self.network,
                    operator=self._operator.id,
                    ledger_vkey=self.pin.ledger_vkey,
                    mode="test",
                    founded_ms=self._clock.now_ms(),
                )
            )
        return self.take_office(await checked_network(self.bus, self._home))

    def take_office(self, network: NetworkReply) -> NetworkReply:
        """Sign as the network's operator of now: a key that was rotated, and not yet put in its place, is. Raises
        NotAuthorised if the operator's key is not in this home."""
        operator, _ = trusted(self.pin, network.successors)
        self._operator = settled(self._home, self._home.operator_key, operator)
        if self._operator.id != operator:
            raise NotAuthorised(
                f"the operator's key of {network.network} is {operator}, and {self._home.operator_key} is not that one",
                hint="Act in the home that holds it (--home DIR).",
            )
        return network

    async def add_router(self, name: str) -> None:
        """Give this home's router key its role."""
        key = load_or_create(self._home.router_key(name))
        members = await ask(self.bus, "members", MembersReply)
        if (name, key.id) not in members.routers:
            await self.record(KeyAdded(network=self.network, role="router", name=name, key=key.id))

    def signed_publication(self, manifest: Manifest) -> Signed[ModelPublished]:
        """The operator's word on a manifest, for those who pull its files."""
        return sign(_published(self.network, manifest), KIND_OF[ModelPublished], OPERATOR_NAME, self._operator)

    async def publish(self, manifest: Manifest) -> None:
        """Publish a model, and a price for every published model that has none: one budget token a text token."""
        network = await ask(self.bus, "network", NetworkReply)
        if manifest.digest() not in {each.manifest for each in network.models}:
            await self.record(_published(self.network, manifest))
            network = await ask(self.bus, "network", NetworkReply)
        prices = network.pricing.prices if network.pricing else ()
        priced = {(each.model, each.format) for each in prices}
        wanted = sorted({(each.model, each.format) for each in network.models} - priced)
        if wanted:
            base = [ModelPrice(model=model, format=fmt, price_milli=1000, quant_milli=1000) for model, fmt in wanted]
            await self.record(next_sheet(network, (*prices, *base)))

    async def top_up(self, account: str, at_least: int) -> None:
        """Grant an Explorer budget (test mode: no money moves) if fewer tokens than this are left."""
        balance = await ask(self.bus, "balance", BalanceReply, BalanceQuery(account=account))
        if balance.available >= at_least:
            return
        tokens = TIERS["explorer"].tokens
        await self.record(grant_of_tokens(self.network, account, tokens, self._clock.now_ms()))

    def signed(self, body: FactT, kind: str) -> Signed[FactT]:
        """A statement of the operator that is no entry of the book."""
        return sign(body, kind, OPERATOR_NAME, self._operator)

    async def record(self, body: Body) -> EntryRef:
        """Have a fact recorded as the operator's word. Raises the ledger's refusal."""
        return await record(self.bus, command(body, OPERATOR_NAME, self._operator))


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
