"""`sawyer bench split`: its options, and how a result looks. What is measured is in bench/split.py."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from sawyer.cli.bench_text import progress, rounds_option, rounds_text, show_goals, spread_text
from sawyer.cli.options import JsonOption
from sawyer.cli.output import emit_json, heading, line, table
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.bench.split import SplitResult

ROUNDS = 3
QUICK_ROUNDS = 1
SIZE_GB = 2.0
QUICK_SIZE_GB = 0.1
MAX_SIZE_GB = 1000.0


def bench_split(
    size_gb: Annotated[
        float | None,
        typer.Option(
            "--size-gb",
            min=0.01,
            max=MAX_SIZE_GB,
            help="Size of the checkpoint that is split, in bfloat16.",
            show_default=f"{SIZE_GB:g}; quick: {QUICK_SIZE_GB:g}",
        ),
    ] = None,
    rounds: Annotated[int | None, rounds_option(ROUNDS, QUICK_ROUNDS)] = None,
    format: Annotated[str, typer.Option("--format", help="Format of the experts.")] = "q4",
    trunk_format: Annotated[str, typer.Option("--trunk-format", help="Format of the trunk's matrices.")] = "f32",
    quick: Annotated[bool, typer.Option("--quick", help="A small checkpoint: seconds, and rougher.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure splitting: peak memory, MB/s, CPU, and how long it takes beside plain copying of the file."""
    from sawyer.bench.split import SplitPlan, measure
    from sawyer.cli.models import known_format

    size = size_gb or (QUICK_SIZE_GB if quick else SIZE_GB)
    count = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    plan = SplitPlan(int(size * 1e9), count, known_format(format), known_format(trunk_format), quick)
    with progress() as notice:
        result = measure(plan, Settings.load()["loop"], notice)
    if as_json:
        emit_json(asdict(result))
    else:
        _show(result)


def _show(result: SplitResult) -> None:
    machine = result.machine
    line(f"{machine.cpu}, {machine.cores} cores, load {machine.load:g}; {machine.python}")
    line(f"{result.input_bytes / 1e9:.2f} GB of bfloat16, an expert {result.expert_f32_bytes / 1e6:.0f} MB in float32; "
         f"experts to {result.format}, trunk to {result.trunk_format}; {rounds_text(result.rounds)}")  # fmt: skip
    heading("Measured")
    rows = [
        ("split, MB of input a second", spread_text(result.mb_per_s)),
        ("split, MB of input a second of CPU", spread_text(result.mb_per_cpu_s)),
        ("plain copy of the file, MB a second", spread_text(result.copied_mb_per_s)),
        ("copies that fit into a split", spread_text(result.copies_a_split, 1)),
        ("peak memory, MB", f"{result.peak_bytes / 1e6:,.0f}"),
        ("  of that before it began", f"{result.idle_bytes / 1e6:,.0f}"),
    ]
    table(["", "median"], rows)
    show_goals(result.goals)
