"""What `sawyer ledger replay` prints: the verdict first, then who has and who earned what. Owns the form only."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sawyer.cli import output
from sawyer.clock import iso
from sawyer.money import format_usd

if TYPE_CHECKING:
    from sawyer.ledger.replay_report import AsOf, HostEarnings, ReplayReport


def show(report: ReplayReport, *, usage: bool = False) -> None:
    """The report for people."""
    _show_verdict(report)
    _show_questionable(report)
    of = report.as_of
    if of.balances:
        output.heading(f"Balances (tokens, as of entry {of.seq}, {iso(of.ts_ms)})")
        names = ("account", "available", "held", "consumed", "expired", "granted")
        output.table(names, [tuple(asdict(row).values()) for row in of.balances], numeric=names[1:])
    if of.hosts:
        output.heading(f"Hosts (provisional: {format_usd(of.pool_uusd)} pool before fees, mode {report.mode})")
        columns = ("host", "nodes", "requests", "rows", "work", "counts", "owed")
        output.table(columns, [_host(each) for each in of.hosts], numeric=columns[2:])
    if of.earned_uusd or of.breakage_uusd:
        output.line(
            f"earned by tokens that were used: {format_usd(of.earned_uusd)}; "
            f"paid for tokens that expired, of which hosts get nothing: {format_usd(of.breakage_uusd)}"
        )
    if usage:
        _show_usage(of)


def document(report: ReplayReport) -> dict[str, Any]:
    """The same facts for programs. Sums that may pass 2^53 are decimal texts."""
    plain = asdict(report)
    of = plain.pop("as_of")
    for row in (*of["hosts"], *of["host_days"]):
        row |= {name: str(row[name]) for name in ("work", "weight_milli") if name in row}
    return {
        "ok": report.ok,
        **plain,
        "as_of": {"seq": of["seq"], "ts_ms": of["ts_ms"]},
        "balances": of["balances"],
        "hosts": of["hosts"],
        "usage": {"models": of["models"], "hosts": of["host_days"]},
        "pool_uusd": of["pool_uusd"],
        "earned_uusd": of["earned_uusd"],
        "breakage_uusd": of["breakage_uusd"],
    }


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
    if report.repeated_signatures:
        count = report.repeated_signatures
        again = "1 signature stands" if count == 1 else f"{count} signatures stand"
        output.line(f"{again} in the book twice, the same bytes: verified once")
    if report.trusted_entries:
        output.line(
            f"entries 1 to {report.trusted_entries}: chained, decided and folded again, and your checkpoint's root; "
            "their signatures were not verified again, that checkpoint stands for them"
        )
    output.line(f"tree size {report.size}, root {report.root}")
    if report.views_seq is not None:
        output.line(f"live views compared, row by row, at entry {report.views_seq}")
    elif report.views_note:
        output.line("no live views compared: " + report.views_note)
    for kind, count in report.unknown_kinds.items():
        output.line(f"skipped {count} entries of kind {kind}, which this version does not know")
    if report.foreign_snapshots:
        output.line(f"{report.foreign_snapshots} snapshots are of another Sawyer's rows: signed, not compared")
    if problem is None and report.as_of.seq < report.size:
        output.line(f"balances are as of entry {report.as_of.seq}; all {report.size} entries were verified")
    if problem is None and not report.anchored:
        output.line("hint: give --key with the network's verifier key")
    if problem is None and not report.operator_anchored:
        output.line("hint: give --operator with the network's operator key")


def _verdict(report: ReplayReport) -> str:
    if not report.anchored:
        return "OK, but self-consistent, not anchored: whoever holds the book could have written it whole"
    if not report.operator_anchored:
        return "OK by the ledger key you trust, but the operator is not anchored: grants, prices and roles are its word"
    return "OK: every entry, signature, decision and balance holds, by the key you trust"


def _show_questionable(report: ReplayReport) -> None:
    if not report.questionable:
        return
    output.heading("In question: signed while the key may have been in other hands (--json lists the entries)")
    columns = ("key", "of", "since", "revoked in", "statements", "first", "last")
    rows = [
        (each.key, each.by or "-", iso(each.since_ms), each.revoked_seq, each.statements, each.first_seq, each.last_seq)
        for each in report.questionable
    ]
    output.table(columns, rows, numeric=columns[3:])


def _show_usage(of: AsOf) -> None:
    output.heading("Usage by model and day (UTC)")
    columns = ("day", "model", "requests", "tokens in", "tokens out", "billed")
    used = sorted(of.models, key=lambda use: (use.day, use.model))
    rows = [(u.day, u.model, u.requests, u.input_tokens, u.output_tokens, u.billed_tokens) for u in used]
    output.table(columns, rows, numeric=columns[2:])
    output.heading("Work by host and day (UTC)")
    done = [(u.day, u.host, u.requests, u.rows, u.work) for u in of.host_days]
    output.table(("day", "host", "requests", "rows", "work"), sorted(done), numeric=("requests", "rows", "work"))


def _host(row: HostEarnings) -> tuple[object, ...]:
    counts = _counts(row.work, row.weight_milli)
    return row.host, " ".join(row.nodes), row.requests, row.rows, row.work, counts, format_usd(row.owed_uusd)


def _counts(work: int, weight_milli: int) -> str:
    """What a host's work counted for on average, by its latencies: `93.4 %`, rounded down."""
    per_mille = weight_milli // work if work else 0
    return f"{per_mille // 10}.{per_mille % 10} %"
