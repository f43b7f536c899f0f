"""What `sawyer demo` prints: the text as it comes, what happened, and the auditor's verdict."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from sawyer.cli.answer import TextOut, tokens_per_second
from sawyer.cli.ledger_report import show as show_report
from sawyer.cli.output import emit_json, heading, line, say, table
from sawyer.client.stream import Generation
from sawyer.home import Home
from sawyer.ledger.replay import ReplayReport, replay_home
from sawyer.schemas.messages import Trace
from sawyer.schemas.models import Manifest


@dataclass(frozen=True)
class DemoResult:
    """What the demo saw as a client."""

    prompt: str
    answer: Generation
    balance_before: int
    balance_after: int
    killed: list[str]

    @property
    def tokens_per_second(self) -> float:
        return tokens_per_second(self.answer.usage)


class TextPrinter:
    """Prints the prompt, then each piece as it comes. With -v, layers are printed instead and the text at the end."""

    def __init__(self, prompt: str, *, quiet: bool, verbose: bool) -> None:
        self._quiet = quiet
        self._verbose = verbose
        self._prompt = self._text = prompt
        self._out = TextOut()
        self._begun = False

    def piece(self, text: str) -> None:
        """The next piece of text."""
        self._text += text
        if self._quiet or self._verbose:
            return
        if not self._begun:  # a prompt that is refused is not echoed
            self._out.piece(self._prompt)
            self._begun = True
        self._out.piece(text)

    def end(self) -> None:
        """No more will come, for whatever reason."""
        if self._verbose and not self._quiet:
            line()
            line(self._text)
        elif self._begun:
            self._out.end(newline=True)


def announce(nodes: int, home: Home, manifest: Manifest, *, quiet: bool) -> None:
    """One line about what starts now."""
    if quiet:
        return
    layout = manifest.layout
    shape = f"{layout.layers} layers of {layout.experts} experts, top {layout.top_k}"
    say(f"{manifest.model} ({manifest.format}): {shape}, on {nodes} node{'s' if nodes > 1 else ''}; home {home.path}\n")


def show_layer(trace: Trace) -> None:
    """One line: token step, layer, and for each node its experts, rows, and microseconds (of which computing)."""
    calls = "   ".join(
        f"{call.node} experts {','.join(map(str, call.experts))} rows {call.rows} "
        f"{call.round_trip_us} us ({call.compute_us})"
        for call in trace.calls
    )
    line(f"step {trace.step:3d} layer {trace.layer:2d}   {calls}")


def replay_book(home: Home) -> ReplayReport:
    """Prove the book of this home against its pinned key, as `sawyer ledger replay --home` does."""
    return replay_home(home)


def _as_json(result: DemoResult, verdict: ReplayReport, wall_s: float) -> dict[str, object]:
    usage = result.answer.usage
    return {
        "text": result.answer.text,
        "tokens": usage.output_tokens,
        "tokens_per_second": round(result.tokens_per_second, 2),
        "nodes": [{"id": each.node, "rows": each.rows, "receipted": each.receipted} for each in usage.nodes],
        "killed": result.killed,
        "takeovers": [{"lost": each.lost, "by": each.by, "reason": each.reason} for each in usage.takeovers],
        "balance_before": result.balance_before,
        "balance_after": result.balance_after,
        "entry": usage.entry,
        "entries": verdict.entries,
        "replay": {"ok": verdict.ok, "entries": verdict.entries, "signatures": verdict.signatures},
        "wall_seconds": round(wall_s, 2),
    }


def show(result: DemoResult, verdict: ReplayReport, as_json: bool, home: Home, wall_s: float) -> None:
    """The summary, as JSON or for people."""
    if as_json:
        emit_json(_as_json(result, verdict, wall_s))
        return
    usage = result.answer.usage
    heading("What happened")
    _pairs(
        ("tokens", f"{usage.input_tokens} in + {usage.output_tokens} out = {usage.billed_tokens} billed"),
        ("speed", f"{result.tokens_per_second:.1f} tokens/s (prompt {usage.prefill_us / 1000:.0f} ms)"),
        ("balance", f"{result.balance_before:,} -> {result.balance_after:,} tokens"),
        ("entry", f"{usage.entry}: the signed debit, with the client's order and the nodes' receipts"),
    )
    for taken in usage.takeovers:
        when = f"from step {taken.step}, layer {taken.layer}"
        line(f"{'takeover':<10} {taken.by} answered for {taken.lost} {when} ({taken.reason})")
    heading("Who computed")
    table(
        ("node", "host", "rows", "receipt"),
        [
            (node.node + (" (killed)" if node.node in result.killed else ""), node.host, f"{node.rows:,}",
             "signed" if node.receipted else "none: not paid")
            for node in usage.nodes
        ],
        numeric=("rows",),
    )  # fmt: skip
    heading("What an auditor finds")
    show_report(verdict)
    line(
        f"\nLook again: {_this_command()} ledger replay --home {shlex.quote(str(home.path))}   ({wall_s:.1f} s in all)"
    )


def _this_command() -> str:
    """How this person can run sawyer: by name if it is on the path, else as they did just now."""
    if shutil.which("sawyer"):
        return "sawyer"
    called = Path(sys.argv[0])
    if called.name != "sawyer":
        return "python -m sawyer"
    return str(called.relative_to(Path.cwd())) if called.is_relative_to(Path.cwd()) else str(called)


def _pairs(*pairs: tuple[str, str]) -> None:
    for name, value in pairs:
        line(f"{name:<10} {value}")
