"""`sawyer keys`: who has which role, another key for a role, the end of a key. Owns options and printing."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from sawyer.cli import output
from sawyer.cli.options import ContextOption, CredsOption, HomeOption, JsonOption, NatsOption
from sawyer.clock import iso
from sawyer.errors import BadSignature, UsageError
from sawyer.ids import is_slug
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.cli.key_roles import KeyHeld
    from sawyer.cli.rotation import Rotated

app = typer.Typer(help="See who has which key, replace a key, revoke one.", no_args_is_help=True)

BookOption = Annotated[str | None, typer.Option("--book", help="A copy of a book.")]
ROLES: Final = ("operator", "ledger", "node", "account")


@app.callback()
def group() -> None:
    """See who has which key, replace a key, revoke one."""


@app.command("ls", epilog="Example: sawyer keys ls --all")
def list_command(
    everybody: Annotated[
        bool, typer.Option("--all", help="Accounts too, and keys that are not in force any more.")
    ] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
    book: BookOption = None,
) -> None:
    """List who has which role with which key, since which entry. Reads the book; `ledger replay` verifies it."""
    from sawyer.cli.key_roles import KINDS, keys_held
    from sawyer.cli.ledger import book_of
    from sawyer.ledger.search import matching, read
    from sawyer.ledger.wanted import Wanted

    source = book_of(home, book)
    rows = [row for kind in KINDS for row in matching(source, Wanted(kind))]
    entries = sorted((read(row, source) for row in rows), key=lambda entry: entry.seq)
    held = keys_held(entries)
    if as_json:
        output.emit_json([asdict(each) for each in held])
        return
    shown = [each for each in held if everybody or (each.in_force and each.role != "account")]
    columns = ("role", "name", "key", "since entry", *(("",) if everybody else ()))
    cells = [(each.role, each.name, each.key, each.since, *((_ended(each),) if everybody else ())) for each in shown]
    output.table(columns, cells, numeric=("since entry",))
    for each in held:
        if each.vkey and each.in_force:
            output.say(f"For --key, the ledger's: {each.vkey}")
    if len(shown) < len(held):
        output.say(f"{len(held) - len(shown)} more with --all: accounts, and keys that are not in force any more")


@app.command("rotate", epilog="Example: sawyer keys rotate node attic")
def rotate_command(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="operator, ledger, node or account.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the node or the account.")] = "",
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Replace a key by a new one. In the home that holds it; the ledger's while its network is down.

    The old seed is set aside, not deleted. Whoever trusts this network still does: the old key signs for the new one.
    Cut short, it is finished by running it again.
    """
    from sawyer.cli import rotation
    from sawyer.cli.joining import certify_new_key
    from sawyer.identity.keys import load

    if role not in ROLES:
        raise UsageError(f"there is no role {role!r} to rotate", hint=f"Roles: {', '.join(ROLES)}.")
    if (role in ("node", "account")) != bool(name):
        raise UsageError(
            f"name the {role}" if not name else f"there is one {role}: it has no other name",
            hint="sawyer keys rotate operator, or: sawyer keys rotate node NAME",
        )
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    if role == "ledger":
        done = rotation.rotate_ledger(settings)
    elif role == "operator":
        done = asyncio.run(rotation.rotate_operator(settings))
    else:
        holder: Literal["node", "account"] = "node" if role == "node" else "account"
        done = asyncio.run(rotation.rotate_holder(settings, holder, name))
        asyncio.run(certify_new_key(settings, holder, name, load(done.file)))
    if as_json:
        output.emit_json({**asdict(done), "file": str(done.file), "former": str(done.former or "")})
    else:
        _tell(done)


@app.command("revoke", epilog="Example: sawyer keys revoke UAB3... --since 2026-01-15 --reason stolen")
def revoke_command(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The public key, as `keys ls --all` shows it.")],
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="It may have been in other hands since then (UTC).")
    ] = "",
    reason: Annotated[str, typer.Option("--reason", metavar="WORD", help="Why: one word.")] = "revoked",
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """End a key: it may sign nothing from now on. As operator any key, elsewhere one that this home holds.

    With --since, what it signed after that time is in question: `ledger replay` names it. The operator's key and the
    ledger's are rotated first.
    """
    from sawyer.cli.moments import moment_ms
    from sawyer.cli.rotation import revoke
    from sawyer.identity.keys import public_bytes

    try:
        public_bytes(key)
    except BadSignature as error:
        raise UsageError(f"{key!r} is no public key", hint="`sawyer keys ls --all` shows them.") from error
    if not is_slug(reason):
        raise UsageError(f"{reason!r} is not one word", hint="Such as stolen, lost or retired.")
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    since_ms = moment_ms(since) if since else 0
    entry = asyncio.run(revoke(settings, key, since_ms, reason))
    if as_json:
        output.emit_json({"key": key, "since_ms": since_ms, "reason": reason, "entry": entry.seq})
        return
    output.line(f"{key} is revoked (entry {entry.seq}): it may sign nothing any more")
    if since_ms:
        output.say(f"What it signed since {iso(since_ms)} is in question: sawyer ledger replay names it.")


def _ended(held: KeyHeld) -> str:
    if held.revoked:
        since = f", in question since {iso(held.in_question_ms)}" if held.in_question_ms else ""
        return f"revoked in entry {held.revoked}: {held.reason}{since}"
    return f"until entry {held.until}" if held.until else ""


def _tell(done: Rotated) -> None:
    who = done.role if done.role == done.name else f"{done.role} {done.name}"
    how = f"entry {done.entry}" if done.entry else "the book had it already; now the files have it, too"
    output.line(f"{who} has a new key ({how}): {done.new}")
    if done.vkey:
        output.line(f"as a verifier key, for --key: {done.vkey}")
    output.line(f"its seed is {done.file}: keep it")
    if done.former is not None:
        output.say(f"The old seed is set aside as {done.former}.")
    if done.role == "node":
        output.say(f"A running {done.name} goes on with its old key and earns nothing: restart it now.")
    elif done.role == "ledger":
        output.say("The checkpoints from the next entry on are signed with it. Start the network again: sawyer up -d")
    elif done.role == "operator":
        output.say("Whoever trusts this network still does: the old key signed for the new one.")
    if done.entry:
        output.say(f"If the old key may be in other hands: sawyer keys revoke {done.old} --since TIME --reason stolen")
