"""What a host's work weighs: a weight, not money. Owns the formula, and how many rows a request must cost."""

from __future__ import annotations

from typing import Final

PARAMETERS_PER_UNIT: Final = 1000


def work_of(rows: int, expert_parameters: int) -> int:
    """Credit for so many rows through one expert (docs/token-economics.md, rule 9)."""
    return rows * (expert_parameters // PARAMETERS_PER_UNIT)


def rows_of(fed_tokens: int, *, moe_layers: int, top_k: int) -> int:
    """Expert rows that a request costs exactly: every token fed to the model passes each MoE layer through `top_k`
    experts."""
    return fed_tokens * moe_layers * top_k
