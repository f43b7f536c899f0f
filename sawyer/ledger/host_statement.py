"""What one host was credited for, receipt by receipt. Reads entries that search.py found; verifies none. Credits are
weights: what they are paid is decided at a settlement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

from sawyer.economy.periods import day_of
from sawyer.ledger.search import about_host, matching, read
from sawyer.ledger.source import Source
from sawyer.ledger.statement import Period
from sawyer.projections.fold import Entry
from sawyer.schemas.events import InferenceCompleted, NodeRegistered


@dataclass(frozen=True, slots=True)
class HostLine:
    """One receipt that the host was credited for. `work` counts `sla_milli` thousandths: by the latency that the router
    measured and the one that the host promised."""

    seq: int
    leaf: str
    ts_ms: int
    request: str
    model: str
    node: str
    rows: int
    work: int
    sla_milli: int
    measured_us: int
    promised_us: int
    counter: int


@dataclass(slots=True)
class HostSum:
    """Credits of one day, model or node, or of all. `weight_milli` is work x sla_milli. Sums may pass 2^53."""

    name: str
    receipts: int = 0
    rows: int = 0
    work: int = 0
    weight_milli: int = 0

    def add(self, line: HostLine) -> None:
        """Count one credited receipt."""
        self.receipts += 1
        self.rows += line.rows
        self.work += line.work
        self.weight_milli += line.work * line.sla_milli


@dataclass(slots=True)
class HostStatement:
    """Every receipt that one host was credited for in a period. `unreceipted_rows`: its nodes' rows that were used but
    came without a valid receipt, and earn nothing."""

    host: str
    network: str
    total: HostSum = field(default_factory=lambda: HostSum("all"))
    unreceipted_rows: int = 0
    lines: list[HostLine] = field(default_factory=list)
    days: list[HostSum] = field(default_factory=list)
    models: list[HostSum] = field(default_factory=list)
    nodes: list[HostSum] = field(default_factory=list)


def host_statement(source: Source, host: str, period: Period) -> HostStatement | None:
    """None if no node of this host was ever registered. Raises BookCorrupt for an entry that cannot be read."""
    nodes = _nodes(source, host)
    if not nodes:
        return None
    made = HostStatement(host, next(iter(nodes.values())))
    with closing(matching(source, about_host(host, nodes, "inference.completed"))) as rows:
        for row in rows:
            entry = read(row, source)
            if entry.ts_ms >= period.end_ms:
                break
            if entry.ts_ms >= period.start_ms and isinstance(entry.body, InferenceCompleted):
                made.lines += _lines(entry, entry.body, host)
                made.unreceipted_rows += sum(part.rows for part in entry.body.unreceipted if part.node in nodes)
    _sum_up(made)
    return made


def _nodes(source: Source, host: str) -> dict[str, str]:
    """Every node that this host ever registered, and the network it is of."""
    nodes: dict[str, str] = {}
    with closing(matching(source, about_host(host, kind="node.registered"))) as rows:
        for row in rows:
            entry = read(row, source)
            if isinstance(entry.body, NodeRegistered) and entry.body.host == host:
                nodes[entry.body.node] = entry.log
    return nodes


def _lines(entry: Entry, body: InferenceCompleted, host: str) -> Iterator[HostLine]:
    order = body.request.body
    counters = {receipt.body.node: receipt.body.counter for receipt in body.receipts}
    for credit in entry.decided.credits or ():
        if credit.host == host:
            yield HostLine(
                seq=entry.seq,
                leaf=entry.leaf,
                ts_ms=entry.ts_ms,
                request=order.request,
                model=order.model,
                node=credit.node,
                rows=credit.rows,
                work=credit.work,
                sla_milli=credit.sla_milli,
                measured_us=credit.measured_us,
                promised_us=credit.promised_us,
                counter=counters.get(credit.node, 0),
            )


def _sum_up(made: HostStatement) -> None:
    days: dict[str, HostSum] = {}
    models: dict[str, HostSum] = {}
    nodes: dict[str, HostSum] = {}
    for line in made.lines:
        made.total.add(line)
        for sums, name in ((days, day_of(line.ts_ms)), (models, line.model), (nodes, line.node)):
            sums.setdefault(name, HostSum(name)).add(line)
    made.days, made.models, made.nodes = ([sums[name] for name in sorted(sums)] for sums in (days, models, nodes))
