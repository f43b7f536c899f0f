"""The chart of accounts as accountants' programs name it: each account has one name, legal in beancount and hledger.

Our `deferred:ann_lee-1` is their `Liabilities:Deferred:AnnUlee-1`. beancount allows five roots, and parts that begin
with a capital or a digit and hold letters, digits and dashes
(https://beancount.github.io/docs/beancount_language_syntax.html#accounts). Ours are lower case, so a capital is free to
say what theirs cannot. The way back is exact: `account_of(name_of(account)) == account`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from sawyer.ledger.postings import Unit

COMMODITIES: Final[dict[Unit, str]] = {"tokens": "TOKEN", "uusd": "UUSD"}
"""Legal in both: capitals alone. One UUSD is a millionth of a US dollar; every amount is a whole number."""
MEMO: Final = "Equity:Memo"
"""Tokens are units, not money: they stand in accounts of their own, whose sum is always zero."""
MOST_KNOWN: Final = 65_536
"""Names that are remembered: those of the accounts that were moved last."""
_ROOTS: Final = {
    "user": MEMO,
    "tokens": MEMO,
    "stripe": "Assets",
    "deferred": "Liabilities",
    "revenue": "Income",
}
_UNDERSCORE: Final = "U"


@lru_cache(maxsize=MOST_KNOWN)
def name_of(account: str) -> str:
    """An account of postings.py as accountants' programs name it."""
    parts = account.split(":")
    return ":".join((_ROOTS[parts[0]], *map(_capital, parts)))


def account_of(name: str) -> str:
    """The account that `name_of` made this name of."""
    root = next(root for root in _ROOTS.values() if name.startswith(f"{root}:"))
    return ":".join(map(_small, name.removeprefix(f"{root}:").split(":")))


def _capital(part: str) -> str:
    return part[0].upper() + part[1:].replace("_", _UNDERSCORE)


def _small(part: str) -> str:
    return part[0].lower() + part[1:].replace(_UNDERSCORE, "_")
