"""What became of requests that ended: read from their streams in the book, where memory has forgotten them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from sawyer.errors import BookCorrupt
from sawyer.ledger.entry import StoredRow, decode_entry
from sawyer.ledger.store import Store
from sawyer.projections.balances import Balances, RequestRow
from sawyer.schemas.events import REQUEST_STREAM

MOST_REMEMBERED: Final = 16_384
"""Requests that ended a short while ago: they are the ones that are asked for again."""


class StoredPast:
    """A `Past` over a store. Call `look_up` for a batch first: one round trip for all of it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._recent: dict[str, RequestRow] = {}
        self._looked_up: dict[str, RequestRow | None] = {}

    def look_up(self, requests: Iterable[str]) -> None:
        """Read these requests, and forget those that were looked up before. Raises SawyerError, BookCorrupt."""
        names = [f"{REQUEST_STREAM}{request}" for request in requests if request not in self._recent]
        found = self._store.streams(names) if names else {}
        self._looked_up = {
            name.removeprefix(REQUEST_STREAM): ended_row(found[name]) if name in found else None for name in names
        }

    def remember(self, ended: Mapping[str, RequestRow]) -> None:
        """These ended just now, and are in the book."""
        self._recent.update(ended)
        while len(self._recent) > MOST_REMEMBERED:
            del self._recent[next(iter(self._recent))]

    def forget(self) -> None:
        """Memory was dropped: what it held may never have been written."""
        self._recent.clear()
        self._looked_up.clear()

    def __call__(self, request: str) -> RequestRow | None:
        """See `Past`."""
        recent = self._recent.get(request)
        if recent is not None:
            return recent
        if request not in self._looked_up:
            self.look_up([request])
        return self._looked_up[request]


def ended_row(rows: list[StoredRow]) -> RequestRow | None:
    """What a request came to, from its two entries; None while it is open: then memory has it. Raises BookCorrupt."""
    if len(rows) != 2:  # its reservation and its end
        return None
    reserved, ended = (decode_entry(row.state) for row in rows)
    try:
        fold = Balances.of_one_request(reserved)
        fold.apply(ended)
        (row,) = fold.ended.values()
    except (KeyError, ValueError) as error:
        raise BookCorrupt(f"stream {reserved.stream} is not one request and its end", seq=ended.seq) from error
    return row
