"""Which faults a chaos run has, in which order, and how long each lasts. Pure: the same seed gives the same faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

Kind = Literal["kill_node", "freeze_node", "slow_node", "kill_bookkeeper", "kill_nats"]
"""kill: SIGKILL, and started again after a while; freeze: SIGSTOP, then SIGCONT; slow: the process gets a tenth of the
time."""
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
SLOW_FACTOR: Final = 10
LASTS_S: Final[dict[Kind, tuple[float, float]]] = {
    "kill_node": (0.5, 1.5),
    "freeze_node": (0.5, 2.0),
    "slow_node": (1.0, 3.0),
    "kill_bookkeeper": (0.2, 1.0),
    "kill_nats": (0.1, 0.5),
}
"""Shortest and longest: how long a killed program is away before it is started, the others frozen or slow."""
STARTS_S: Final[dict[Kind, float]] = {
    "kill_node": 2.0, "freeze_node": 0.0, "slow_node": 0.0, "kill_bookkeeper": 1.5, "kill_nats": 0.2,
}  # fmt: skip
"""About what a program needs to be ready again, only to know how many faults fit into a run."""
REST_S: Final = (0.2, 1.0)
"""Nothing is broken for so long before a fault."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, `rest_s` after the one before it has ended. `node` counts from 0; None where no node is meant."""

    kind: Kind
    node: int | None
    rest_s: float
    lasts_s: float


def schedule(seed: int, seconds: float, nodes: int, kinds: Sequence[Kind] = KINDS) -> tuple[Fault, ...]:
    """About as many faults of these kinds as fit into so many seconds, one at a time; each kind once before any kind
    comes twice, and at least once."""
    random = np.random.default_rng(seed)
    made: list[Fault] = []
    left_s = seconds
    while True:
        for at in random.permutation(len(kinds)):
            kind = kinds[at]
            fault = Fault(
                kind,
                int(random.integers(nodes)) if kind.endswith("_node") else None,
                round(float(random.uniform(*REST_S)), 3),
                round(float(random.uniform(*LASTS_S[kind])), 3),
            )
            left_s -= fault.rest_s + fault.lasts_s + STARTS_S[kind]
            if left_s < 0 and len(made) >= len(kinds):
                return tuple(made)
            made.append(fault)
