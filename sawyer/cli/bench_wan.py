"""`sawyer bench wan`: its options, and how a result looks. What it does is in bench_wan_run.py."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sawyer.cli.bench_text import progress
from sawyer.cli.options import JsonOption
from sawyer.cli.output import emit_json, heading, line, table
from sawyer.errors import UsageError
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.bench.wan_result import WanResult

RTT_MS: Final = 30.0
MAX_RTT_MS: Final = 2000.0
STREAMS: Final = "1,8,32"
QUICK_STREAMS: Final = "1,4"
MAX_STREAMS: Final = 64
MAX_MBIT: Final = 100_000.0
MAX_LOSS: Final = 30.0


def bench_wan(
    rtt_ms: Annotated[
        float, typer.Option("--rtt-ms", min=0.1, max=MAX_RTT_MS, help="From the router to a node and back.")
    ] = RTT_MS,
    streams: Annotated[
        str | None,
        typer.Option("--streams", metavar="N,N", help="How many texts at once, one burst after another.",
                     show_default=f"{STREAMS}; quick: {QUICK_STREAMS}"),
    ] = None,
    mbit: Annotated[
        float, typer.Option("--mbit", min=0, max=MAX_MBIT, help="Megabits a second of a connection, each way; 0: any.")
    ] = 0.0,
    loss: Annotated[
        float,
        typer.Option("--loss", min=0, max=MAX_LOSS, metavar="PERCENT", help="Of packets lost each way; needs root."),
    ] = 0.0,
    quick: Annotated[bool, typer.Option("--quick", help="A small model and short texts: seconds.")] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Measure tokens a second with nodes that are a round trip away, beside the most that the distance allows."""
    from sawyer.cli.bench_wan_run import WanPlan, run_wan

    chosen = parse_streams(streams or (QUICK_STREAMS if quick else STREAMS))
    plan = WanPlan.of(rtt_ms, mbit, chosen, loss_percent=loss, quick=quick)
    with progress() as notice:
        settings = Settings.load()
        result = run_wan(plan, settings["nats_server"], settings["loop"], notice)
    if as_json:
        emit_json(asdict(result))
    else:
        _show(result)


def parse_streams(text: str) -> tuple[int, ...]:
    """`1,8,32` -> (1, 8, 32). Raises UsageError."""
    made = []
    for each in text.split(","):
        if not (each.strip().isdecimal() and 1 <= int(each) <= MAX_STREAMS):
            raise UsageError(
                f"{each.strip()!r} is not a number of streams",
                hint=f"Write numbers from 1 to {MAX_STREAMS} with commas between, such as {STREAMS}.",
            )
        made.append(int(each))
    return tuple(made)


def _show(result: WanResult) -> None:
    machine = result.machine
    line(f"{machine.cpu}, {machine.cores} cores, load {machine.load:g}; {machine.python} on {machine.loop}")
    rate = f", {result.mbit:g} Mbit/s" if result.mbit else ""
    rate += f", {result.loss_percent:g} % of packets lost each way" if result.loss_percent else ""
    line(
        f"{result.model}: {result.moe_layers} layers of {result.experts} experts, top {result.top_k}; {result.nodes} "
        f"nodes, {result.rtt_ms:g} ms to a node and back (an empty message: {result.measured_rtt_ms:g} ms){rate}"
    )
    heading("Measured")
    columns = ["streams", "tokens", "seconds", "tokens/s", "a stream", "of the bound"]
    rows = [
        [each.streams, each.tokens, f"{each.seconds:,.2f}", f"{each.tokens_per_second:,.2f}", f"{each.a_stream:,.2f}",
         f"{100 * each.of_bound:.0f} %"]
        for each in result.streams
    ]  # fmt: skip
    table(columns, rows, numeric=columns)
    heading("One stream, with guesses computed ahead")
    columns = ["text", "tokens", "tokens/s without", "with", "ratio", "guessed", "right"]
    rows = [
        [each.text, each.tokens, f"{each.without_tokens_per_second:,.2f}", f"{each.with_tokens_per_second:,.2f}",
         f"{each.ratio:.2f}", each.drafted, each.accepted]
        for each in result.speculation
    ]  # fmt: skip
    table(columns, rows, numeric=columns[1:])
    line(
        f"\nThe bound: {result.bound_tokens_per_second:,.2f} tokens/s a stream, "
        f"1 / ({result.moe_layers} layers x {result.rtt_ms:g} ms)."
    )
