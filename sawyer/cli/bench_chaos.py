"""`sawyer bench chaos`: its options, and how a result looks. What it does is in bench_chaos_run.py."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sawyer.cli.bench_text import progress
from sawyer.cli.options import JsonOption
from sawyer.cli.output import emit_json, heading, line, table
from sawyer.errors import EXIT_WRONG
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.bench.chaos_result import ChaosResult, Times

SECONDS: Final = 60.0
QUICK_SECONDS: Final = 6.0
MAX_SECONDS: Final = 24 * 3600.0
STREAMS: Final = 8
QUICK_STREAMS: Final = 3
MAX_STREAMS: Final = 256
NODES: Final = 3
QUICK_NODES: Final = 2
TOKENS: Final = 64
QUICK_TOKENS: Final = 32


def bench_chaos(
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", min=1, max=MAX_SECONDS, help="How long; every fault comes once at least.",
                     show_default=f"{SECONDS:g}; quick: {QUICK_SECONDS:g}"),
    ] = None,
    streams: Annotated[
        int | None,
        typer.Option("--streams", min=1, max=MAX_STREAMS, help="Texts that are generated at once.",
                     show_default=f"{STREAMS}; quick: {QUICK_STREAMS}"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another order of faults, other victims.")] = 1,
    logs: Annotated[
        Path | None, typer.Option("--logs", metavar="FOLDER", help="Copy the logs of all parts there.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two nodes and each fault once: half a minute.")] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Kill, freeze and slow the parts of a network under load; fails (exit code 3) if any text or bill is wrong."""
    from sawyer.cli.bench_chaos_run import ChaosPlan, run_chaos

    plan = ChaosPlan(
        seconds or (QUICK_SECONDS if quick else SECONDS),
        streams or (QUICK_STREAMS if quick else STREAMS),
        seed,
        QUICK_NODES if quick else NODES,
        QUICK_TOKENS if quick else TOKENS,
        logs,
        quick,
    )
    with progress() as notice:
        settings = Settings.load()
        result = run_chaos(plan, settings["nats_server"], settings["loop"], notice)
    if as_json:
        emit_json(asdict(result))
    else:
        _show(result)
    if not result.ok:
        raise typer.Exit(EXIT_WRONG)


def _show(result: ChaosResult) -> None:
    machine = result.machine
    line(f"{machine.cpu}, {machine.cores} cores, load {machine.load:g}; {machine.python} on {machine.loop}")
    line(f"{result.model} on {result.nodes} nodes, {result.streams} streams, {result.seconds:g} s, seed {result.seed}")
    heading("Requests")
    rows = [
        ("requests", f"{result.requests:,}"),
        ("failed", f"{result.failed:,}"),
        ("changed", f"{result.changed:,}"),
        ("tokens", f"{result.tokens:,}"),
        ("tokens/s", f"{result.tokens_per_second:,}"),
    ]
    table(["", ""], rows, numeric=[""])
    for each in result.wrong:
        during = ", ".join(each.during) or "no fault"
        line(f"{each.request[:8]} {each.prompt!r}, {each.tokens} tokens, {each.seconds:g} s, during {during}: "
             f"{each.error or 'changed'} {each.why}")  # fmt: skip
    _show_stalls(result)
    _show_memory(result)
    _show_book(result)


def _show_stalls(result: ChaosResult) -> None:
    heading("Stalls in ms: the longest time between two tokens of a text while a fault was on, p50 / p99 / max")
    columns = ["fault", "times", "stall", "any two tokens", "first token", "bill"]
    rows: list[list[object]] = []
    for kind, each in result.stall_ms.by_kind.items():
        measured = (each.stall_ms, each.token_ms, each.first_ms, each.bill_ms)
        rows.append([kind, each.faults or "", *map(_times, measured)])
    stall = result.stall_ms
    together = f"{stall.p50:,} / {stall.p99:,} / {stall.max:,}"
    rows.append(["all faults", sum(result.faults.values()), together, "", "", ""])
    table(columns, rows, numeric=columns[1:])


def _show_memory(result: ChaosResult) -> None:
    if not result.memory:
        return
    heading("Memory in MB: soon after the start of each program's longest life, at its end, and the most")
    columns = ["program", "seconds", "early", "late", "most", "more open files"]
    rows = [
        [name, f"{each.seconds:g}", f"{each.early_mb:,}", f"{each.late_mb:,}", f"{each.most_mb:,}", each.files_grown]
        for name, each in result.memory.items()
    ]
    table(columns, rows, numeric=columns[1:])


def _show_book(result: ChaosResult) -> None:
    book = result.replay
    heading("The book")
    rows = [
        ("replay", "ok" if not book.problem else f"WRONG: {book.problem}"),
        ("entries", f"{book.entries:,}"),
        ("signatures", f"{book.signatures:,}"),
        ("debits", f"{book.debits:,}, {book.debited_tokens:,} tokens"),
        ("that do not match", f"{book.wrong_debits:,}"),
        ("still held", f"{book.held_tokens:,} tokens"),
    ]
    table(["", ""], rows)
    for each in book.told:
        line(each)


def _times(times: Times) -> str:
    return f"{times.p50:,} / {times.p99:,} / {times.max:,}" if times.count else "-"
