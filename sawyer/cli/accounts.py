"""`sawyer account` and `sawyer balance`: open an account, look at one; as operator, grant tokens and erase what is
personal."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sawyer.cli import output
from sawyer.cli.options import AccountOption, ContextOption, CredsOption, HomeOption, JoinOption, JsonOption, NatsOption
from sawyer.clock import SystemClock, iso
from sawyer.economy.periods import day_of
from sawyer.errors import Cancelled, RefusedError, UnknownAccount, UsageError
from sawyer.home import Home
from sawyer.settings import DEFAULT, Settings

if TYPE_CHECKING:
    from sawyer.schemas.events import TokensGranted
    from sawyer.schemas.messages import AccountReply, BalanceReply, NetworkReply

app = typer.Typer(help="Open an account, look at it, grant tokens, erase what is personal.", no_args_is_help=True)

MAX_TOKENS: Final = (2**53 - 1) // 10
"""What an account may be granted in all, so that its price stays below 2^53 micro-USD."""
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="By default SAWYER_ACCOUNT, or your user name.")]


@app.callback()
def group() -> None:
    """Open an account, look at it, grant tokens, erase what is personal."""


@app.command("open", epilog="Example: sawyer account open alice --nats nats://HOST:4222")
def open_command(
    name: NameArgument = "",
    join: JoinOption = "",
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
    if join:
        settings = _joined(settings, join)
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
    """Show an account: its key, its tokens, and the grants that they come from, with tier and expiry."""
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds, account=name)
    reply = asyncio.run(_look(settings))
    if as_json:
        output.emit_json(reply.model_dump(mode="json"))
    else:
        _show(reply, settings.home)


@app.command("grant", epilog="Example: sawyer account grant alice --tier explorer --start 2026-01-31")
def grant_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The account.")],
    tokens: Annotated[
        int | None, typer.Argument(metavar="TOKENS", min=1, max=MAX_TOKENS, help="How many; or a --tier.")
    ] = None,
    tier: Annotated[str, typer.Option("--tier", help="One paid period: explorer, builder or operator.")] = "",
    start: Annotated[str, typer.Option("--start", metavar="DATE", help="Its first day, UTC (default: today).")] = "",
    anchor: Annotated[
        int, typer.Option("--anchor", metavar="DAY", min=0, max=31, help="Day of the month on which periods begin.")
    ] = 0,
    note: Annotated[str, typer.Option("--note", help="Something personal: sealed, readable in this home alone.")] = "",
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Grant tokens, or a paid period of a tier, in a test network; no money moves. Only in the operator's home.

    A period runs to the same day of the next month; what is left of it then lives one month more. Granting the same
    period again changes nothing.
    """
    from sawyer.cli.granting import Gift, day_ms, grant
    from sawyer.cli.grants import tier_named

    if (tokens is None) == (not tier):
        raise UsageError("grant either TOKENS or a period of a --tier", hint="sawyer account grant alice 100000")
    if not tier and (start or anchor):
        raise UsageError("--start and --anchor are about the period of a --tier", hint="Leave them out.")
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds, account=name)
    gift = Gift(tokens or 0, tier_named(tier) if tier else None, day_ms(start), anchor, note)
    body, entry, reply = asyncio.run(grant(settings, gift))
    if as_json:
        output.emit_json(
            {"account": reply.account, "grant": body.grant, "tier": body.tier, "tokens": body.tokens,
             "expires_ms": body.expires_ms, "entry": entry.seq, "balance": reply.balance.model_dump(mode="json")}
        )  # fmt: skip
        return
    what = f"{body.tokens:,} tokens" + (f" (tier {body.tier}, {_period(body)})" if body.tier else "")
    output.line(f"granted {what} to {reply.account} (entry {entry.seq}): {reply.balance.available:,} to spend now")
    if note:
        output.say(
            f"The note is sealed; its key is {settings.home.subject_key(reply.account)}: keep it with the others."
        )


