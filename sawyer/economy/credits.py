"""What a host's work weighs: a weight, not money. Owns the formula, and how many rows a request must cost."""

from __future__ import annotations

from typing import Final

PARAMETERS_PER_UNIT: Final = 1000
FULL_MILLI: Final = 1000
_SLA_STEPS: Final = ((1, FULL_MILLI), (2, 900), (4, 500))
"""(times the promised latency, per mille of the work that counts)."""


def work_of(rows: int, expert_parameters: int) -> int:
    """Credit for so many rows through one expert (docs/token-economics.md, rule 9)."""
    return rows * (expert_parameters // PARAMETERS_PER_UNIT)


def rows_of(fed_tokens: int, *, moe_layers: int, top_k: int) -> int:
    """Expert rows that a request costs exactly: every token fed to the model passes each MoE layer through `top_k`
    experts."""
    return fed_tokens * moe_layers * top_k


def sla_milli(measured_us: int, promised_us: int) -> int:
    """What work counts for, per mille, by the p95 measured against the one promised (docs/token-economics.md, rule 9).
    Who promises nothing (0) is not held to anything."""
    if not promised_us:
        return FULL_MILLI
    for times, milli in _SLA_STEPS:
        if measured_us <= times * promised_us:
            return milli
    return 0
