"""Where the time of one request went, on its way to whoever knows its id. Times and counts only."""

from __future__ import annotations

from typing import Final, Literal

from sawyer.schemas.base import Count, Hex32, Slug, Strict, TimeMs


class TraceQuery(Strict):
    """The id is random: who asked for the text knows it, and so do the parts that served it."""

    request: Hex32


class TracedLayer(Strict):
    """One layer over all `passes` that this request took part in: `attend_us` for attention and gate at the router,
    `experts_us` from there until the last expert's block was added. `slowest` took `slowest_us`, the longest of all its
    answers here."""

    layer: Count
    passes: Count
    attend_us: Count
    experts_us: Count
    rows: Count
    messages: Count
    hedges: Count
    takeovers: Count
    slowest: Slug | None = None
    slowest_us: Count = 0


class TracedNode(Strict):
    """One node over the whole request: `round_trip_us` of all its answers together, and how much of that it says it
    computed."""

    node: Slug
    messages: Count
    rows: Count
    round_trip_us: Count
    compute_us: Count
    slowest_us: Count


class RequestTrace(Strict):
    """`queue_us` in the router's line; `check_us` its signature and its text; `room_us` waiting for room for its
    context; `reserve_us` the hold in the book; `prefill_us` to the first token, `decode_us` from there to the last; of
    these two `head_us` for logits and `sample_us` for choosing tokens; `receipts_us` and `posting_us` for the bill.
    What many requests waited for together is in the times of each."""

    request: Hex32
    router: Slug
    model: Slug
    started_ms: TimeMs
    state: Literal["running", "completed", "failed", "cancelled"]
    input_tokens: Count
    output_tokens: Count
    queue_us: Count
    check_us: Count
    room_us: Count
    reserve_us: Count
    prefill_us: Count
    decode_us: Count
    sample_us: Count
    head_us: Count
    receipts_us: Count
    posting_us: Count
    layers: tuple[TracedLayer, ...]
    nodes: tuple[TracedNode, ...]


MESSAGES: Final[tuple[type[Strict], ...]] = (TraceQuery, RequestTrace)
