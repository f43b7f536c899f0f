"""How a command gets to its network: settings -> connection -> the network that this home is pinned to -> client.

Owns the one check of who answers. Commands that ask anything go through here.
"""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sawyer.bus.calls import ask
from sawyer.bus.connection import NatsBus
from sawyer.bus.protocol import Bus
from sawyer.cli.output import say
from sawyer.client.aio import AsyncClient
from sawyer.client.door import check_pinned, pin_of
from sawyer.contexts import NatsTarget
from sawyer.errors import NobodyServes, RequestConflict, ServerUnreachable, UnknownModel, UsageError, VerificationError
from sawyer.home import Home
from sawyer.identity.keys import Key, load
from sawyer.ids import AccountId
from sawyer.ledger.checkpoint import Checkpoint
from sawyer.schemas.messages import NetworkReply
from sawyer.settings import DEFAULT, FLAG, Settings


@dataclass(frozen=True)
class Consumer:
    """One account at the network of its home."""

    home: Home
    account: AccountId
    client: AsyncClient
    network: NetworkReply

    async def refresh(self) -> NetworkReply:
        """Models and prices as of now, for the orders that the client signs from here on. Raises VerificationError if
        another network answers meanwhile."""
        network = await self.client.network()
        check_pinned(network, self.home)
        return network


async def checked_network(bus: Bus, home: Home, *, pin: bool = False, vkey: str = "") -> NetworkReply:
    """The network that answers. A home that belongs to one takes no other; with `pin`, a home that belongs to none is
    pinned to what answers (trust on first use), and says so. Raises VerificationError for another network than the
    pinned one or a checkpoint that no key of its ledger signed, RefusedError before it is founded, NobodyServes."""
    network = await ask(bus, "network", NetworkReply)
    _, verifiers = check_pinned(network, home)
    if vkey and network.ledger_vkey != vkey:
        raise VerificationError(
            f"the network that answers signs with {network.ledger_vkey}, not with {vkey}",
            hint="Check the address: this is another network, or somebody stands in for it.",
        )
    Checkpoint.verify(network.checkpoint, *verifiers)
    if pin and home.pin() is None:
        home.create()
        home.write_pin(pin_of(network))
        check_pinned(network, home)  # from now on it remembers later keys, too
        say(f"{home.path} now belongs to network {network.network} ({network.mode}), whose ledger signs with")
        say(f"  {network.ledger_vkey}")
        say(f"and whose operator is {network.operator}.")
        if vkey:
            say("Its key is the one that you gave. Compare the operator, too. This home trusts no other now.")
        else:
            say("Nobody vouched for it: compare it with what the operator publishes. This home trusts no other now.")
    return network


@asynccontextmanager
async def reached(settings: Settings, name: str) -> AsyncIterator[tuple[NatsBus, str]]:
    """A connection to the NATS server of these settings, and its address; closed at the end. Raises ServerUnreachable
    saying which setting named the server."""
    target, source = settings.where_nats()
    try:
        bus = await NatsBus.connect(target, name=name)
    except ServerUnreachable as error:
        if error.hint != ServerUnreachable.default_hint:
            raise
        raise ServerUnreachable(error.message, hint=_where(source)) from error
    try:
        yield bus, target.address
    finally:
        await bus.close()


@asynccontextmanager
async def connected(
    settings: Settings, name: str, *, pin: bool = False, vkey: str = ""
) -> AsyncIterator[tuple[NatsBus, NetworkReply]]:
    """A connection to the network of this home, checked; closed at the end. With `pin` the home belongs to that network
    from now on, and finds it again at the address that was given. `vkey`: the only network that will do. Raises
    ServerUnreachable and NobodyServes saying which setting named the server, VerificationError."""
    async with reached(settings, name) as (bus, url):
        try:
            network = await checked_network(bus, settings.home, pin=pin, vkey=vkey)
        except NobodyServes as error:
            raise NobodyServes(
                f"no bookkeeper answers at {url}: there is no network", hint=_where(settings.where_nats()[1])
            ) from error
        if pin:
            _remember(settings)
        yield bus, network


