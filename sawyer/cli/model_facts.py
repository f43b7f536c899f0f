"""What can be said of a model from its layout alone: parameters, sizes, what a token costs on the wire. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from sawyer.ids import RequestId
from sawyer.model.artifacts import expected_files
from sawyer.model.layout import FileShape, expert_shape
from sawyer.schemas.models import Format, ModelLayout
from sawyer.schemas.tensors import (
    MANIFEST_PREFIX_BYTES,
    ActivationReply,
    ActivationRequest,
    encode_reply,
    encode_request,
)


@dataclass(frozen=True)
class ModelFacts:
    """Parameters are weights; `active_parameters` work on one token. Sizes are of the files in this format. A token
    that is generated alone takes `round_trips`, one a MoE layer, and between `wire_bytes_least` (one node serves all of
    its experts) and `wire_bytes_most` (each is on another node) of messages, there and back, rows as float16."""

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


def facts_of(layout: ModelLayout, format: Format, *, tied: bool) -> ModelFacts:
    """Raises UnsupportedModel if no family here computes this layout."""
    files = expected_files(layout, format, tied=tied)
    trunk = [shape for path, shape in files.items() if path.startswith("trunk/")]
    experts = len(layout.moe_layers) * layout.experts
    trunk_parameters = sum(_weights(shape) for shape in trunk)
    layer_least = message_bytes(layout.hidden, layout.top_k)
    layer_most = layout.top_k * message_bytes(layout.hidden, 1)
    expert_bytes = expert_shape(layout, format).size_bytes
    return ModelFacts(
        parameters=trunk_parameters + experts * layout.expert_parameters,
        trunk_parameters=trunk_parameters,
        expert_parameters=layout.expert_parameters,
        active_parameters=trunk_parameters + layout.rows_per_token * layout.expert_parameters,
        trunk_bytes=sum(shape.size_bytes for shape in trunk),
        expert_bytes=expert_bytes,
        experts_bytes=experts * expert_bytes,
        round_trips=len(layout.moe_layers),
        rows_per_token=layout.rows_per_token,
        wire_bytes_least=len(layout.moe_layers) * layer_least,
        wire_bytes_most=len(layout.moe_layers) * layer_most,
    )


def message_bytes(hidden: int, experts: int) -> int:
    """Bytes of an activation request for one float16 row and so many experts, and of its reply: as they are encoded."""
    row, index = np.zeros((1, hidden), np.float16), np.zeros(1, np.uint32)
    request, manifest = RequestId("0" * 32), bytes(MANIFEST_PREFIX_BYTES)
    there = ActivationRequest(
        request=request, sequence=0, manifest=manifest, layer=0, rows=row,
        work=tuple((expert, index) for expert in range(experts)), deadline_ms=0,
    )  # fmt: skip
    back = ActivationReply(
        request=request, sequence=0, manifest=manifest, layer=0,
        blocks=tuple((expert, row) for expert in range(experts)), compute_us=0, waited_us=0,
    )  # fmt: skip
    return len(encode_request(there)) + len(encode_reply(back))


def _weights(shape: FileShape) -> int:
    """Weights in a file of the trunk, whose sections are plain float32."""
    return sum(prod(section.shape) for section in shape.sections)
