"""`sawyer bench ledger`: its options, and how a result looks. What is measured is in bench/ledger.py."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from sawyer.cli.bench_text import progress, rounds_option, rounds_text, show_goals, spread_text
from sawyer.cli.options import JsonOption
from sawyer.cli.output import emit_json, heading, line, table
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.bench.ledger_result import LedgerResult

ROUNDS = 5
QUICK_ROUNDS = 2


def bench_ledger(
    rounds: Annotated[int | None, rounds_option(ROUNDS, QUICK_ROUNDS)] = None,
    entries: Annotated[
        int,
        typer.Option(
            "--entries", min=0, metavar="N", help="Also write a book of N entries and time a writer's start on it."
        ),
    ] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Short books: seconds, and rougher.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the book: durable appends, appends with every signature verified, replay, each beside its yardstick."""
    from sawyer.bench.ledger import CLIENTS, LedgerPlan, measure
    from sawyer.bench.ledger_result import LedgerResult
    from sawyer.bench.machine import this_machine

    settings = Settings.load()
    count = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    plan = LedgerPlan.fast(count, entries) if quick else LedgerPlan(count, start_entries=entries)
    with progress() as notice:
        found = measure(plan, notice)
    result = LedgerResult.of(found, this_machine(settings["loop"]), quick=quick, clients=CLIENTS)
    if as_json:
        emit_json(asdict(result))
    else:
        _show(result)


def _show(result: LedgerResult) -> None:
    machine = result.machine
    line(f"{machine.cpu}, {machine.cores} cores, load {machine.load:g}; {machine.python}")
    line(f"SQLite, synchronous FULL, {result.clients} clients; {rounds_text(result.rounds)}")
    heading("Measured")
    rows = [
        ("durable appends a second", spread_text(result.appends_per_second)),
        ("load, mutate, save a second", spread_text(result.plain_per_second)),
        ("  appends over that", spread_text(result.over_plain, 1)),
        ("verified and appended a second (256 clients)", spread_text(result.verified_per_second)),
        (
            f"  share of its signatures alone ({result.verified_signatures_a_command:g} a command)",
            spread_text(result.verified_share, 2),
        ),
    ]
    for each in result.replays:
        workers = "1 worker" if each.workers == 1 else f"{each.workers} workers"
        rows += [
            (f"replay, {workers}, entries a second", spread_text(each.entries_per_second)),
            (f"replay, {workers}, signatures a second", spread_text(each.signatures_per_second)),
            ("  signatures alone", spread_text(each.pure_signatures_per_second)),
            ("  share of these", spread_text(each.share, 2)),
        ]
    if result.start is not None:
        entries = f"{result.start.entries:,} entries"
        rows += [
            (f"start on {entries}, from its snapshot, s", f"{result.start.from_snapshot_s:.2f}"),
            ("  from its first entry, s", f"{result.start.from_first_s:.2f}"),
        ]
    table(["", "median"], rows)
    show_goals(result.goals)
