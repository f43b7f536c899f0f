"""Finding an entry by its number in a store whose rows are numbered otherwise: checkpoints stand between entries."""

from __future__ import annotations

from itertools import islice

import msgspec

from sawyer.errors import NotCanonical, SawyerError
from sawyer.ledger.checkpoint import Checkpoint
from sawyer.ledger.store import Store
from sawyer.schemas.base import UNREADABLE


def entries_from(store: Store, seq: int, count: int) -> list[bytes]:
    """The exact bytes of `count` entries from number `seq` (from 1) on: a binary search over the rows. Raises
    SawyerError if the book has not so many, NotCanonical for a row that is no entry."""
    if not count:
        return []
    rows = (row.state for row in store.rows(_before(store, seq)) if not row.is_checkpoint)
    found_rows = list(islice(rows, count))
    if len(found_rows) < count or _seq_of(found_rows[0]) != seq:
        raise SawyerError(f"the book has no entries {seq} to {seq + count - 1}")
    return found_rows


def covered_at(store: Store, seq: int) -> int:
    """The size of the first checkpoint that covers this entry. Raises SawyerError if none does, NotCanonical."""
    entry = _before(store, seq) + 1
    for row in store.rows(entry):
        if row.is_checkpoint:
            return Checkpoint.read(row.state.decode()).size
    raise SawyerError(f"no checkpoint covers entry {seq}")


def _before(store: Store, seq: int) -> int:
    """The last row such that the first entry after it is not beyond this one."""
    low, high = 0, store.size()
    while low < high:
        middle = (low + high + 1) // 2
        found = _first_after(store, middle)
        if found is not None and found <= seq:
            low = middle
        else:
            high = middle - 1
    return low


def _first_after(store: Store, number: int) -> int | None:
    """The seq of the first entry after this row."""
    for row in store.rows(number, page_rows=2):  # after a checkpoint there is an entry
        if not row.is_checkpoint:
            return _seq_of(row.state)
    return None


class _Numbered(msgspec.Struct):
    """As much of an entry as a search needs."""

    seq: int


def _seq_of(raw: bytes) -> int:
    try:
        return msgspec.json.decode(raw, type=_Numbered).seq
    except UNREADABLE as error:
        raise NotCanonical(f"a row that is no entry: {error}") from error
