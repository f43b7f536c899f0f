"""`sawyer ledger`: read and verify the book of a home, or a copy. Owns arguments and printing, not the verifying."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypedDict

import typer

from sawyer.cli import output
from sawyer.cli.moments import moment_ms
from sawyer.cli.targets import read_text
from sawyer.errors import EXIT_WRONG, UsageError, VerificationError
from sawyer.home import Home
from sawyer.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sawyer.ledger.replay import At, Progress
    from sawyer.ledger.source import Source

app = typer.Typer(help="Read the book, and verify it: every entry, signature, decision and view.", no_args_is_help=True)

HomeOption = Annotated[
    Path | None, typer.Option("--home", metavar="DIR", help="The home whose book to read (default: yours).")
]
BookOption = Annotated[
    str | None,
    typer.Option("--book", metavar="FILE|URL", help="A copy of a book, its NDJSON export, or postgresql://..."),
]
KeyOption = Annotated[
    str | None, typer.Option("--key", help="The verifier key to trust (default: pinned in the home).")
]
OperatorOption = Annotated[
    str | None, typer.Option("--operator", help="The operator key to trust (default: pinned in the home).")
]
HeldOption = Annotated[
    Path | None, typer.Option("--checkpoint", metavar="FILE", help="A checkpoint you kept; the book must hold it.")
]
SinceOption = Annotated[
    Path | None,
    typer.Option(
        "--since",
        metavar="CHECKPOINT",
        help="A checkpoint you kept of a book that you verified: signatures before it are not verified again.",
    ),
]
AtOption = Annotated[
    str, typer.Option("--at", metavar="SEQ|TIME", help="Show balances as of this entry, or this time (UTC).")
]
WorkersOption = Annotated[
    int,
    typer.Option("--workers", metavar="N", min=0, max=256, help="Processes that verify (default: one a core)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
_NATS_SCHEMES: Final = ("nats://", "tls://", "ws://", "wss://")
_MOST_DIGITS: Final = 15
"""Of an entry's number."""


class _Brought(TypedDict):
    """What the caller of a replay brought; see `replay`."""

    key: str | None
    operator: str | None
    held: tuple[str, ...]
    since: str | None
    at: At | None
    workers: int
    progress: Progress | None


@app.callback()
def ledger() -> None:
    """Read the book, and verify it: every entry, signature, decision and view."""


@app.command("replay", epilog="Example: sawyer ledger replay --book COPY --key VKEY --operator KEY --json")
def replay_command(
    home: HomeOption = None,
    book: BookOption = None,
    key: KeyOption = None,
    operator: OperatorOption = None,
    checkpoint: HeldOption = None,
    since: SinceOption = None,
    at: AtOption = "",
    usage: Annotated[bool, typer.Option("--usage", help="Show usage by model, host and day too.")] = False,
    workers: WorkersOption = 0,
    json: JsonOption = False,
) -> None:
    """Read the whole book, believe nothing, and say what holds. Exit code 3 if something does not."""
    from sawyer.cli.ledger_report import document, show
    from sawyer.ledger.replay import replay, replay_home

    _check_one(home, book)
    anchor, founder = None if key is None else anchor_of(key), _operator(operator)
    held, known = _note(checkpoint), _note(since)
    with _progress(quiet=json) as progress:
        brought: _Brought = {
            "key": anchor, "operator": founder, "held": () if held is None else (held,), "since": known,
            "at": _at(at), "workers": workers, "progress": progress,
        }  # fmt: skip
        if book is not None:
            report = replay(source_at(book, anchor), **brought)
        else:
            source = book_of(home, None)
            report = replay_home(Settings.load(home=home).home, source=source, **brought)
    if json:
        output.emit_json(document(report))
    else:
        show(report, usage=usage)
    if not report.ok:
        raise typer.Exit(EXIT_WRONG)


@app.command("log", epilog="Example: sawyer ledger log -n 50 --account alice --kind inference.completed")
def log_command(
    count: Annotated[int, typer.Option("-n", "--count", min=1, metavar="N", help="The newest N entries.")] = 20,
    account: Annotated[str, typer.Option("--account", metavar="NAME", help="Only about this account.")] = "",
    host: Annotated[str, typer.Option("--host", metavar="NAME", help="Only about this host.")] = "",
    node: Annotated[str, typer.Option("--node", metavar="NAME", help="Only about this node.")] = "",
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help="Only of this kind of event.")] = "",
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="Only from then on (UTC).")] = "",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="Only before then (UTC).")] = "",
    home: HomeOption = None,
    book: BookOption = None,
    json: JsonOption = False,
) -> None:
    """Show the newest entries of the book, the newest last. Reads only; `replay` verifies."""
    from sawyer.cli.ledger_log import NOT_VERIFIED, Filter, log_document, newest, show_log

    wanted = Filter.of(account=account, host=host, node=node, kind=kind, since=since, until=until)
    entries = newest(book_of(home, book), count, wanted)
    if json:
        output.emit_json(log_document(entries))
    elif entries:
        show_log(entries)
    else:
        output.say("no entry is like that")
    output.say(NOT_VERIFIED)


