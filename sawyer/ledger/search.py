"""Finding entries in a book without reading all of it. Owns what a reader may ask; verifies nothing: that is replay's.

A text is looked for in the stored bytes, far faster than these could be parsed, and that finds a little too much: so
whoever asks judges each entry again. Sources that cannot search (a file of lines) are read from the first row on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import Final, Protocol, TypeGuard, runtime_checkable

import msgspec

from sawyer.errors import BookCorrupt, NotCanonical, UsageError
from sawyer.ledger.entry import StoredRow, check_columns, decode_entry
from sawyer.ledger.source import Source
from sawyer.ledger.wanted import Wanted
from sawyer.projections.fold import Entry
from sawyer.schemas.base import UNREADABLE
from sawyer.schemas.events import (
    AccountOpened,
    InferenceCompleted,
    KeyRotated,
    NodeRegistered,
    ReservationExpired,
    ReservationVoided,
    SubjectErased,
    TokensExpired,
    TokensGranted,
    TokensReserved,
)

Accept = Callable[[Entry], bool]
NO_END_MS: Final = 1 << 63


@runtime_checkable
class Searchable(Source, Protocol):
    """A source whose database searches. Rows of checkpoints are never found."""

    def search(self, wanted: Wanted, *, newest_first: bool = False) -> Generator[StoredRow, None, None]:
        """The rows that fit, in the order of writing or against it, as one snapshot."""

    def entry_from(self, number: int) -> StoredRow | None:
        """The first entry in row `number` (from 1) or after it; None beyond the last."""


def matching(source: Source, wanted: Wanted) -> Generator[StoredRow, None, None]:
    """The entries' rows that fit, in the order of writing."""
    if _searches(source):
        with closing(source.search(wanted)) as found:
            yield from found
        return
    with closing(source.rows()) as rows:
        yield from (row for row in rows if not row.is_checkpoint and wanted.fits(row))


def newest(
    source: Source,
    wanted: Wanted,
    count: int,
    *,
    accept: Accept | None = None,
    since_ms: int = 0,
    until_ms: int = NO_END_MS,
) -> list[Entry]:
    """The newest entries that fit, that were decided in [since_ms, until_ms), and that `accept` takes; at most `count`,
    the newest last. Raises BookCorrupt for one that cannot be read."""
    kept: deque[StoredRow] = deque(maxlen=count)
    if _searches(source):
        with closing(source.search(wanted, newest_first=True)) as rows:
            for row in rows:
                at_ms = _time_of(row, since_ms)
                if at_ms < since_ms:
                    break
                if at_ms < until_ms and (accept is None or accept(read(row, source))):
                    kept.appendleft(row)
                    if len(kept) == count:
                        break
    else:
        with closing(matching(source, wanted)) as rows:
            for row in rows:
                if since_ms <= _time_of(row, since_ms) < until_ms and (accept is None or accept(read(row, source))):
                    kept.append(row)
    return [read(row, source) for row in kept]


def row_of(source: Source, seq: int) -> StoredRow:
    """The row of entry `seq`. Raises UsageError beyond the end. In a book whose entries do not count 1, 2, 3, ... it is
    the entry at that position, as replay names it."""
    found = _bisect(source, seq) if _searches(source) else None
    return found if found is not None else _at_position(source, seq)


def read(row: StoredRow, source: Source) -> Entry:
    """The entry in a row. Raises BookCorrupt, naming its position, for one that cannot be read."""
    try:
        entry = decode_entry(row.state)
        check_columns(row, entry)
    except NotCanonical as error:
        seq = _position(source, row)
        raise BookCorrupt(f"entry {seq} cannot be read: {error.message}", seq=seq) from error
    return entry


def account_in(entry: Entry) -> str:
    """The account that an entry is about; "" if it is about none."""
    match entry.body:
        case TokensReserved() | InferenceCompleted() as body:
            return body.request.body.account
        case AccountOpened() | TokensGranted() | TokensExpired() | ReservationVoided() | ReservationExpired() as body:
            return body.account
        case SubjectErased() as body:
            return body.subject
        case KeyRotated(role="account") as body:
            return body.name
    return ""


def hosts_in(entry: Entry) -> frozenset[str]:
    """The hosts that an entry credits, or whose node it registers."""
    credited = frozenset(credit.host for credit in entry.decided.credits or ())
    return credited | {entry.body.host} if isinstance(entry.body, NodeRegistered) else credited


def nodes_in(entry: Entry) -> frozenset[str]:
    """The nodes that an entry registers, whose key it changes, or whose work it tells, receipted or not."""
    match entry.body:
        case NodeRegistered() as body:
            return frozenset({body.node})
        case KeyRotated(role="node") as body:
            return frozenset({body.name})
        case InferenceCompleted() as body:
            return frozenset(r.body.node for r in body.receipts) | {part.node for part in body.unreceipted}
    return frozenset()


class Place(msgspec.Struct):
    """As much of an entry as a search needs: cheap to read, and nothing of it is judged."""

    seq: int
    ts_ms: int


def place_of(row: StoredRow) -> Place | None:
    """Where an entry says it stands; None if it does not even say that."""
    try:
        return msgspec.json.decode(row.state, type=Place)
    except UNREADABLE:
        return None


def about_account(account: str, kind: str = "") -> Wanted:
    """Every entry about this account, and some others."""
    return Wanted(kind, f"account:{account}", (_text("account", account),))


def about_node(node: str, kind: str = "") -> Wanted:
    """Every entry about this node, and some others."""
    return Wanted(kind, f"node:{node}", (_text("node", node),))


def about_host(host: str, nodes: Iterable[str] = (), kind: str = "") -> Wanted:
    """Every entry that credits this host or registers a node of it, or that is about one of these nodes."""
    return Wanted(kind, "", (_text("host", host), *(_text("node", node) for node in nodes)))


def _text(field: str, slug: str) -> bytes:
    """How canonical JSON writes this field: a slug needs no escapes."""
    return b'"%s":"%s"' % (field.encode(), slug.encode())


def _searches(source: Source) -> TypeGuard[Searchable]:
    return isinstance(source, Searchable)


def _time_of(row: StoredRow, default_ms: int) -> int:
    """When an entry says it was decided; one that says nothing is not passed over in silence."""
    place = place_of(row)
    return place.ts_ms if place is not None else default_ms


def _bisect(source: Searchable, seq: int) -> StoredRow | None:
    """By halves: entry `seq` stands in row `seq` or later, for checkpoints lie between. None if it is not found so."""
    low, high = seq, source.size_rows()
    while low <= high:
        middle = (low + high) // 2
        row = source.entry_from(middle)
        place = place_of(row) if row is not None else None
        if row is not None and place is None:
            return None
        if row is None or place is None or place.seq > seq:
            high = middle - 1
        elif place.seq == seq:
            return row
        else:
            low = middle + 1
    return None


def _at_position(source: Source, seq: int) -> StoredRow:
    size = 0
    with closing(matching(source, Wanted())) as rows:
        for size, row in enumerate(rows, start=1):
            if size == seq:
                return row
    raise UsageError(f"there is no entry {seq}: the book has {size}", hint="`sawyer ledger log` shows the newest.")


def _position(source: Source, wanted: StoredRow) -> int:
    """Which entry a row is, counted from the first."""
    with closing(matching(source, Wanted())) as rows:
        for position, row in enumerate(rows, start=1):
            if (row.stream, row.version) == (wanted.stream, wanted.version):
                return position
    raise BookCorrupt("the book changed while it was read", seq=0)
