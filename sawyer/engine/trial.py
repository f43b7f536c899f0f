"""Whether sessions really run on a device: creates and runs the smallest graph there is, and asks where it ran."""

from __future__ import annotations

from typing import Final

import numpy as np

from sawyer.engine.session import Device, Session, device_name, running_provider
from sawyer.model.graphs import head_graph
from sawyer.schemas.models import ModelLayout

_SMALLEST: Final = ModelLayout(
    family="trial", vocab=2, hidden=16, layers=1, heads=1, kv_heads=1, head_dim=16, ffn=16, experts=1, top_k=1,
    context=1, moe_layers=(0,), rms_eps="1e-05", rope_theta="10000.0", eos=(0,),
)  # fmt: skip


def try_device(device: Device) -> tuple[str, str]:
    """The provider that a session for this device runs on, and the name of the processor behind it. Raises MissingExtra
    if `device` is "cuda" and sessions cannot run there."""
    norm, head = np.ones(_SMALLEST.hidden, np.float32), np.ones((_SMALLEST.vocab, _SMALLEST.hidden), np.float32)
    session = Session(head_graph(_SMALLEST, "rms"), {"norm": norm, "head": head}, device=device)
    session.run({"x": np.ones((1, _SMALLEST.hidden), np.float32)})
    provider = running_provider(session)
    return provider, device_name(provider)