@app.command("show", epilog="Example: sawyer ledger show 12 --json")
def show_command(
    seq: Annotated[int, typer.Argument(metavar="SEQ", min=1, help="The entry's number.")],
    home: HomeOption = None,
    book: BookOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the exact entry.")] = False,
) -> None:
    """Show a whole entry: the fact, who signed it, what the ledger decided. Reads only; `replay` verifies."""
    from sawyer.cli.ledger_log import NOT_VERIFIED, entry_at, print_exact, show_entry

    source = book_of(home, book)
    entry, raw = entry_at(source, seq)
    if json:
        print_exact(raw)
    else:
        show_entry(entry, source, Settings.load(home=home).home)
    output.say(NOT_VERIFIED)


def book_of(home: Path | None, book: str | None) -> Source:
    """The book that is meant. Raises UsageError if there is none."""
    from sawyer.ledger.source import source_of

    _check_one(home, book)
    if book is not None:
        return source_at(book)
    return source_of(Settings.load(home=home)["ledger_url"] or str(_home_with_book(home).book))


def source_at(book: str, key: str | None = None) -> Source:
    """The book at a place that was named: a file, a database, or with `nats://` the copy in JetStream, with the
    credentials of the settings. `key`: the ledger's, which says of which network. Raises UsageError."""
    from sawyer.ledger.source import source_of

    if not book.startswith(_NATS_SCHEMES):
        return source_of(book)
    from sawyer.bookkeeper.journal_source import JetStreamSource
    from sawyer.ids import NetworkId

    network = None if key is None else NetworkId(key.partition("+")[0])
    return JetStreamSource(Settings.load(nats=book).where_nats()[0], network)


def _check_one(home: Path | None, book: str | None) -> None:
    if home is not None and book is not None:
        raise UsageError("--home and --book are two ways to name a book", hint="Give one of them.")


def _home_with_book(flag: Path | None) -> Home:
    """The home that is meant. Raises UsageError if it has no book, naming the demo's if that has one."""
    place = Settings.load(home=flag).home
    if not place.book.exists():
        demo = place.demo
        hint = f"The demo's book is in --home {demo.path}" if demo.book.exists() else "Name another --home or --book."
        raise UsageError(f"there is no book in {place.path}", hint=hint)
    return place


def anchor_of(key: str) -> str:
    """The verifier key as given; a text that is no key is the caller's mistake, not the book's. Raises UsageError."""
    from sawyer.ledger.checkpoint import Verifier

    try:
        return Verifier.parse(key).vkey
    except VerificationError as error:
        raise UsageError(error.message, hint=error.hint) from error


def _operator(key: str | None) -> str | None:
    from sawyer.identity.keys import public_bytes

    if key is None:
        return None
    try:
        public_bytes(key)
    except VerificationError as error:
        raise UsageError(error.message, hint="It is in network.json of the operator's home.") from error
    if not key.startswith("O"):
        raise UsageError(f"{key} is not an operator's key", hint="Operator keys start with O.")
    return key


def _note(path: Path | None) -> str | None:
    try:
        return None if path is None else read_text(path)
    except VerificationError as error:
        raise UsageError(error.message, hint=error.hint) from error


def _at(text: str) -> At | None:
    """An entry's number, or a time. Raises UsageError."""
    from sawyer.ledger.replay import At

    if not text:
        return None
    if text.isascii() and text.isdigit():
        if not 0 < len(text.lstrip("0")) <= _MOST_DIGITS:
            raise UsageError(f"there is no entry {text}", hint="Entries are numbered from 1.")
        return At(seq=int(text))
    try:
        return At(ts_ms=max(1, moment_ms(text)))
    except UsageError as error:
        hint = "Give an entry's number, or a time like 2026-11-23 or 2026-11-23T16:07:30 (UTC)."
        raise UsageError(f"{text!r} is neither an entry nor a time of a book", hint=hint) from error


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Progress | None]:
    """A bar on stderr while a person watches: rows done, how many a second, the time that is left."""
    console = output.stderr()
    if quiet or not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    started = time.monotonic()
    rate = TextColumn("{task.fields[rate]} rows/s")
    with Bar("verifying", BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), console=console,
             transient=True) as bar:  # fmt: skip
        task = bar.add_task("verifying", total=None, rate="-")

        def tell(done: int, total: int) -> None:
            rate = f"{done / max(time.monotonic() - started, 0.001):,.0f}"
            bar.update(task, completed=done, total=max(done, total), rate=rate)

        yield tell
