"""Where each fact stands: idempotency key -> place in the book. So a repeated command finds its first answer.

Facts about requests are not in here: a request has a stream of its own, which is found by its id, and a row in
balances.py while it holds tokens. So this stays small however many requests there were.
"""

from __future__ import annotations

from typing import ClassVar, cast

from sawyer.projections.fold import Entry, Fold, Row
from sawyer.schemas.events import REQUEST_STREAM


class PlaceRow(Row):
    """`content` is SHA-256 of kind and body: the same key with other content is a conflict. `signer` is the public key
    that said it: who says the same again gets the same answer, whatever keys have come and gone since."""

    seq: int
    stream: str
    version: int
    content: str
    signer: str


class Entries(Fold):
    """Key: the idempotency key."""

    name: ClassVar[str] = "entries"
    row_types: ClassVar[dict[str, type[Row]]] = {"": PlaceRow}

    def find(self, idem: str) -> PlaceRow | None:
        return cast("PlaceRow | None", self.rows.get(idem))

    def apply(self, entry: Entry) -> None:
        """See Fold.apply."""
        if not entry.stream.startswith(REQUEST_STREAM):
            self.put(entry.idem, PlaceRow(entry.seq, entry.stream, entry.version, entry.content, entry.signer.key_id))
