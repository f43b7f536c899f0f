"""`sawyer ledger follow`: keep views of one's own up to the book, from its copy in JetStream. Owns arguments and what
is told meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from sawyer.cli import output
from sawyer.cli.interrupts import interruptible
from sawyer.cli.ledger import KeyOption, OperatorOption, anchor_of
from sawyer.cli.options import ContextOption, CredsOption, HomeOption, JsonOption, NatsOption
from sawyer.cli.targets import check_target
from sawyer.errors import UsageError
from sawyer.settings import Settings

if TYPE_CHECKING:
    from rich.status import Status

    from sawyer.bookkeeper.following import Following
    from sawyer.ledger.follow import Follower

ViewsOption = Annotated[
    Path, typer.Option("--views", metavar="FILE", help="Your views: a SQLite file, made if missing.")
]


def register(app: typer.Typer) -> None:
    """Add the command to `sawyer ledger`."""
    app.command("follow", epilog="Example: sawyer ledger follow --views mine.sqlite --nats nats://HOST:4222")(
        follow_command
    )


def follow_command(
    views: ViewsOption,
    once: Annotated[bool, typer.Option("--once", help="Catch up and end, instead of following on.")] = False,
    key: KeyOption = None,
    operator: OperatorOption = None,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
    json: JsonOption = False,
) -> None:
    """Keep views of your own up to the book, from its copy in JetStream. Exit code 3 if what it reads does not hold.

    Chain, tree and checkpoints are verified on the way. Ctrl-C ends it, and it goes on where it was."""
    from sawyer.bookkeeper.following import Following
    from sawyer.ledger.follow import SNAPSHOT_SUFFIX, Follower
    from sawyer.ledger.tables import with_side_files

    if json and not once:
        raise UsageError("--json tells where it ended, and it does not end", hint="Give --once with it.")
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    vkey, founder = _trusted(settings, key, operator)
    for file in (*with_side_files(views), views.with_name(views.name + SNAPSHOT_SUFFIX)):
        check_target(file, (), settings.home)
    target = settings.where_nats()[0]
    with ExitStack() as stack:
        follower = Follower(views, vkey, founder)
        stack.callback(follower.close)
        line = stack.enter_context(_Line(follower, quiet=json))
        output.say(f"following {follower.network} on {target.address} into {views}")
        following = Following(follower, target, line.tell)
        ended = asyncio.run(interruptible(_run(following, once=once)))
        line.end()
        if ended is None:
            raise KeyboardInterrupt
    if json:
        output.emit_json(
            {"network": follower.network, "entries": follower.entries, "rows": follower.rows, "views": str(views)}
        )


async def _run(following: Following, *, once: bool) -> bool:
    await (following.once() if once else following.run())
    return True


def _trusted(settings: Settings, key: str | None, operator: str | None) -> tuple[str, str]:
    """The ledger's and the operator's key. Raises UsageError if nobody says which ledger is trusted."""
    pin = settings.home.pin()
    if key is not None:
        known = pin.operator if pin is not None and pin.ledger_vkey == anchor_of(key) else ""
        return anchor_of(key), operator or known
    if pin is None:
        raise UsageError(
            f"{settings.home.path} trusts no network yet",
            hint="Give --key with the network's verifier key, or --home of one that joined it.",
        )
    return pin.ledger_vkey, operator or pin.operator


class _Line:
    """One line on a terminal that says how far it is; in a pipe a line when it is up to date, and when it is not."""

    def __init__(self, follower: Follower, *, quiet: bool) -> None:
        self._follower = follower
        self._told: str | None = None
        self._quiet = quiet
        self._status: Status | None = None

    def __enter__(self) -> Self:
        console = output.stderr()
        if console.is_terminal and not self._quiet:
            self._status = console.status("")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def tell(self, trouble: str) -> None:
        """What keeps it, "" for nothing."""
        text = f"entry {self._follower.entries}" + (f", waiting: {trouble}" if trouble else "")
        if self._status is not None:
            self._status.update(output.printable(text))
        elif trouble != self._told and not self._quiet:
            output.say(text)
        self._told = trouble

    def end(self) -> None:
        """Where it ended."""
        self.__exit__()
        self._status = None
        if not self._quiet:
            output.say(f"the views are at entry {self._follower.viewed}")
