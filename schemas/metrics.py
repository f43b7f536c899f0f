"""What routers and nodes count, on its way to whoever asks: `sawyer metrics` and `sawyer top`. Nobody signs it, and
nothing is decided or paid by it. What heartbeats and RouterReply say already is not said again here.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from sawyer.schemas.base import Count, Sha256, Slug, Strict, TimeMs

LATENCY_BOUNDS_US: Final = tuple(64 << power for power in range(18))
"""Upper ends (inclusive) of the buckets of every latency histogram: 64 us to 8.4 s, each twice the one before. What
took longer is in one more bucket. They are the same everywhere, so that histograms can be added."""


class Latency(Strict):
    """A histogram: `counts[i]` took at most LATENCY_BOUNDS_US[i] and more than the bound before; the last, longer."""

    counts: Annotated[
        tuple[Count, ...], Field(min_length=len(LATENCY_BOUNDS_US) + 1, max_length=len(LATENCY_BOUNDS_US) + 1)
    ]
    sum_us: Count


class AskedNode(Strict):
    """What a router asked of one node, and what came of it. `hedges`: messages sent to it because another was slow.
    `takeovers`: units of work that were lost or late there, and that another node answered. `errors` by reason.
    `latency`: of good answers, from send to arrival."""

    node: Slug
    messages: Count
    rows: Count
    bytes_out: Count
    bytes_in: Count
    hedges: Count
    takeovers: Count
    errors: dict[Slug, Count]
    latency: Latency


class AskedLayer(Strict):
    """The experts of one layer: each tuple has one number an expert, in the order of their numbers. `rows` that were
    answered, in so many `messages`, which took `sum_us` together; `takeovers` as in AskedNode."""

    layer: Count
    rows: tuple[Count, ...]
    messages: tuple[Count, ...]
    sum_us: tuple[Count, ...]
    takeovers: tuple[Count, ...]


class RouterMetrics(Strict):
    """Of one router since `started_ms`. `passes` through the model, each of some rows; `steps_waiting`: tokens that
    wait for the next one."""

    of: Literal["router"] = "router"
    router: Slug
    model: Slug
    manifest: Sha256
    started_ms: TimeMs
    passes: Count
    steps_waiting: Count
    late_answers: Count
    nodes: tuple[AskedNode, ...]
    layers: tuple[AskedLayer, ...]


class NodeMetrics(Strict):
    """Of one node since `started_ms`, as it counts itself: `joined_runs` held rows of several requests, `refusals` are
    by error code. `latency`: from arrival to reply."""

    of: Literal["node"] = "node"
    node: Slug
    model: Slug
    started_ms: TimeMs
    queue: Count
    answers: Count
    rows: Count
    runs: Count
    joined_runs: Count
    bytes_in: Count
    bytes_out: Count
    compute_us: Count
    refusals: dict[Slug, Count]
    latency: Latency


class Metrics(Strict):
    """Router or node -> whoever asks."""

    m: Annotated[RouterMetrics | NodeMetrics, Field(discriminator="of")]


MESSAGES: Final[tuple[type[Strict], ...]] = (Metrics,)
