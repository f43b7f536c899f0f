"""Where each fact stands: idempotency key -> place in the book. So a repeated command finds its first answer."""

from __future__ import annotations

from typing import ClassVar, cast

from sawyer.projections.fold import Entry, Fold, Row


class PlaceRow(Row):
    """`content` is SHA-256 of kind and body: the same key with other content is a conflict."""

    seq: int
    stream: str
    version: int
    content: str


class Entries(Fold):
    """Key: the idempotency key."""

    name: ClassVar[str] = "entries"

    def find(self, idem: str) -> PlaceRow | None:
        return cast("PlaceRow | None", self.rows.get(idem))

    def apply(self, entry: Entry) -> set[str]:
        """See Fold.apply."""
        self.rows[entry.idem] = PlaceRow(entry.seq, entry.stream, entry.version, entry.content)
        return {entry.idem}
