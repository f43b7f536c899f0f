"""`sawyer ledger`: read and verify the book of a home, or a copy. Owns arguments and printing, not the verifying."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sawyer.cli import output
from sawyer.errors import EXIT_WRONG, UsageError, VerificationError
from sawyer.home import Home
from sawyer.money import format_usd
from sawyer.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sawyer.ledger.replay import Progress, ReplayReport
    from sawyer.ledger.source import SQLiteSource

app = typer.Typer(help="Read the book, and verify it: every entry, signature, decision and view.", no_args_is_help=True)

HomeOption = Annotated[Path | None, typer.Option("--home", help="The home whose book and views to verify.")]
BookOption = Annotated[Path | None, typer.Option("--book", help="A copy of a book, without live views.")]
KeyOption = Annotated[
    str | None, typer.Option("--key", help="The verifier key to trust (default: pinned in the home).")
]
OperatorOption = Annotated[
    str | None, typer.Option("--operator", help="The operator key to trust (default: pinned in the home).")
]
HeldOption = Annotated[Path | None, typer.Option("--checkpoint", help="A checkpoint you kept; the book must hold it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.callback()
def ledger() -> None:
    """Read the book, and verify it: every entry, signature, decision and view."""


@app.command("replay", epilog="Example: sawyer ledger replay --book COPY --key VKEY --json")
def replay_command(
    home: HomeOption = None,
    book: BookOption = None,
    key: KeyOption = None,
    operator: OperatorOption = None,
    checkpoint: HeldOption = None,
    json: JsonOption = False,
) -> None:
    """Read the whole book, believe nothing, and say what holds. Exit code 3 if something does not."""
    from sawyer.ledger.replay import replay, replay_home
    from sawyer.ledger.source import SQLiteSource

    _check_one(home, book)
    anchor, founder, held = None if key is None else anchor_of(key), _operator(operator), _held(checkpoint)
    with _progress(quiet=json) as progress:
        if book is not None:
            report = replay(SQLiteSource(book), key=anchor, operator=founder, held=held, progress=progress)
        else:
            place = _home_with_book(home)
            report = replay_home(place, key=anchor, operator=founder, held=held, progress=progress)
    if json:
        output.emit_json(_document(report))
    else:
        show(report)
    if not report.ok:
        raise typer.Exit(EXIT_WRONG)


@app.command("log", epilog="Example: sawyer ledger log -n 50 --account alice --kind inference.completed")
def log_command(
    count: Annotated[int, typer.Option("-n", "--count", min=1, metavar="N", help="The newest N entries.")] = 20,
    account: Annotated[str, typer.Option("--account", metavar="NAME", help="Only of this account.")] = "",
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help="Only of this kind of event.")] = "",
    home: HomeOption = None,
    book: BookOption = None,
    json: JsonOption = False,
) -> None:
    """Show the newest entries of the book, the newest last. Reads only; `replay` verifies."""
    from sawyer.cli.ledger_log import NOT_VERIFIED, log_document, newest, show_log

    entries = newest(_source(home, book), count, account=account, kind=kind)
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

    entry, raw = entry_at(_source(home, book), seq)
    if json:
        print_exact(raw)
    else:
        show_entry(entry)
    output.say(NOT_VERIFIED)


def _source(home: Path | None, book: Path | None) -> SQLiteSource:
    """The book that is meant. Raises UsageError if there is none."""
    from sawyer.ledger.source import SQLiteSource

    _check_one(home, book)
    return SQLiteSource(book if book is not None else _home_with_book(home).book)


def _check_one(home: Path | None, book: Path | None) -> None:
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


def _held(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        return (path.read_text(encoding="utf-8"),)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the checkpoint {path}: {error}") from error


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Progress | None]:
    """A bar on stderr while a person watches."""
    console = output.stderr()
    if quiet or not console.is_terminal:
        yield None
        return
    from rich.progress import Progress as Bar

    with Bar(console=console, transient=True) as bar:
        task = bar.add_task("verifying", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def show(report: ReplayReport) -> None:
    """The report for people: the verdict first, then who has and who earned what."""
    _show_verdict(report)
    if report.balances:
        output.heading("Balances (tokens, as of the last entry)")
        names = ("account", "available", "held", "consumed", "granted")
        output.table(names, [tuple(asdict(row).values()) for row in report.balances], numeric=names[1:])
    if report.hosts:
        output.heading(f"Hosts (provisional: {format_usd(report.pool_uusd)} pool before fees, mode {report.mode})")
        columns = ("host", "nodes", "requests", "rows", "work", "owed")
        rows = [(h.host, " ".join(h.nodes), h.requests, h.rows, h.work, format_usd(h.owed_uusd)) for h in report.hosts]
        output.table(columns, rows, numeric=columns[2:])


def _show_verdict(report: ReplayReport) -> None:
    problem = report.problem
    if problem is not None:
        output.line("WRONG: " + problem.why)
        if problem.signer:
            output.line("signed by: " + problem.signer)
        output.line("next: " + problem.hint)
    else:
        output.line(_verdict(report))
    output.line(f"network {report.network}, mode {report.mode or 'unknown'}")
    output.line(
        f"{report.entries} entries, {report.signatures} signatures, {report.checkpoints} checkpoints "
        f"in {report.duration_us / 1e6:.2f} s"
    )
    output.line(f"tree size {report.size}, root {report.root}")
    if report.views_seq is not None:
        output.line(f"live views compared, row by row, at entry {report.views_seq}")
    elif report.views_note:
        output.line("no live views compared: " + report.views_note)
    for kind, count in report.unknown_kinds.items():
        output.line(f"skipped {count} entries of kind {kind}, which this version does not know")
    if problem is None and not report.anchored:
        output.line("hint: give --key with the network's verifier key")
    if problem is None and not report.operator_anchored:
        output.line("hint: give --operator with the network's operator key")


def _verdict(report: ReplayReport) -> str:
    if not report.anchored:
        return "OK, but not anchored: consistent with itself, trust it no further"
    if not report.operator_anchored:
        return "OK by the ledger key you trust, but the operator is not anchored: grants, prices and roles are its word"
    return "OK: every entry, signature, decision and balance holds, by the key you trust"


def _document(report: ReplayReport) -> dict[str, object]:
    return {"ok": report.ok, **asdict(report)}
