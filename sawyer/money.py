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
    """`$12.50`, with as many of the six decimals as matter, and never fewer than two: `$0.001234`."""
    sign = "-" if amount_uusd < 0 else ""
    whole, micro = divmod(abs(amount_uusd), UUSD_PER_USD)
    decimals = f"{micro:06d}".rstrip("0").ljust(2, "0")
    return f"{sign}${whole:,}.{decimals}"
