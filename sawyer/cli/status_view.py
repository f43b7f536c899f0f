"""What a network looks like, as sections of lines and tables. Pure: from a NetworkStatus to text; printing is
output.py, drawing it again and again is watching.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

from sawyer.cli.supervisor import PartStatus

if TYPE_CHECKING:
    from sawyer.schemas.messages import NetworkReply, RouterReply, SeenNode
    from sawyer.schemas.metrics import AskedNode, RouterMetrics

SILENT_MS: Final = 3500
"""A node that has said nothing for this long is called silent: it beats once a second."""


@dataclass(frozen=True)
class NetworkStatus:
    """What was seen at one moment. `counted`: by routers since they started. `problems` are sentences: what did not
    answer, and what is missing."""

    url: str
    home: str
    holder: int | None = None
    parts: tuple[PartStatus, ...] = ()
    network: NetworkReply | None = None
    routers: tuple[RouterReply, ...] = ()
    counted: tuple[RouterMetrics, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """Lines under a title, then a table."""

    title: str
    lines: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[object, ...], ...] = ()
    numeric: tuple[str, ...] = field(default=())


def sections(status: NetworkStatus) -> list[Section]:
    """The whole network on one page."""
    made = [Section("", tuple(_headlines(status)))]
    if status.parts:
        made.append(_processes(status.parts))
    if status.routers:
        made += [_routers(status.routers), _nodes(status.routers)]
    if status.problems:
        made.append(Section("Not well", status.problems))
    return made


def node_sections(status: NetworkStatus, node: str) -> list[Section]:
    """Everything that routers know of one node; nothing if none knows it."""
    made = []
    asked = {(each.router, each.model, one.node): one for each in status.counted for one in each.nodes}
    for router in status.routers:
        for seen in router.nodes:
            if seen.node == node:
                facts = [*_node_facts(seen), *_asked_facts(asked.get((router.router, router.model, node)))]
                pairs = tuple(f"{name:<22} {value}" for name, value in facts)
                made.append(Section(f"{node}, as {router.router} sees it ({router.model})", pairs))
    return made


def as_document(status: NetworkStatus) -> dict[str, object]:
    """The status as one JSON object."""
    network = status.network
    return {
        "ok": not status.problems,
        "url": status.url,
        "home": status.home,
        "pid": status.holder,
        "network": network.network if network else None,
        "entries": network.size if network else None,
        "models": [each.model for each in network.models] if network else [],
        "parts": [asdict(each) for each in status.parts],
        "routers": [
            {**each.model_dump(mode="json"), "tokens_per_second": round(tokens_per_second(each), 2)}
            for each in status.routers
        ],
        "counters": [each.model_dump(mode="json") for each in status.counted],
        "problems": list(status.problems),
    }


def tokens_per_second(router: RouterReply) -> float:
    """Over the last seconds; 0 if nothing was sampled in them."""
    return router.recent_tokens * 1000 / router.recent_ms if router.recent_ms else 0.0


def find_problems(
    parts: Sequence[PartStatus], network: NetworkReply | None, routers: Sequence[RouterReply]
) -> list[str]:
    """What is missing: a part of this home that does not run, one of its nodes that routers do not hear, experts and
    models that nobody serves. Nodes of others may come and go."""
    found = [f"{each.name} is {each.state} ({each.last_end})" for each in parts if each.state != "running"]
    ours = {each.name for each in parts if each.state == "running"}
    seen = [(each, node_state(each)) for each in merged_nodes(routers) if each.node in ours]
    found += [f"{each.node} is {state}" for each, state in seen if each.gone or each.silent_ms > SILENT_MS]
    for router in routers:
        if router.missing:
            found.append(f"{router.model}: {router.missing} of {router.experts} experts are served by no node")
    served = {router.model for router in routers}
    if network is not None:
        found += [f"no router serves {each.model}" for each in network.models if each.model not in served]
    return found


def _headlines(status: NetworkStatus) -> list[str]:
    network = status.network
    name = f"{network.network} ({network.mode})" if network else "no bookkeeper answers"
    lines = [f"{'network':<9} {name}", f"{'nats':<9} {status.url}", f"{'home':<9} {status.home}"]
    if network:
        lines.append(f"{'book':<9} {network.size} entries, head {_root(network.checkpoint)}")
    if status.routers:
        done = sum(each.completed for each in status.routers)
        failed = sum(each.failed for each in status.routers)
        running = sum(each.running for each in status.routers)
        waiting = sum(each.waiting for each in status.routers)
        rate = sum(tokens_per_second(each) for each in status.routers)
        lines.append(f"{'requests':<9} {done} done, {running} running, {waiting} waiting, {failed} failed")
        lines.append(f"{'speed':<9} {rate:.1f} tokens/s over the last seconds")
    return lines


def _processes(parts: Sequence[PartStatus]) -> Section:
    columns = ("process", "state", "pid", "restarts", "last end")
    rows = tuple((each.name, each.state, each.pid or "-", each.restarts, each.last_end or "-") for each in parts)
    return Section("Processes", (), columns, rows, ("pid", "restarts"))


def _contexts(router: RouterReply) -> str:
    """The memory that running requests may take for the tokens before."""
    return f"{router.context_bytes / 1e6:,.0f} of {router.context_limit_bytes / 1e6:,.0f} MB"


def _routers(routers: Sequence[RouterReply]) -> Section:
    columns = ("router", "model", "experts covered", "requests", "tokens", "tokens/s", "contexts")
    rows = tuple(
        (each.router, each.model, f"{each.experts - each.missing}/{each.experts}", f"{each.completed:,}",
         f"{each.output_tokens:,}", f"{tokens_per_second(each):.1f}", _contexts(each))
        for each in routers
    )  # fmt: skip
    return Section("Routers", (), columns, rows, columns[2:])


def _nodes(routers: Sequence[RouterReply]) -> Section:
    columns = ("node", "host", "runs on", "experts", "rows", "waiting", "p50 ms", "state")
    rows = tuple(_node_row(seen) for seen in merged_nodes(routers))
    return Section("Nodes", (), columns, rows, columns[3:7])


def merged_nodes(routers: Sequence[RouterReply]) -> list[SeenNode]:
    """Each node once, as the router that heard it last sees it."""
    newest: dict[str, SeenNode] = {}
    for router in routers:
        for seen in router.nodes:
            known = newest.get(seen.node)
            if known is None or seen.silent_ms < known.silent_ms:
                newest[seen.node] = seen
    return [newest[name] for name in sorted(newest)]


def _node_row(seen: SeenNode) -> tuple[object, ...]:
    vitals = seen.vitals
    return (
        seen.node, seen.host, _runs_on(vitals.provider), f"{seen.first}+{seen.replica}", f"{vitals.rows:,}",
        vitals.queue, f"{vitals.latency_p50_us / 1000:.2f}", node_state(seen),
    )  # fmt: skip


def node_state(seen: SeenNode) -> str:
    """One word, or two."""
    if seen.gone:
        return "gone"
    if seen.silent_ms > SILENT_MS:
        return f"silent for {seen.silent_ms / 1000:.0f} s"
    if seen.draining:
        return "draining"
    return "avoided" if seen.avoided else "ok"


def _node_facts(seen: SeenNode) -> list[tuple[str, str]]:
    vitals = seen.vitals
    return [
        ("state", node_state(seen)),
        ("host", seen.host),
        ("experts", f"{seen.first} as first choice, {seen.replica} as replica"),
        ("runs on", f"{vitals.device} ({_runs_on(vitals.provider)}, {vitals.threads} threads)"),
        ("memory", f"{vitals.memory_free_mb:,} of {vitals.memory_total_mb:,} MiB free"),
        ("in memory", f"{vitals.loaded} experts; {vitals.loads:,} loaded and {vitals.drops:,} dropped since the start"),
        ("answers", f"{vitals.answers:,} ({vitals.rows:,} rows in {vitals.runs:,} runs), {vitals.refused:,} refused"),
        ("waiting", str(vitals.queue)),
        ("latency", f"p50 {vitals.latency_p50_us / 1000:.2f} ms, p95 {vitals.latency_p95_us / 1000:.2f} ms"),
        ("expected round trip", f"{seen.expected_us / 1000:.2f} ms"),
        ("way to the router", _way(vitals.round_trip_us, vitals.kilobytes_per_second)),
        ("speed", f"{vitals.rows_per_second:,} rows/s while computing"),
        ("last heartbeat", f"{seen.silent_ms / 1000:.1f} s ago"),
        ("version", vitals.version),
    ]


def _asked_facts(asked: AskedNode | None) -> list[tuple[str, str]]:
    """What a router counted of it."""
    if asked is None:
        return []
    errors = ", ".join(f"{count:,} {reason}" for reason, count in asked.errors.items()) or "none"
    return [
        ("asked", f"{asked.messages:,} messages, {asked.rows:,} rows used"),
        ("bytes", f"{asked.bytes_out / 1e6:,.1f} MB there, {asked.bytes_in / 1e6:,.1f} MB back"),
        ("beside slow ones", f"{asked.hedges:,} hedges"),
        ("taken over", f"{asked.takeovers:,} times by others"),
        ("errors", errors),
    ]


def _way(round_trip_us: int, kilobytes_per_second: int) -> str:
    if not round_trip_us:
        return "not measured yet"
    return f"{round_trip_us / 1000:.2f} ms there and back, {kilobytes_per_second / 1000:.1f} MB/s"


def _runs_on(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def _root(checkpoint: str) -> str:
    """The third line of a checkpoint is its root hash."""
    lines = checkpoint.splitlines()
    return lines[2][:12] if len(lines) > 2 else "unknown"
