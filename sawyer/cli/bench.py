"""`sawyer bench`: its options, and how a result looks. What it does is in bench_run.py, loaded only when it runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sawyer.cli.bench_chaos import bench_chaos
from sawyer.cli.bench_ledger import bench_ledger
from sawyer.cli.bench_split import bench_split
from sawyer.cli.bench_text import progress, rounds_option, rounds_text, show_goals, spread_text
from sawyer.cli.bench_wan import bench_wan
from sawyer.cli.options import JsonOption
from sawyer.cli.output import emit_json, heading, line, table
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.bench.result import BenchResult, ModelResult
    from sawyer.bench.timing import Quantiles

ROUNDS: Final = 5
QUICK_ROUNDS: Final = 2


app = typer.Typer(help="Measure this machine.")
app.command("chaos", epilog="Example: sawyer bench chaos --quick --json")(bench_chaos)
app.command("ledger", epilog="Example: sawyer bench ledger --json")(bench_ledger)
app.command("split", epilog="Example: sawyer bench split --size-gb 4")(bench_split)
app.command("wan", epilog="Example: sawyer bench wan --rtt-ms 50 --streams 1,8")(bench_wan)


@app.callback(invoke_without_command=True, epilog="Example: sawyer bench --quick --json")
def bench(
    context: typer.Context,
    rounds: Annotated[int | None, rounds_option(ROUNDS, QUICK_ROUNDS)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small model and few calls: seconds, and rougher.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine: tokens a second in process and over a network, and what a layer's communication costs."""
    if context.invoked_subcommand is not None:
        return
    from sawyer.cli.bench_run import BenchPlan, run

    plan = BenchPlan.fast(rounds or QUICK_ROUNDS) if quick else BenchPlan.full(rounds or ROUNDS)
    with progress() as notice:
        settings = Settings.load()
        result = run(plan, settings["nats_server"], settings["loop"], notice)
    if as_json:
        emit_json(asdict(result))
    else:
        _show(result)


def _show(result: BenchResult) -> None:
    machine = result.machine
    line(f"{machine.cpu}, {machine.cores} cores, load {machine.load:g}; {machine.python} on {machine.loop}")
    line(f"{result.nodes} nodes and a router on this machine; {rounds_text(result.rounds)}")
    names = [each.model for each in result.models]
    heading("Measured")
    columns = [_column(each) for each in result.models]
    labels = [label for label, _ in columns[0]]
    table(["", *names], [[label, *(column[n][1] for column in columns)] for n, label in enumerate(labels)])
    show_goals(result.goals, f"Goals ({names[0]})")


def _column(model: ModelResult) -> list[tuple[str, str]]:
    made = [
        ("model", f"{model.layers} layers, {model.experts} experts, top {model.top_k}, {model.hidden}x{model.ffn}"),
        ("tokens/s in process", spread_text(model.local_tokens_per_second)),
        ("tokens/s distributed", spread_text(model.distributed_tokens_per_second)),
        ("distributed / in process", spread_text(model.ratio, digits=3)),
        (f"{model.streams} streams, tokens/s in process", spread_text(model.local_streams_tokens_per_second)),
        (f"{model.streams} streams, tokens/s distributed", spread_text(model.distributed_streams_tokens_per_second)),
        ("distributed / in process", spread_text(model.streams_ratio, digits=3)),
        (f"{model.streams} streams / one", spread_text(model.streams_gain, digits=1)),
        ("layer call, p50/p95/p99 us", _quantiles(model.layer_call_us)),
        ("  compute us", spread_text(model.compute_us)),
        ("  communication us", spread_text(model.communication_us)),
        ("plain requests us", spread_text(model.plain_us)),
        ("gathered requests us", spread_text(model.gathered_us)),
        ("communication / plain", spread_text(model.communication_ratio, digits=2)),
        ("gathered / plain", spread_text(model.gathered_ratio, digits=2)),
        ("4 nodes, 8 KB: plain requests us", spread_text(model.four_plain_us)),
        ("4 nodes, 8 KB: our bus us", spread_text(model.four_own_us)),
        ("our bus / plain", spread_text(model.four_ratio, digits=2)),
        ("activations/s, one row", spread_text(model.activations_per_second)),
    ]
    for batch in model.batches:
        made += [
            (f"{batch.rows} rows a layer, p50/p95/p99 us", _quantiles(batch.layer_call_us)),
            (f"{batch.rows} rows a layer, rows/s", spread_text(batch.rows_per_second)),
        ]
    return made


def _quantiles(quantiles: Quantiles) -> str:
    return f"{quantiles.p50:,} / {quantiles.p95:,} / {quantiles.p99:,}"
