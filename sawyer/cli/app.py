"""The `sawyer` command: its groups, and its exit code. How a failure is told: failures.py."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, NoReturn

import typer

import sawyer
from sawyer.cli import (
    accounts,
    bench,
    chat,
    contexts,
    demo,
    doctor,
    generate,
    identity_commands,
    keys,
    ledger,
    ledger_copies,
    ledger_copy,
    ledger_export,
    ledger_follow,
    ledger_proofs,
    ledger_statement,
    metrics,
    models,
    network_commands,
    parts,
    pricing,
    register,
    serving,
    status,
    top,
    trace,
    up,
)
from sawyer.cli.failures import report, without_debug
from sawyer.cli.output import stdout
from sawyer.errors import EXIT_DONE

app = typer.Typer(
    name="sawyer",
    help="Volunteer Mixture-of-Experts inference: remote experts over NATS, exact output, an auditable book.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass(frozen=True)
class Entry:
    """One line of `sawyer --help`."""

    does: Callable[..., None] | typer.Typer
    about: str
    example: str = ""
    name: str | None = None


_MENU: Final[dict[str, tuple[Entry, ...]]] = {
    "Start here": (
        Entry(demo.demo, "See it all work once, and end", "sawyer demo --prompt 'It was a' --kill"),
        Entry(up.up, "Keep a network running here", "sawyer up -d && sawyer status"),
        Entry(up.down, "End it", "sawyer down"),
        Entry(status.status, "Show the network on one page", "sawyer status node-1 --json"),
        Entry(top.top, "Watch nodes, routers and experts at work", "sawyer top --once"),
        Entry(up.logs, "Show what its parts say", "sawyer logs -f router-1"),
    ),
    "Use it": (
        Entry(generate.generate, "Continue a text", "sawyer generate 'It was a' --max-tokens 40 --temperature 0.8"),
        Entry(chat.chat, "Write a text together with a model", "sawyer chat --temperature 0.7"),
        Entry(accounts.balance, "Show the tokens of an account", "sawyer balance --json"),
        Entry(accounts.app, "Open an account, look at it, grant tokens", name="account"),
        Entry(models.app, "List, show and split models", name="models"),
        Entry(pricing.app, "Show the prices, or set one", name="pricing"),
    ),
    "Host experts": (
        Entry(register.register, "Join a network as a host", "sawyer register --nats nats://HOST:4222 --name attic"),
        Entry(serving.serve, "Serve experts of a model", "sawyer serve austen-8m --experts '0-3:*' --name attic"),
    ),
    "Run the parts": (
        Entry(network_commands.app, "Say who may connect: invite, revoke, members", name="network"),
        Entry(parts.bookkeeper, "Keep the book", "sawyer bookkeeper --home DIR --nats nats://127.0.0.1:4222"),
        Entry(parts.route, "Run a model's router", "sawyer route austen-8m --nats nats://127.0.0.1:4222"),
        Entry(bench.app, "Measure this machine, or its ledger", name="bench"),
    ),
    "When something is wrong": (
        Entry(doctor.doctor, "Check settings, machine and network", "sawyer doctor --json"),
        Entry(trace.trace, "Show where the time of a request went", "sawyer trace 0f3c5a7e9b1d2f4a6c8e0a1b3d5f7a9c"),
        Entry(
            metrics.metrics,
            "Print all counters for Prometheus, or serve them",
            "sawyer metrics --listen 127.0.0.1:9464",
        ),
        Entry(contexts.app, "Name NATS servers and their credentials", name="context"),
    ),
    "Check the book": (
        Entry(ledger.app, "Verify the whole book, list and show its entries", name="ledger"),
        Entry(identity_commands.app, "Show this home's certificates, replace a member's key", name="identity"),
        Entry(keys.app, "See who has which key, replace or revoke one", name="keys"),
    ),
}


def _build() -> None:
    for panel, entries in _MENU.items():
        for entry in entries:
            if isinstance(entry.does, typer.Typer):
                app.add_typer(entry.does, name=entry.name, short_help=entry.about, rich_help_panel=panel)
            else:
                told = app.command(short_help=entry.about, epilog=f"Example: {entry.example}", rich_help_panel=panel)
                told(entry.does)


_build()
ledger.app.command("backup", epilog="Example: sawyer ledger backup book-2026-01-31.sqlite")(ledger_copies.backup)
ledger.app.command("restore", epilog="Example: sawyer ledger restore book-2026-01-31.sqlite")(ledger_copies.restore)
ledger.app.command("statement", epilog="Example: sawyer ledger statement alice --month 2026-11 --receipts")(
    ledger_statement.statement
)
ledger.app.command("export", epilog="Example: sawyer ledger export --format beancount -o book.beancount")(
    ledger_export.export
)
for _part in (ledger_copy, ledger_follow, ledger_proofs):
    _part.register(ledger.app)


def _version(wanted: bool) -> None:
    if wanted:
        stdout().print(f"sawyer {sawyer.__version__}", markup=False)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of what fails; anywhere.")] = False,
) -> None:
    """Options of the whole program."""


def main() -> NoReturn:
    """Run the command line; every way out has its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of one command line; what fails is said in a line and a hint, a traceback only with --debug."""
    debug, arguments = without_debug(arguments)
    try:
        code = app(arguments, standalone_mode=False, prog_name="sawyer")
        if sys.stdout is not None and not sys.stdout.closed:  # by whoever started us, or because nobody reads it
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt, asyncio.CancelledError, BaseExceptionGroup) as error:  # noqa: BLE001
        return report(error, debug=debug)
    return code if isinstance(code, int) else EXIT_DONE
