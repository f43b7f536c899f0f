"""A verifier of books by somebody else: written from docs/ledger-format.md alone, with Python's standard library and
libsodium. It imports nothing of Sawyer, and shares no line with it: where the two differ, the page is wrong.

From this folder's parent: python -m stranger BOOK.ndjson VERIFIER_KEY OPERATOR_KEY

Names in brackets are the page's rules.
"""

from __future__ import annotations

from .book import Json, Reader, WrongBook, lines_of, root_of
from .state import StateRules

__all__ = ["WrongBook", "verify"]


def verify(export: bytes, vkey: str, operator: str) -> Json:
    """What an exported book comes to, by these keys that the caller trusts. Raises WrongBook."""
    rules = StateRules(operator)
    reader = Reader(vkey, rules)
    for number, line in enumerate(lines_of(export), start=1):
        try:
            reader.line(line)
        except WrongBook as error:
            raise WrongBook(f"line {number}: {error}") from error
    reader.end()
    root = root_of(reader.leaves).hex()
    return {"entries": len(reader.leaves), "signatures": reader.signatures, "root": root, **rules.told()}
