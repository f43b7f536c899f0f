"""What a network does right now, as sections of tables: two looks at its counters, and what lies between. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from sawyer.cli.metrics_text import routers_of
from sawyer.cli.status_view import Section, merged_nodes, node_state, tokens_per_second
from sawyer.schemas.histogram import merged, quantile_us
from sawyer.schemas.messages import RouterReply, SeenNode
from sawyer.schemas.metrics import AskedNode, Latency, Metrics

_NEVER: Final = (0, 0, 0, 0)
HOTTEST: Final = 10
"""Experts that are shown."""


@dataclass(frozen=True)
class Look:
    """What routers and nodes said at one moment, in seconds of a clock that only goes forward."""

    at_s: float
    routers: tuple[RouterReply, ...] = ()
    told: tuple[Metrics, ...] = ()


@dataclass(frozen=True)
class NodeLine:
    """One node between two looks; latencies since the router started if nothing was answered between."""

    node: str
    state: str
    queue: int
    p50_us: int
    p99_us: int
    rows_per_second: float
    hedges: int
    takeovers: int
    errors: int


@dataclass(frozen=True)
class ExpertLine:
    """One expert of one model: rows between two looks, or since the start if none; mean time of an answer."""

    model: str
    layer: int
    expert: int
    rows: int
    mean_us: int
    takeovers: int


def node_lines(before: Look, now: Look) -> list[NodeLine]:
    """Every node that a router sees, by name."""
    old, new = _asked(before), _asked(now)
    seconds = max(1e-9, now.at_s - before.at_s)
    return [
        _node_line(seen, old.get(seen.node, []), new.get(seen.node, []), seconds) for seen in merged_nodes(now.routers)
    ]


def _node_line(seen: SeenNode, old: Sequence[AskedNode], new: Sequence[AskedNode], seconds: float) -> NodeLine:
    rows = sum(each.rows for each in new) - sum(each.rows for each in old)
    latency = _between([each.latency for each in old], [each.latency for each in new])
    return NodeLine(
        node=seen.node,
        state=node_state(seen),
        queue=seen.vitals.queue,
        p50_us=quantile_us(latency, 0.5) if latency else 0,
        p99_us=quantile_us(latency, 0.99) if latency else 0,
        rows_per_second=max(0, rows) / seconds,
        hedges=sum(each.hedges for each in new),
        takeovers=sum(each.takeovers for each in new),
        errors=sum(sum(each.errors.values()) for each in new),
    )


def expert_lines(before: Look, now: Look) -> list[ExpertLine]:
    """The HOTTEST experts by rows, the hottest first."""
    old, new = _experts(before), _experts(now)
    moved = {
        of: tuple(b - a for a, b in zip(old.get(of, (0, 0, 0, 0)), counts, strict=True)) for of, counts in new.items()
    }
    if any(counts[0] > 0 for counts in moved.values()) and all(counts[0] >= 0 for counts in moved.values()):
        new = {of: (counts[0], counts[1], counts[2], new[of][3]) for of, counts in moved.items()}
    ordered = sorted((item for item in new.items() if item[1][0]), key=lambda item: (-item[1][0], item[0]))
    return [
        ExpertLine(model, layer, expert, rows, sum_us // max(1, messages), takeovers)
        for (model, layer, expert), (rows, messages, sum_us, takeovers) in ordered[:HOTTEST]
    ]


def sections(before: Look, now: Look) -> list[Section]:
    """The page."""
    return [_routers(now), _nodes(node_lines(before, now)), _hottest(expert_lines(before, now))]


def as_document(before: Look, now: Look) -> dict[str, object]:
    """The same as one JSON object."""
    return {
        "routers": [
            {**each.model_dump(mode="json", exclude={"nodes", "generation"}),
             "tokens_per_second": round(tokens_per_second(each), 2)}
            for each in now.routers
        ],
        "nodes": [
            {**vars(each), "rows_per_second": round(each.rows_per_second, 1)} for each in node_lines(before, now)
        ],
        "experts": [vars(each) for each in expert_lines(before, now)],
    }  # fmt: skip


def _routers(now: Look) -> Section:
    columns = ("router", "model", "running", "waiting", "tokens/s", "tokens", "failed", "contexts MB")
    rows = tuple(
        (each.router, each.model, each.running, each.waiting, f"{tokens_per_second(each):.1f}",
         f"{each.output_tokens:,}", each.failed, f"{each.context_bytes / 1e6:,.0f}")
        for each in now.routers
    )  # fmt: skip
    return Section("Routers", (), columns, rows, columns[2:])


def _nodes(lines: Iterable[NodeLine]) -> Section:
    columns = ("node", "p50 ms", "p99 ms", "rows/s", "waiting", "hedges", "takeovers", "errors", "state")
    rows = tuple(
        (each.node, f"{each.p50_us / 1000:.2f}", f"{each.p99_us / 1000:.2f}", f"{each.rows_per_second:,.0f}",
         each.queue, each.hedges, each.takeovers, each.errors, each.state)
        for each in lines
    )  # fmt: skip
    return Section("Nodes", (), columns, rows, columns[1:8])


def _hottest(lines: Iterable[ExpertLine]) -> Section:
    columns = ("model", "layer", "expert", "rows", "mean ms", "takeovers")
    rows = tuple(
        (each.model, each.layer, each.expert, f"{each.rows:,}", f"{each.mean_us / 1000:.2f}", each.takeovers)
        for each in lines
    )
    return Section("Hottest experts", (), columns, rows, columns[1:])


def _asked(look: Look) -> dict[str, list[AskedNode]]:
    found: dict[str, list[AskedNode]] = defaultdict(list)
    for router in routers_of(look.told):
        for node in router.nodes:
            found[node.node].append(node)
    return found


def _between(old: Sequence[Latency], new: Sequence[Latency]) -> Latency | None:
    if not new:
        return None
    now = merged(new)
    if not old:
        return now
    before = merged(old)
    counts = tuple(b - a for a, b in zip(before.counts, now.counts, strict=True))
    if min(counts) < 0 or not any(counts):  # a router was started anew, or nothing was answered
        return now
    return Latency(counts=counts, sum_us=max(0, now.sum_us - before.sum_us))


def _experts(look: Look) -> dict[tuple[str, int, int], tuple[int, int, int, int]]:
    found: dict[tuple[str, int, int], tuple[int, int, int, int]] = {}
    for router in routers_of(look.told):
        for layer in router.layers:
            told = zip(layer.rows, layer.messages, layer.sum_us, layer.takeovers, strict=True)
            for expert, (rows, messages, sum_us, takeovers) in enumerate(told):
                of = (router.model, layer.layer, expert)
                a, b, c, d = found.get(of, (0, 0, 0, 0))
                found[of] = (a + rows, b + messages, c + sum_us, d + takeovers)
    return found