@app.command("erase", epilog="Example: sawyer account erase alice")
def erase_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The account.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Make what is sealed about an account unreadable, for good: its key is destroyed. Only in the operator's home.

    The account, its tokens and its entries stay: they hold no personal data. Nothing more can be sealed for it. Copies
    of the key in backups of this home are yours to destroy. Cut short, it is finished by running it again.
    """
    from sawyer.cli.erasing import erase

    settings = Settings.load(home=home, nats=nats, context=context, creds=creds, account=name)
    if not yes and not typer.confirm(f"Nobody will read again what is sealed for {name}. Erase?", err=True):
        raise Cancelled("nothing was erased")
    had_key, entry = asyncio.run(erase(settings))
    if as_json:
        output.emit_json({"account": name, "key_destroyed": had_key, "entry": entry.seq})
        return
    was = "its subject key is destroyed" if had_key else "there was no subject key here any more"
    output.line(f"{name} is erased (entry {entry.seq}): {was}")


def balance(
    account: AccountOption = "",
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Show the tokens of an account: to spend, held by running requests, consumed, expired, ever granted."""
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds, account=account)
    reply = asyncio.run(_look(settings)).balance
    if as_json:
        output.emit_json(reply.model_dump(mode="json"))
    else:
        _show_tokens(reply)


def _joined(settings: Settings, given: str) -> Settings:
    """With an invitation: this home is pinned to its network and holds a certificate; the settings to go on with.
    Raises UsageError for another kind of invitation, or another account than it names."""
    from sawyer.cli.joining import check_role, join_network, read_invitation

    invitation = read_invitation(given)
    check_role(invitation, "account")
    if settings.values["account"].rank < DEFAULT and settings["account"] != invitation.name:
        raise UsageError(f"the invitation is for account {invitation.name}", hint="Leave the name out.")
    name = invitation.name
    join_network(settings.home, invitation, name, settings.home.account_key(name))
    return settings.told(account=(name, "the invitation"))


async def _open(settings: Settings, *, as_json: bool) -> None:
    from sawyer.bus.calls import ask
    from sawyer.cli.joining import certify_here
    from sawyer.cli.session import connected, opened
    from sawyer.client.aio import AsyncClient
    from sawyer.identity.keys import load_or_create
    from sawyer.schemas.messages import AccountQuery, AccountReply

    home, account = settings.home, settings["account"]
    async with connected(settings, f"client {account}", pin=True) as (bus, network):
        was_there = home.account_key(account).exists()
        key = load_or_create(home.account_key(account))
        async with AsyncClient(account=account, key=key, bus=bus) as client:
            try:
                seq = await opened(client, key)
                await certify_here(bus, home, "account", account, key)
            except RefusedError:
                if not was_there:  # a key that opens nothing would only mislead
                    home.account_key(account).unlink(missing_ok=True)
                raise
        reply = await ask(bus, "account", AccountReply, AccountQuery(account=account))
    _tell_open(settings, network, reply, seq, as_json=as_json)


def _tell_open(settings: Settings, network: NetworkReply, reply: AccountReply, seq: int, *, as_json: bool) -> None:
    if as_json:
        document = {"account": reply.account, "key": reply.key, "network": network.network, "entry": seq}
        output.emit_json({**document, "balance": reply.balance.model_dump(mode="json")})
        return
    output.line(f"account {reply.account} is open on {network.network} (entry {seq})")
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


def _period(body: TokensGranted) -> str:
    return f"{day_of(body.valid_from_ms)} to {day_of(body.period_end_ms)}, spendable until {day_of(body.expires_ms)}"


def _show(reply: AccountReply, home: Home) -> None:
    output.line(f"account    {reply.account}, opened in entry {reply.opened}")
    output.line(f"key        {reply.key}{'' if _is_here(reply, home) else ' (not in this home)'}")
    _show_tokens(reply.balance)
    if not reply.buckets:
        return
    output.heading("Grants" if len(reply.buckets) == reply.grants else f"What is left of {reply.grants} grants")
    now_ms = SystemClock().now_ms()
    output.table(
        ("grant", "tier", "tokens", "left", "held", "expired", "from", "until", "entry"),
        [
            (each.grant, each.tier or "-", f"{each.granted:,}", f"{each.available:,}", f"{each.held:,}",
             f"{each.expired:,}", iso(each.valid_from_ms) + (" (not yet)" if each.valid_from_ms > now_ms else ""),
             iso(each.expires_ms) + (" (expired)" if each.expires_ms <= now_ms else ""), each.seq)
            for each in reply.buckets
        ],
        numeric=("tokens", "left", "held", "expired", "entry"),
    )  # fmt: skip


def _show_tokens(reply: BalanceReply) -> None:
    for name in ("available", "held", "consumed", "expired", "granted"):
        output.line(f"{name:<10} {getattr(reply, name):>14,}")


def _is_here(reply: AccountReply, home: Home) -> bool:
    from sawyer.identity.keys import load

    file = home.account_key(reply.account)
    return file.is_file() and load(file).id == reply.key
