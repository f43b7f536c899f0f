"""`sawyer context`: NATS servers and their credentials by name. Those of the nats CLI are used, never changed."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from sawyer.cli import output
from sawyer.cli.options import HomeOption, JsonOption
from sawyer.contexts import SAWYER, Context, Contexts, NatsTarget
from sawyer.errors import UsageError
from sawyer.settings import SELECTED, Settings

app = typer.Typer(help="Name NATS servers and their credentials.", no_args_is_help=True)

NONE: Final = "-"
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The context.")]


@app.callback()
def group() -> None:
    """Name NATS servers and their credentials.

    A context is used with --context NAME, SAWYER_CONTEXT, `context` in the config file, or once it was selected.
    """


@app.command("ls", epilog="Example: sawyer context ls --json")
def list_command(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """List all contexts, Sawyer's own and those of the nats CLI; * marks the selected one."""
    settings = Settings.load(home=home)
    contexts, selected = settings.contexts, settings.contexts.selected()
    rows = [_row(contexts, name, selected) for name in contexts.names()]
    if as_json:
        output.emit_json(rows)
        return
    if not rows:
        output.say("there are no contexts; make one: sawyer context add NAME --nats URL")
        return
    shown = [
        ("*" if row["selected"] else "", row["name"], row["owner"], row["url"] or "-", row["credential"] or "-",
         row["problem"] or row["description"])
        for row in rows
    ]  # fmt: skip
    output.table(("", "name", "owner", "url", "connects with", "about"), shown)
    in_force = settings.context()
    if in_force is not None and in_force.rank < SELECTED:
        output.say(f"in force is {in_force.text}: {in_force.source} says so")


@app.command("show", epilog="Example: sawyer context show prod")
def show_command(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="By default the one in force.")] = "",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show one context, without its secrets."""
    settings = Settings.load(home=home)
    if not name:
        in_force = settings.context()
        if in_force is None:
            raise UsageError("no context is in force", hint="Name one: sawyer context show NAME")
        name = in_force.text
    found = settings.contexts.read(name)
    fields = _fields(found, selected=settings.contexts.selected() == name)
    if as_json:
        output.emit_json(fields)
        return
    output.table(("field", "value"), [(field, value) for field, value in fields.items() if value not in ("", None)])


@app.command("add", epilog="Example: sawyer context add prod --nats tls://HOST:4222 --creds maria.creds --select")
def add_command(
    name: NameArgument,
    nats: Annotated[str, typer.Option("--nats", metavar="URL", help="Address; several with commas between.")],
    creds: Annotated[Path | None, typer.Option("--creds", metavar="FILE", help="NATS credentials file.")] = None,
    nkey: Annotated[Path | None, typer.Option("--nkey", metavar="FILE", help="Seed file of a user.")] = None,
    user: Annotated[
        str, typer.Option("--user", metavar="NAME", help="The password is asked, or read from stdin.")
    ] = "",
    token: Annotated[bool, typer.Option("--token", help="Ask for a token, or read it from stdin.")] = False,
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", help="Who signed the server's certificate.")
    ] = None,
    cert: Annotated[Path | None, typer.Option("--cert", metavar="FILE", help="Our certificate.")] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="The key of our certificate.")] = None,
    tls_first: Annotated[bool, typer.Option("--tls-first", help="TLS before the server's first word.")] = False,
    description: Annotated[str, typer.Option("--description", metavar="TEXT", help="A word about it.")] = "",
    select: Annotated[bool, typer.Option("--select", help="Use it from now on.")] = False,
    home: HomeOption = None,
) -> None:
    """Write a context. Secrets are never arguments, which other users of the machine could see."""
    from sawyer.bus.connection import check

    given = [flag for flag, is_given in (
        ("--creds", creds), ("--nkey", nkey), ("--user", user), ("--token", token),
    ) if is_given]  # fmt: skip
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} are two ways to prove who connects", hint="Give one of them.")
    contexts = Settings.load(home=home).contexts
    contexts.check_free(name)
    target = NatsTarget(
        url=nats,
        creds=_absolute(creds),
        nkey=_absolute(nkey),
        user=user,
        password=_secret("password") if user else "",
        token=_secret("token") if token else "",
        ca=_absolute(ca),
        cert=_absolute(cert),
        key=_absolute(key),
        tls_first=tls_first,
    )
    check(target)
    file = contexts.add(name, target, description)
    output.say(f"context {name} is written: {file}")
    if select:
        contexts.select(name)
        output.say(f"{name} is selected: {target.address}")
    else:
        output.say(f"try it: sawyer doctor --context {name}; use it from now on: sawyer context select {name}")


@app.command("select", epilog="Example: sawyer context select prod")
def select_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The context; - for none.")], home: HomeOption = None
) -> None:
    """Use a context whenever no address and no other context is named."""
    contexts = Settings.load(home=home).contexts
    contexts.select("" if name == NONE else name)
    if name == NONE:
        output.say("no context is selected")
    else:
        output.say(f"{name} is selected: {contexts.read(name).target.address}")


@app.command("rm", epilog="Example: sawyer context rm prod")
def remove_command(name: NameArgument, home: HomeOption = None) -> None:
    """Delete one of Sawyer's own contexts. Credentials that it names stay where they are."""
    contexts = Settings.load(home=home).contexts
    was_selected = contexts.selected() == name
    contexts.remove(name)
    output.say(f"context {name} is deleted" + ("; no context is selected now" if was_selected else ""))


def _row(contexts: Contexts, name: str, selected: str) -> dict[str, object]:
    """One context for a list, also if it cannot be used."""
    try:
        found = contexts.read(name)
    except UsageError as error:
        owner, file = contexts.locate(name)
        told: dict[str, object] = {"url": "", "credential": "", "description": "", "problem": error.message}
    else:
        owner, file, target = found.owner, found.file, found.target
        told = {"url": target.address, "credential": target.credential, "description": found.description, "problem": ""}
    return {"name": name, "owner": owner, "file": str(file), "selected": name == selected, **told}


def _fields(found: Context, *, selected: bool) -> dict[str, object]:
    target = found.target
    paths = {each: getattr(target, each) for each in ("ca", "cert", "key")}
    return {
        "name": found.name,
        "owner": "sawyer" if found.owner == SAWYER else "the nats CLI",
        "file": str(found.file),
        "selected": selected,
        "description": found.description,
        "url": target.address,
        "credential": target.credential,
        **{name: str(path) if path else None for name, path in paths.items()},
        "inbox_prefix": target.inbox_prefix,
        "tls_first": target.tls_first,
    }


def _absolute(path: Path | None) -> Path | None:
    """As the shell's folder makes it: the context is used in other folders."""
    return path.expanduser().absolute() if path is not None else None


def _secret(what: str) -> str:
    """Asked without an echo on a terminal, else the first line of stdin."""
    if sys.stdin.isatty():
        return getpass.getpass(f"{what}: ")
    line = sys.stdin.readline()
    if not line.strip():
        raise UsageError(f"there is no {what} on stdin", hint="Write it: sawyer context add ... < FILE")
    return line.rstrip("\r\n")
