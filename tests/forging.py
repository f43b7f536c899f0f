"""What somebody who holds the ledger's key can do to a book: change entries, add some, and chain and sign everything
after them anew."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

import msgspec

from sawyer.identity.keys import Key
from sawyer.ledger.checkpoint import Checkpoint
from sawyer.ledger.entry import CHECKPOINT_STREAM, CHECKPOINT_TOPIC, StoredRow
from sawyer.ledger.merkle import Tree, leaf_hash
from sawyer.schemas.base import encode_canonical
from sawyer.schemas.events import NO_HASH

Fields = dict[str, Any]
Change = Callable[[Fields], None]
"""Changes an entry, as plain JSON."""
Garble = Callable[[bytes], bytes]
"""Changes an entry's bytes."""


class Rows:
    """A book as a list."""

    def __init__(self, rows: Iterable[StoredRow]) -> None:
        self.list = list(rows)

    def size_rows(self) -> int:
        return len(self.list)

    def rows(self) -> Generator[StoredRow, None, None]:
        yield from self.list


def unchanged(_: Fields) -> None:
    """As it is."""


def rewrite(
    rows: Iterable[StoredRow],
    network: str,
    key: Key,
    change: Change = unchanged,
    *,
    seq: int = 0,
    garble: Garble = bytes,
    signer: Callable[[int], Key] | None = None,
) -> Rows:
    """The book with one entry changed, and all that follows from it signed by the ledger again; `signer` says with
    which key, for the checkpoint of so many entries. Columns follow the entry."""
    tree, prev, made = Tree(), NO_HASH, []
    for row in rows:
        if row.is_checkpoint:
            by = signer(tree.size) if signer is not None else key
            note = Checkpoint(network, tree.size, tree.root()).sign(by)
            made.append(StoredRow(row.stream, row.version, row.topic, note.encode()))
            continue
        entry = msgspec.json.decode(row.state)
        entry["prev"] = prev
        chosen = entry["seq"] == seq
        if chosen:
            change(entry)
        raw = encode_canonical(entry)
        raw = garble(raw) if chosen else raw
        prev = leaf_hash(raw).hex()
        tree.append(bytes.fromhex(prev))
        made.append(StoredRow(entry["stream"], entry["version"], entry["kind"], raw))
    return Rows(made)


def add(rows: list[StoredRow], network: str, key: Key, fields: Fields) -> Rows:
    """The book with one more entry and its checkpoint; seq and prev follow from the rows."""
    entries = [row for row in rows if not row.is_checkpoint]
    notes = len(rows) - len(entries)
    entry = {**fields, "seq": len(entries) + 1}
    row = StoredRow(entry["stream"], entry["version"], entry["kind"], encode_canonical(entry))
    return rewrite([*rows, row, StoredRow(CHECKPOINT_STREAM, notes + 1, CHECKPOINT_TOPIC, b"")], network, key)


def entry_at(rows: Iterable[StoredRow], seq: int) -> Fields:
    """An entry as plain JSON."""
    entries = [row for row in rows if not row.is_checkpoint]
    return msgspec.json.decode(entries[seq - 1].state)
