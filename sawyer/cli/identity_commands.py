"""`sawyer identity`: who this home is: its members, their certificates, and replacing their keys."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from sawyer.cli import output
from sawyer.cli.options import ContextOption, CredsOption, HomeOption, JsonOption, NatsOption
from sawyer.clock import iso
from sawyer.errors import SawyerError
from sawyer.home import Home
from sawyer.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Who this home is: its certificates, and replacing their keys.")


@dataclass(frozen=True)
class Held:
    """A certificate in this home. `problem`: why it is of no use; "" if it is."""

    role: str
    name: str
    key: str
    models: tuple[str, ...]
    host: str
    expires_s: int
    file: str
    problem: str = ""


@app.command("show", epilog="Example: sawyer identity show --json")
def show(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show the certificates of this home: for whom, for what, until when."""
    place = Settings.load(home=home).home
    held = certificates_in(place)
    pin = place.pin()
    if as_json:
        output.emit_json({"home": str(place.path), "network": pin.network if pin else "",
                          "certificates": [asdict(each) for each in held]})  # fmt: skip
        return
    output.line(f"{place.path}: {f'network {pin.network}' if pin else 'belongs to no network yet'}")
    if held:
        rows = [(each.role, each.name, each.host, ", ".join(each.models), each.key, each.problem or _until(each))
                for each in held]  # fmt: skip
        output.table(("role", "name", "host", "models", "key", "good until"), rows)
    else:
        output.say("It holds no certificate. The operator invites: sawyer network invite; then: sawyer register --join")


@app.command("rotate", epilog="Example: sawyer identity rotate node attic")
def rotate(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="node or account.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key.")],
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Replace a member's key by a new one, in the book and in its certificate. The old one counts no more."""
    from sawyer.cli.keys import rotate_command

    rotate_command(role, name, as_json=as_json, home=home, nats=nats, context=context, creds=creds)


def certificates_in(home: Home) -> list[Held]:
    """Every credentials file of this home, whether it is of use or not."""
    from sawyer.bus.credentials import read_creds
    from sawyer.identity import jwt

    found = []
    for file in home.all_credentials():
        role, _, name = file.stem.partition("-")
        try:
            token, key = read_creds(file)
            claims = jwt.decode(token)
        except SawyerError as error:
            found.append(Held(role, name, "", (), "", 0, str(file), error.message))
            continue
        tags = [tag for tag in claims.nats.get("tags") or () if isinstance(tag, str)]
        problem = "expired" if claims.expires_s and claims.expires_s <= time.time() else ""
        problem = problem or ("" if claims.subject == key.id else "of another key than the one beside it")
        models = tuple(tag.removeprefix("model:") for tag in tags if tag.startswith("model:"))
        host = next((tag.removeprefix("host:") for tag in tags if tag.startswith("host:")), "")
        found.append(Held(role, name, key.id, models, host, claims.expires_s, str(file), problem))
    return found


def _until(held: Held) -> str:
    return iso(1000 * held.expires_s) if held.expires_s else "for ever"
