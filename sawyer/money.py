"""Integer money and the only rounding in the house. Unit: micro-USD (uUSD), a millionth of a dollar."""

from __future__ import annotations

from typing import Final

UUSD_PER_USD: Final = 1_000_000
UUSD_PER_CENT: Final = 10_000


def ceil_div(numerator: int, denominator: int) -> int:
    """Smallest integer >= numerator / denominator, for denominator > 0."""
    if denominator <= 0:
        raise ValueError(f"denominator must be positive, got {denominator}")
    return -(-numerator // denominator)


def format_usd(amount_uusd: int) -> str:
    """`$12.50` in whole cents; with all six decimals where less than a cent matters: `$0.001230`."""
    sign = "-" if amount_uusd < 0 else ""
    whole, micro = divmod(abs(amount_uusd), UUSD_PER_USD)
    decimals = f"{micro:06d}" if micro % UUSD_PER_CENT else f"{micro // UUSD_PER_CENT:02d}"
    return f"{sign}${whole:,}.{decimals}"
