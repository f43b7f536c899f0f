"""What a projection is: rows that only entries change. Owns `Entry`, `Fold` and the digest of rows; stores nothing."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Final

import msgspec

from sawyer.schemas.base import encode_canonical
from sawyer.schemas.events import Body, Decided
from sawyer.schemas.signed import Signature

ROWS_VERSION: Final = 3
"""Raised with every change of a row or of what a fold makes of an entry: views of another version are made again, never
compared. Version 1 kept its position beside the rows, version 2 a row for every request and entry."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One entry of the book, read. `body` is None for a kind that this version does not know; `statement` is the
    canonical body, word for word what `attestations[0]` signed; `inner` are the signed statements in it (the receipts,
    then the order), as canonical bytes; `leaf` is the RFC 6962 leaf hash in hex."""

    seq: int
    leaf: str
    prev: str
    log: str
    ts_ms: int
    kind: str
    stream: str
    version: int
    idem: str
    body: Body | None
    statement: bytes
    decided: Decided
    attestations: tuple[Signature, ...]
    inner: tuple[bytes, ...] = ()

    @property
    def signer(self) -> Signature:
        return self.attestations[0]

    @property
    def content(self) -> str:
        return content_of(self.kind, self.statement)


def content_of(kind: str, statement: bytes) -> str:
    """What makes two commands the same command: SHA-256 of kind and canonical body (kinds hold no NUL)."""
    return hashlib.sha256(kind.encode() + b"\0" + statement).hexdigest()


class Row(msgspec.Struct):
    """One row of a view: integers, texts, lists of them. Never None, never a float. A sum that may pass 2^53 is decimal
    text (`add`)."""


class Fold(ABC):
    """Rows by key, changed by entries in order of `seq` and by nothing else. `changed` are the keys of rows that were
    set or removed since whoever writes them down last cleared it."""

    name: ClassVar[str]
    row_types: ClassVar[dict[str, type[Row]]]
    """The first word of a key (before a colon; "" for any other) -> what its row is."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.changed: set[str] = set()

    @abstractmethod
    def apply(self, entry: Entry) -> None:
        """Fold one entry in. An unknown kind changes nothing."""

    def load(self, rows: Iterable[tuple[str, bytes]]) -> None:
        """Take these rows, of a fold that stood elsewhere, as one's own. Raises msgspec.MsgspecError, KeyError, and
        ValueError for rows that do not ascend: the digest does not show an order, and what is kept beside the rows
        follows from it."""
        last: str | None = None
        for key, raw in rows:
            if last is not None and key <= last:
                raise ValueError(f"row {key!r} of {self.name} comes after {last!r}")
            last = key
            kind = self.row_types.get(key.partition(":")[0]) or self.row_types[""]
            self.restore(key, msgspec.json.decode(raw, type=kind))

    def restore(self, key: str, row: Row) -> None:
        """Take one row; folds that keep more than rows set that too."""
        self.rows[key] = row

    def put(self, key: str, row: Row) -> None:
        """Set a row, and mark it."""
        self.rows[key] = row
        self.changed.add(key)

    def remove(self, key: str) -> None:
        """Take a row out, and mark it."""
        del self.rows[key]
        self.changed.add(key)

    def encoded(self, key: str) -> bytes | None:
        """The canonical JSON of one row: what a live view stores. None if there is no such row (any more)."""
        row = self.rows.get(key)
        return None if row is None else encode_canonical(row)

    def encoded_rows(self) -> Iterable[tuple[str, bytes]]:
        """(key, row bytes) of all rows, in order of key."""
        for key in sorted(self.rows):
            row = self.encoded(key)
            assert row is not None, "the key was listed"
            yield key, row

    def digest(self) -> str:
        """SHA-256 over all rows, in order of their keys."""
        return digest_of(self.encoded_rows())


def digest_of(rows: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 over (key, row bytes) pairs that come in order of key; lengths first, so no two lists look the same."""
    state = hashlib.sha256()
    for key, row in rows:
        name = key.encode()
        state.update(b"%d:%s%d:%s" % (len(name), name, len(row), row))
    return state.hexdigest()


def add(total: str, amount: int) -> str:
    """A sum kept as decimal text, and so much more."""
    return str(int(total) + amount)
