"""All counters of a network in Prometheus' text exposition format, version 0.0.4. Pure: from messages to text.

`sawyer_router_*` is a router's own; `sawyer_node_*` and `sawyer_expert_*` is what routers measured of others;
`sawyer_serving_*` is what nodes say of themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from sawyer.schemas.messages import RouterReply
from sawyer.schemas.metrics import (
    LATENCY_BOUNDS_US,
    AskedLayer,
    AskedNode,
    Latency,
    Metrics,
    NodeMetrics,
    RouterMetrics,
)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
Kind = Literal["counter", "gauge", "histogram"]


@dataclass
class _Page:
    """Families in the order they came; all samples of one stand together, as the format wants it."""

    families: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: Kind, name: str, about: str, labels: Mapping[str, str], value: float) -> None:
        self._family(kind, name, about).append(f"{name}{_labels(labels)} {_number(value)}")

    def histogram(self, name: str, about: str, labels: Mapping[str, str], latency: Latency) -> None:
        lines, total = self._family("histogram", name, about), 0
        bounds = [_number(bound / 1e6) for bound in LATENCY_BOUNDS_US] + ["+Inf"]
        for bound, count in zip(bounds, latency.counts, strict=True):
            total += count
            lines.append(f"{name}_bucket{_labels({**labels, 'le': bound})} {total}")
        lines.append(f"{name}_sum{_labels(labels)} {_number(latency.sum_us / 1e6)}")
        lines.append(f"{name}_count{_labels(labels)} {total}")

    def _family(self, kind: Kind, name: str, about: str) -> list[str]:
        return self.families.setdefault(name, [f"# HELP {name} {about}", f"# TYPE {name} {kind}"])


def exposition(routers: Sequence[RouterReply], told: Sequence[Metrics]) -> str:
    """The page, ending in a line feed; empty if nobody told anything."""
    page = _Page()
    for each in sorted(routers, key=lambda each: (each.router, each.model)):
        _router(page, each)
    for router in sorted(routers_of(told), key=lambda each: (each.router, each.model)):
        _asked(page, router)
    for node in sorted(nodes_of(told), key=lambda each: each.node):
        _serving(page, node)
    return "".join(f"{line}\n" for lines in page.families.values() for line in lines)


def routers_of(told: Sequence[Metrics]) -> list[RouterMetrics]:
    """What routers count."""
    return [each.m for each in told if isinstance(each.m, RouterMetrics)]


def nodes_of(told: Sequence[Metrics]) -> list[NodeMetrics]:
    """What nodes count of themselves."""
    return [each.m for each in told if isinstance(each.m, NodeMetrics)]


def _router(page: _Page, router: RouterReply) -> None:
    labels = {"router": router.router, "model": router.model}
    for outcome in ("completed", "failed", "refused"):
        page.add("counter", "sawyer_router_requests_total", "Requests by how they ended.",
                 {**labels, "outcome": outcome}, getattr(router, outcome))  # fmt: skip
    page.add("counter", "sawyer_router_output_tokens_total", "Tokens sampled.", labels, router.output_tokens)
    gauges = {
        "running": "Requests that are read or written now.",
        "waiting": "Requests that wait.",
        "context_bytes": "Memory that contexts take now.",
        "context_limit_bytes": "Memory that contexts may take.",
    }
    for name, about in gauges.items():
        page.add("gauge", f"sawyer_router_{name}", about, labels, getattr(router, name))
    page.add("gauge", "sawyer_router_experts_missing", "Experts that no node serves now.", labels, router.missing)


def _asked(page: _Page, router: RouterMetrics) -> None:
    labels = {"router": router.router, "model": router.model}
    page.add("counter", "sawyer_router_passes_total", "Passes through the model.", labels, router.passes)
    page.add("gauge", "sawyer_router_steps_waiting", "Tokens that wait for a pass.", labels, router.steps_waiting)
    page.add("counter", "sawyer_router_late_answers_total", "Answers after their layer had ended.", labels,
             router.late_answers)  # fmt: skip
    for node in router.nodes:
        _asked_node(page, {**labels, "node": node.node}, node)
    for layer in router.layers:
        _asked_layer(page, labels, layer)


def _asked_node(page: _Page, labels: Mapping[str, str], node: AskedNode) -> None:
    for name, about, count in (
        ("messages", "Messages sent to a node.", node.messages),
        ("rows", "Rows that a node answered and that were used.", node.rows),
        ("sent_bytes", "Bytes sent to a node.", node.bytes_out),
        ("received_bytes", "Bytes of a node's answers.", node.bytes_in),
        ("hedges", "Messages sent to a node because another was slow.", node.hedges),
        ("takeovers", "Work lost or late at a node that another answered.", node.takeovers),
    ):
        page.add("counter", f"sawyer_node_{name}_total", about, labels, count)
    for reason, count in node.errors.items():
        page.add("counter", "sawyer_node_errors_total", "Messages a node did not answer, or answered wrong.",
                 {**labels, "reason": reason}, count)  # fmt: skip
    page.histogram("sawyer_node_answer_seconds", "From send to a good answer.", labels, node.latency)


def _asked_layer(page: _Page, labels: Mapping[str, str], layer: AskedLayer) -> None:
    """Experts that nobody was asked for have no lines: there may be tens of thousands."""
    for expert, rows, messages, sum_us, takeovers in zip(
        range(len(layer.rows)), layer.rows, layer.messages, layer.sum_us, layer.takeovers, strict=True
    ):
        if not (messages or takeovers):
            continue
        of = {**labels, "layer": str(layer.layer), "expert": str(expert)}
        page.add("counter", "sawyer_expert_rows_total", "Rows through an expert.", of, rows)
        page.add("counter", "sawyer_expert_messages_total", "Answers that held an expert's rows.", of, messages)
        page.add("counter", "sawyer_expert_answer_seconds_total", "How long these answers took.", of, sum_us / 1e6)
        page.add("counter", "sawyer_expert_takeovers_total", "Of its work, what another node answered.", of, takeovers)


def _serving(page: _Page, node: NodeMetrics) -> None:
    labels = {"node": node.node, "model": node.model}
    page.add("gauge", "sawyer_serving_queue", "Activation requests that wait, as the node says.", labels, node.queue)
    for name, about, count in (
        ("answers", "Activation requests answered.", node.answers),
        ("rows", "Rows answered.", node.rows),
        ("runs", "Runs of ONNX Runtime.", node.runs),
        ("joined_runs", "Runs with rows of several requests.", node.joined_runs),
        ("received_bytes", "Bytes of activation requests.", node.bytes_in),
        ("sent_bytes", "Bytes of answers.", node.bytes_out),
    ):
        page.add("counter", f"sawyer_serving_{name}_total", about, labels, count)
    page.add("counter", "sawyer_serving_compute_seconds_total", "Time in experts.", labels, node.compute_us / 1e6)
    for code, count in node.refusals.items():
        page.add("counter", "sawyer_serving_refusals_total", "Refusals by error.", {**labels, "code": code}, count)
    page.histogram("sawyer_serving_seconds", "From arrival to reply, as the node says.", labels, node.latency)


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6f}".rstrip("0").rstrip(".")
