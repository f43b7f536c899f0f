"""What can be said of a model from its layout alone: parameters, sizes, what a token costs on the wire. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from sawyer.errors import UnsupportedModel
from sawyer.ids import RequestId
from sawyer.model.artifacts import expected_files
from sawyer.model.layout import FileShape, expert_shape
from sawyer.schemas.models import Format, ModelLayout
from sawyer.schemas.tensors import (
    MANIFEST_PREFIX_BYTES,
    ActivationReply,
    ActivationRequest,
    Part,
    encode_reply,
    encode_request,
)

FORMATS: Final[tuple[Format, ...]] = ("f32", "f16", "q8", "q4")
"""From the largest to the smallest, those whose sizes follow from a config; that of gguf follows from a file."""
ROUND_TRIPS_MS: Final = (1, 5, 20, 50)
"""From nodes in one city to nodes all over a continent."""


@dataclass(frozen=True)
class FormatSizes:
    """Bytes of the files with trunk and experts in one format: the trunk with the shared experts, one expert of one
    layer, one in each MoE layer, all of them, and everything together."""

    trunk_bytes: int
    expert_bytes: int
    expert_of_all_layers_bytes: int
    experts_bytes: int
    model_bytes: int


@dataclass(frozen=True)
class ModelFacts:
    """Parameters are weights; `active_parameters` work on one token. `trunk_bytes`, `expert_bytes` and `experts_bytes`
    are of the files in the formats that were asked for; `sizes` has each format that fits. A token that is generated
    alone takes `round_trips`, one a MoE layer, and between `wire_bytes_least` (one node serves all of its experts) and
    `wire_bytes_most` (each is on another node) of messages, there and back, rows as float16. `tokens_per_s` is what
    those trips leave possible at a round trip of so many milliseconds, were all computing free: no request that is
    generated token by token is faster."""

    parameters: int
    trunk_parameters: int
    expert_parameters: int
    active_parameters: int
    trunk_bytes: int
    expert_bytes: int
    experts_bytes: int
    round_trips: int
    rows_per_token: int
    wire_bytes_least: int
    wire_bytes_most: int
    sizes: Mapping[Format, FormatSizes]
    tokens_per_s: Mapping[int, float]


def facts_of(layout: ModelLayout, format: Format, trunk_format: Format = "f32", *, tied: bool) -> ModelFacts:
    """Raises UnsupportedModel if no family here computes this layout."""
    trunk = _trunk(layout, format, trunk_format, tied=tied)
    experts, round_trips = len(layout.moe_layers) * layout.experts, len(layout.moe_layers)
    trunk_parameters = sum(shape.parameters for shape in trunk)
    expert_bytes = expert_shape(layout, format).size_bytes
    all_bytes = sum(expert_shape(layout, format, layer).size_bytes for layer in layout.moe_layers) * layout.experts
    return ModelFacts(
        parameters=trunk_parameters + experts * layout.expert_parameters,
        trunk_parameters=trunk_parameters,
        expert_parameters=layout.expert_parameters,
        active_parameters=trunk_parameters + layout.rows_per_token * layout.expert_parameters,
        trunk_bytes=sum(shape.size_bytes for shape in trunk),
        expert_bytes=expert_bytes,
        experts_bytes=all_bytes,
        round_trips=round_trips,
        rows_per_token=layout.rows_per_token,
        wire_bytes_least=round_trips * message_bytes(layout.hidden, layout.top_k),
        wire_bytes_most=round_trips * layout.top_k * message_bytes(layout.hidden, 1),
        sizes=sizes_of(layout.model_copy(update={"codings": None}), tied=tied),
        tokens_per_s={trip_ms: 1000 / (round_trips * trip_ms) for trip_ms in ROUND_TRIPS_MS},
    )


def sizes_of(layout: ModelLayout, *, tied: bool) -> Mapping[Format, FormatSizes]:
    """The sizes in each format that fits this layout."""
    found: dict[Format, FormatSizes] = {}
    for format in FORMATS:
        try:
            trunk = sum(shape.size_bytes for shape in _trunk(layout, format, format, tied=tied))
        except UnsupportedModel:  # its widths are no multiples of a block
            continue
        expert, layers = expert_shape(layout, format).size_bytes, len(layout.moe_layers)
        experts = layers * layout.experts * expert
        found[format] = FormatSizes(trunk, expert, layers * expert, experts, trunk + experts)
    return found


def _trunk(layout: ModelLayout, format: Format, trunk_format: Format, *, tied: bool) -> list[FileShape]:
    files = expected_files(layout, format, trunk_format, tied=tied)
    return [shape for path, shape in files.items() if path.startswith("trunk/")]


def message_bytes(hidden: int, experts: int) -> int:
    """Bytes of an activation request for one float16 row and so many experts, and of its reply: as they are encoded."""
    row, index = np.zeros((1, hidden), np.float16), np.zeros(1, np.uint32)
    parts, manifest = (Part(RequestId("0" * 32), 1, 1),), bytes(MANIFEST_PREFIX_BYTES)
    there = ActivationRequest(
        parts=parts, manifest=manifest, layer=0, rows=row,
        work=tuple((expert, index) for expert in range(experts)), deadline_ms=0,
    )  # fmt: skip
    back = ActivationReply(
        parts=parts, manifest=manifest, layer=0,
        blocks=tuple((expert, row) for expert in range(experts)), compute_us=0, waited_us=0,
    )  # fmt: skip
    return len(encode_request(there)) + len(encode_reply(back))
