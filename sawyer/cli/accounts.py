"""`sawyer account` and `sawyer balance`: open an account, look at one; as operator of a test network, grant tokens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sawyer.cli import output
from sawyer.cli.options import AccountOption, ContextOption, CredsOption, HomeOption, JsonOption, NatsOption
from sawyer.clock import SystemClock, iso
from sawyer.errors import NotAuthorised, RefusedError, UnknownAccount
from sawyer.home import Home, Pin
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.schemas.messages import AccountReply, BalanceReply, EntryRef, NetworkReply

app = typer.Typer(help="Open an account, look at it, grant tokens in a test network.", no_args_is_help=True)

MAX_TOKENS: Final = (2**53 - 1) // 10
"""What an account may be granted in all, so that its price stays below 2^53 micro-USD."""
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="By default SAWYER_ACCOUNT, or your user name.")]


@app.callback()
def group() -> None:
    """Open an account, look at it, grant tokens in a test network."""


@app.command("open", epilog="Example: sawyer account open alice --nats nats://HOST:4222")
def open_command(
    name: NameArgument = "",
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Make a key in this home and open an account with it. Again is the same account.

    A home that belongs to no network yet is pinned to the one that answers: compare that with what its operator says.
    """
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds, account=name)
    asyncio.run(_open(settings, as_json=as_json))


@app.command("show", epilog="Example: sawyer account show alice --json")
def show_command(
    name: NameArgument = "",
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Show an account: its key, its tokens, and the grants that they came from."""
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds, account=name)
    reply = asyncio.run(_look(settings))
    if as_json:
        output.emit_json(reply.model_dump(mode="json"))
    else:
        _show(reply, settings.home)


@app.command("grant", epilog="Example: sawyer account grant alice 100000")
def grant_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The account.")],
    tokens: Annotated[int, typer.Argument(metavar="TOKENS", min=1, max=MAX_TOKENS, help="How many.")],
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Grant tokens to an account of a test network; no money moves. Only in the operator's home."""
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds, account=name)
    asyncio.run(_grant(settings, tokens, as_json=as_json))


def balance(
    account: AccountOption = "",
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Show the tokens of an account: to spend, held by running requests, consumed, ever granted."""
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds, account=account)
    reply = asyncio.run(_look(settings)).balance
    if as_json:
        output.emit_json(reply.model_dump(mode="json"))
    else:
        _show_tokens(reply)


async def _open(settings: Settings, *, as_json: bool) -> None:
    from sawyer.bus.calls import ask
    from sawyer.cli.session import connected
    from sawyer.client.aio import AsyncClient
    from sawyer.identity.keys import load_or_create
    from sawyer.schemas.messages import AccountQuery, AccountReply

    home, account = settings.home, settings["account"]
    async with connected(settings, f"client {account}", pin=True) as (bus, network):
        was_there = home.account_key(account).exists()
        key = load_or_create(home.account_key(account))
        async with AsyncClient(account=account, key=key, bus=bus) as client:
            try:
                entry = await client.open_account()
            except RefusedError:
                if not was_there:  # a key that opens nothing would only mislead
                    home.account_key(account).unlink(missing_ok=True)
                raise
        reply = await ask(bus, "account", AccountReply, AccountQuery(account=account))
    _tell_open(settings, network, reply, entry, as_json=as_json)


def _tell_open(
    settings: Settings, network: NetworkReply, reply: AccountReply, entry: EntryRef, *, as_json: bool
) -> None:
    if as_json:
        document = {"account": reply.account, "key": reply.key, "network": network.network, "entry": entry.seq}
        output.emit_json({**document, "balance": reply.balance.model_dump(mode="json")})
        return
    output.line(f"account {reply.account} is open on {network.network} (entry {entry.seq})")
    output.line(f"its key: {settings.home.account_key(reply.account)}")
    if reply.balance.available:
        output.say(f'{reply.balance.available:,} tokens to spend: sawyer generate "It was a"')
    else:
        output.say(
            f"It has no tokens. In a test network its operator grants them: sawyer account grant {reply.account} N"
        )
    if reply.account != Settings.load(home=settings.home.path)["account"]:
        output.say(f"Other commands take it with --account {reply.account}, or SAWYER_ACCOUNT={reply.account}.")


async def _look(settings: Settings) -> AccountReply:
    from sawyer.bus.calls import ask
    from sawyer.cli.session import connected
    from sawyer.schemas.messages import AccountQuery, AccountReply

    account = settings["account"]
    async with connected(settings, "account") as (bus, network):
        try:
            return await ask(bus, "account", AccountReply, AccountQuery(account=account))
        except UnknownAccount as error:
            raise UnknownAccount(
                f"there is no account {account} on {network.network}",
                hint=f"Open it: sawyer account open {account}   (or name another)",
            ) from error


async def _grant(settings: Settings, tokens: int, *, as_json: bool) -> None:
    from sawyer.cli.founding import Founder
    from sawyer.cli.session import connected

    home, account = settings.home, settings["account"]
    pin = _operators_pin(home)
    async with connected(settings, "operator") as (bus, network):
        if network.mode != "test":
            raise RefusedError(f"{network.network} is a live network", hint="There, tokens are bought.")
        founder = Founder(bus, home, pin, SystemClock())
        try:
            entry = await founder.grant(account, tokens)
        except UnknownAccount as error:
            raise UnknownAccount(
                f"there is no account {account} on {network.network}",
                hint=f"Its owner opens it first: sawyer account open {account}",
            ) from error
    reply = await _look(settings)
    if as_json:
        document = {"account": account, "tokens": tokens, "entry": entry.seq}
        output.emit_json({**document, "balance": reply.balance.model_dump(mode="json")})
    else:
        output.line(
            f"granted {tokens:,} tokens to {account} (entry {entry.seq}): {reply.balance.available:,} to spend now"
        )


def _operators_pin(home: Home) -> Pin:
    """The pin of a home that holds its network's operator key. Raises NotAuthorised for any other."""
    from sawyer.identity.keys import load

    pin, file = home.pin(), home.operator_key
    if pin is None or not file.is_file() or load(file).id != pin.operator:
        raise NotAuthorised(
            f"{home.path} does not hold the operator's key of a network",
            hint="Only the operator grants tokens: run it with the home that founded the network (--home DIR).",
        )
    return pin


def _show(reply: AccountReply, home: Home) -> None:
    output.line(f"account    {reply.account}, opened in entry {reply.opened}")
    output.line(f"key        {reply.key}{'' if _is_here(reply, home) else ' (not in this home)'}")
    _show_tokens(reply.balance)
    if not reply.buckets:
        return
    output.heading("Grants" if len(reply.buckets) == reply.grants else f"The newest of {reply.grants} grants")
    now_ms = SystemClock().now_ms()
    output.table(
        ("grant", "tokens", "left", "held", "expires", "entry"),
        [
            (each.grant, f"{each.granted:,}", f"{each.available:,}", f"{each.held:,}",
             iso(each.expires_ms) + (" (expired)" if each.expires_ms <= now_ms else ""), each.seq)
            for each in reply.buckets
        ],
        numeric=("tokens", "left", "held", "entry"),
    )  # fmt: skip


def _show_tokens(reply: BalanceReply) -> None:
    for name in ("available", "held", "consumed", "granted"):
        output.line(f"{name:<10} {getattr(reply, name):>14,}")


def _is_here(reply: AccountReply, home: Home) -> bool:
    from sawyer.identity.keys import load

    file = home.account_key(reply.account)
    return file.is_file() and load(file).id == reply.key