def found_again(settings: Settings) -> bool:
    """Whether a command that is told nothing but the home gets to the same server, as the same user."""
    home = settings.values["home"]
    try:
        fresh = Settings.load(home=home.text if home.rank == FLAG else None).where_nats()[0]
    except UsageError:
        return False
    return fresh == settings.where_nats()[0]


def _remember(settings: Settings) -> None:
    """Keep the address in the home if that alone is enough to come back, and holds no secret; else say what is."""
    target, nats, context = settings.told_nats()[0], settings.values["nats"], settings.context()
    by_address = context is None or context.rank > nats.rank
    if by_address and nats.rank < DEFAULT and not target.proves:
        settings.home.write_joined(target.url)
    if found_again(settings):
        return
    if target.proves and by_address:
        say(f"{settings.home.path} does not keep how to come back: that takes {target.credential}. Make a context:")
        say(f"  sawyer context add NAME {_told_anew(target)} --select{_home_flag(settings)}")
    elif by_address and context is not None:
        say(f"Other commands use the context {context.text}. Name this address each time, or give that up:")
        say(f"  sawyer context select -{_home_flag(settings)}")
    elif context is not None:
        say(f"Other commands find this network with --context {context.text}, or from now on without it:")
        say(f"  sawyer context select {shlex.quote(context.text)}{_home_flag(settings)}")


def _home_flag(settings: Settings) -> str:
    """What another command must be told to be in this home; "" if the next one is anyway."""
    home = settings.values["home"]
    return f" --home {shlex.quote(home.text)}" if home.rank == FLAG else ""


def _told_anew(target: NatsTarget) -> str:
    """The address and credentials as `sawyer context add` takes them; a secret is asked for there."""
    bare, how = target.address.replace("***@", ""), ""
    if target.creds:
        how = f" --creds {shlex.quote(str(target.creds))}"
    elif target.address != target.url:
        proof = target.url.rpartition("@")[0].partition("//")[2]
        how = " --user USER" if ":" in proof else " --token"
    return f"--nats {shlex.quote(bare)}{how}"


def _where(source: str) -> str:
    return f"That address is from: {source}. Start a network with `sawyer up`, or name its server with --nats."


@asynccontextmanager
async def consumer(settings: Settings, trunk: Path | None = None) -> AsyncIterator[Consumer]:
    """The account of these settings, ready to ask. `trunk`: the folder of one to run here. Raises UsageError if the
    account was never opened in this home."""
    home, account = settings.home, AccountId(settings["account"])
    key = account_key(home, account)
    async with (
        connected(settings, f"client {account}") as (bus, network),
        AsyncClient(account=account, key=key, bus=bus, trunk=trunk or "hosted") as client,
    ):
        yield Consumer(home, account, client, network)


async def opened(client: AsyncClient, key: Key) -> int:
    """The entry with which this client's account was opened, now if it was not. It may have another key by now than it
    was opened with: then that is `key`. Raises NotAuthorised or RequestConflict for an account of somebody else."""
    try:
        return (await client.open_account()).seq
    except RequestConflict:
        account = await client.account()
        if account.key != key.id:
            raise
        return account.opened


def account_key(home: Home, account: str) -> Key:
    """The key of an account that was opened in this home. Raises UsageError if there is none, or no network yet."""
    path = home.account_key(account)
    if home.pin() is None or not path.is_file():
        raise UsageError(
            f"no account {account} was opened in {home.path}",
            hint=f"In a network of your own: sawyer up -d. In another: sawyer account open {account} --nats URL",
        )
    return load(path)


def chosen_model(network: NetworkReply, wanted: str) -> str:
    """The model to ask: the one that is wanted, else the only one there is. Raises UnknownModel, UsageError."""
    published = [each.model for each in network.models]
    if wanted and wanted not in published:
        raise UnknownModel(
            f"the network publishes no model {wanted!r}", hint=f"Published: {', '.join(published) or 'none'}."
        )
    if wanted:
        return wanted
    if not published:
        raise UnknownModel("the network publishes no model", hint="Its operator must publish one first.")
    if len(published) > 1:
        raise UsageError(
            f"the network has {len(published)} models", hint=f"Choose one with --model: {', '.join(published)}."
        )
    return published[0]
