"""What a projection is: rows that only entries change. Owns `Entry`, `Fold` and the digest of rows; stores nothing."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Final

import msgspec

from sawyer.schemas.base import encode_canonical
from sawyer.schemas.events import Body, Decided
from sawyer.schemas.signed import Signature

ROWS_VERSION: Final = 2
"""Raised with every change of a row or of what a fold makes of an entry: views of another version are made again, never
compared. Version 1 kept its position beside the rows."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the book, read. `body` is None for a kind that this version does not know; `statement` is the
    canonical body, word for word what `attestations[0]` signed; `leaf` is the RFC 6962 leaf hash in hex."""

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
    """One row of a view: integers, texts, lists of them. Never None, never a float."""


class Fold(ABC):
    """Rows by key, changed by entries in order of `seq` and by nothing else."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    @abstractmethod
    def apply(self, entry: Entry) -> set[str]:
        """Fold one entry in; the keys of the rows that it changed. An unknown kind changes nothing."""

    def encoded(self, key: str) -> bytes:
        """The canonical JSON of one row: what a live view stores."""
        return encode_canonical(self.rows[key])

    def digest(self) -> str:
        """SHA-256 over all rows, in order of their keys."""
        return digest_of((key, self.encoded(key)) for key in sorted(self.rows))


def digest_of(rows: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 over (key, row bytes) pairs that come in order of key; lengths first, so no two lists look the same."""
    state = hashlib.sha256()
    for key, row in rows:
        name = key.encode()
        state.update(b"%d:%s%d:%s" % (len(name), name, len(row), row))
    return state.hexdigest()
