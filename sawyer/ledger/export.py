"""The book in the languages of other programs: its rows as lines (NDJSON), its postings for beancount and for hledger.

Streams: memory holds the accounts, not the entries. The chain is followed and the books balanced on the way; signatures
and decisions are replay's to verify.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from sawyer.clock import iso
from sawyer.economy.periods import DAY_MS, days_from_civil
from sawyer.errors import BookCorrupt, NotCanonical
from sawyer.ledger.audit import Accounts
from sawyer.ledger.chain import read_next
from sawyer.ledger.chart import COMMODITIES, name_of
from sawyer.ledger.entry import StoredRow, decode_entry
from sawyer.ledger.postings import Posting, Unit
from sawyer.ledger.source import Source
from sawyer.ledger.state import State
from sawyer.projections.fold import Entry
from sawyer.schemas.base import encode_canonical
from sawyer.schemas.events import NetworkFounded

Narrate = Callable[[Entry], str]
"""An entry in one line, without anything personal."""
_CALENDAR_ENDS_MS: Final = days_from_civil(9999, 12, 31) * DAY_MS
_CHECKPOINT: Final = b'{"checkpoint":'
Sums = Mapping[tuple[str, Unit], int]


def ndjson(source: Source) -> Generator[bytes, None, None]:
    """One line a row: an entry's exact bytes, or `{"checkpoint":"<note>"}`. Replay reads this back."""
    with closing(source.rows()) as rows:
        for row in rows:
            yield ndjson_line(row)


def ndjson_line(row: StoredRow) -> bytes:
    """Raises BookCorrupt for a row that nobody could read back from its line: no entry and no checkpoint looks so."""
    if not row.is_checkpoint and b"\n" not in row.state and not row.state.startswith(_CHECKPOINT):
        return row.state + b"\n"
    try:
        note = row.state.decode() if row.is_checkpoint else None
    except UnicodeDecodeError:
        note = None
    if note is None:
        raise BookCorrupt(f"version {row.version} of {row.stream!r} is neither an entry nor a checkpoint")
    return encode_canonical({"checkpoint": note}) + b"\n"


class Journal(Protocol):
    """The language of one accounting program. Every method gives whole lines."""

    def head(self, log: str, mode: str) -> Iterator[str]:
        """What comes first."""

    def opened(self, at: datetime, account: str, unit: Unit) -> Iterator[str]:
        """An account, before its first posting."""

    def transaction(self, at: datetime, entry: Entry, narration: str, moved: Iterable[Posting]) -> Iterator[str]:
        """An entry that moves something."""

    def balances(self, at: datetime, seq: int, sums: Sums) -> Iterator[str]:
        """What every account must hold after the last entry."""


class Export:
    """One journal of a whole book. Read `entries`, `transactions` and `unknown` (kind -> entries that this version does
    not know, and that are not in the journal) when the lines have ended."""

    def __init__(self, source: Source, journal: Journal, narrate: Narrate) -> None:
        self.entries = 0
        self.transactions = 0
        self.unknown: Counter[str] = Counter()
        self._source = source
        self._journal = journal
        self._narrate = narrate
        self._accounts = Accounts()
        self._opened: set[tuple[str, Unit]] = set()

    def lines(self) -> Generator[str, None, None]:
        """The journal. Raises BookCorrupt for the first entry that does not follow or does not balance; at the end if
        the sums of the postings are not what the projections say."""
        with closing(self._source.rows()) as rows:
            entry_rows = (row for row in rows if not row.is_checkpoint)
            first = next(entry_rows, None)
            if first is None:
                raise BookCorrupt("the book is empty", seq=0)
            founding = _founding(first)
            state = State(founding.network, "", "")
            yield from self._journal.head(founding.network, founding.mode)
            yield from self._entry(first, state)
            for row in entry_rows:
                yield from self._entry(row, state)
        self._accounts.check_rows(state)
        head = state.audit.head
        sums = {account: self._accounts.sums[account] for account in sorted(self._opened)}
        yield from self._journal.balances(_moment(head.ts_ms), head.seq, sums)

    def _entry(self, row: StoredRow, state: State) -> Iterator[str]:
        entry = read_next(row, state)
        self.entries += 1
        if entry.body is None:
            self.unknown[entry.kind] += 1
        moved = self._book(entry, state)
        if not moved:
            return
        at = _moment(entry.ts_ms)
        for posting in moved:
            account = (posting.account, posting.unit)
            if account not in self._opened:
                self._opened.add(account)
                yield from self._journal.opened(at, *account)
        yield from self._journal.transaction(at, entry, _one_line(self._narrate(entry)), moved)
        self.transactions += 1

    def _book(self, entry: Entry, state: State) -> tuple[Posting, ...]:
        try:
            state.apply(entry)
        except (LookupError, ArithmeticError, AttributeError) as error:  # the folds trust what decide allowed
            signer = f"{entry.signer.by} ({entry.signer.key_id})"
            why = f"entry {entry.seq} speaks of what the book does not hold: {error}"
            raise BookCorrupt(why, seq=entry.seq, signer=signer) from error
        state.balances.ended.clear()  # nobody asks here, and nobody writes views: or memory would grow with the book
        for fold in state.folds:
            fold.changed.clear()
        return self._accounts.post(entry)


class Beancount:
    """For `bean-check`. Balances are asserted at the start of the day after the last entry's."""

    def head(self, log: str, mode: str) -> Iterator[str]:
        """See Journal."""
        yield from (f"; {line}" for line in _about(log, mode))
        yield f'option "title" "{log}, mode {mode}"'
        yield f'option "operating_currency" "{COMMODITIES["uusd"]}"'
        for commodity in COMMODITIES.values():
            yield f"1970-01-01 commodity {commodity}"
        yield ""

    def opened(self, at: datetime, account: str, unit: Unit) -> Iterator[str]:
        """See Journal."""
        yield f"{at:%Y-%m-%d} open {name_of(account)} {COMMODITIES[unit]}"

    def transaction(self, at: datetime, entry: Entry, narration: str, moved: Iterable[Posting]) -> Iterator[str]:
        """See Journal."""
        told = narration.replace("\\", "\\\\").replace('"', '\\"')
        yield f'{at:%Y-%m-%d} * "{told}"'
        yield f"  seq: {entry.seq}"
        yield f'  kind: "{entry.kind}"'
        yield f'  time: "{iso(entry.ts_ms)}"'
        yield f'  leaf: "{entry.leaf}"'
        for posting in moved:
            yield f"  {name_of(posting.account)}  {posting.amount} {COMMODITIES[posting.unit]}"
        yield ""

    def balances(self, at: datetime, seq: int, sums: Sums) -> Iterator[str]:
        """See Journal."""
        yield f"; what the book's projections say after entry {seq}"
        for (account, unit), total in sums.items():
            yield f"{at + timedelta(days=1):%Y-%m-%d} balance {name_of(account)}  {total} {COMMODITIES[unit]}"


class Hledger:
    """For `hledger check --strict`. Balances are asserted in a last transaction, which moves nothing."""

    def head(self, log: str, mode: str) -> Iterator[str]:
        """See Journal."""
        yield from (f"; {line}" for line in _about(log, mode))
        for commodity in COMMODITIES.values():
            yield f"commodity 1. {commodity}"
        yield ""

    def opened(self, at: datetime, account: str, unit: Unit) -> Iterator[str]:  # noqa: ARG002 (hledger's has neither)
        """See Journal."""
        yield f"account {name_of(account)}"

    def transaction(self, at: datetime, entry: Entry, narration: str, moved: Iterable[Posting]) -> Iterator[str]:
        """See Journal."""
        yield f"{at:%Y-%m-%d} * {narration.replace(';', ',').replace('|', '/')}"
        yield f"    ; seq:{entry.seq}, kind:{entry.kind}, time:{iso(entry.ts_ms)}, leaf:{entry.leaf}"
        for posting in moved:
            yield f"    {name_of(posting.account)}  {posting.amount} {COMMODITIES[posting.unit]}"
        yield ""

    def balances(self, at: datetime, seq: int, sums: Sums) -> Iterator[str]:
        """See Journal."""
        if sums:
            yield f"{at:%Y-%m-%d} * what the book's projections say after entry {seq}"
        for (account, unit), total in sums.items():
            commodity = COMMODITIES[unit]
            yield f"    {name_of(account)}  0 {commodity} == {total} {commodity}"


JOURNALS: Final[dict[str, Callable[[], Journal]]] = {"beancount": Beancount, "hledger": Hledger}


def _about(log: str, mode: str) -> tuple[str, ...]:
    money = "no money moved: every UUSD here is play money" if mode == "test" else "UUSD is real money"
    return (
        f"The book of {log}, written by `sawyer ledger export`. Times are UTC; a positive amount is a debit.",
        "TOKEN: tokens, in memorandum accounts whose sum is zero. UUSD: micro-USD, a millionth of a US dollar.",
        f"Mode {mode}: {money}.",
        "Names: each part begins with a capital, and a U further on stands for an underscore.",
        "leaf is the entry's hash in the book's Merkle tree: `sawyer ledger show SEQ` prints the signed entry.",
    )


def _founding(row: StoredRow) -> NetworkFounded:
    """Its names are checked for their form: nothing that goes into a journal may be more than a name there."""
    try:
        body = decode_entry(row.state).body
    except NotCanonical as error:
        raise BookCorrupt(f"entry 1: {error.message}", seq=1) from error
    if not isinstance(body, NetworkFounded):
        raise BookCorrupt("a book begins with the founding of its network", seq=1)
    return body


def _moment(ts_ms: int) -> datetime:
    """Raises BookCorrupt for a time that these programs' calendars do not have."""
    if ts_ms >= _CALENDAR_ENDS_MS:
        raise BookCorrupt(f"an entry is dated {ts_ms} ms after 1970: no program can book that")
    return datetime.fromtimestamp(ts_ms // 1000, UTC)


def _one_line(text: str) -> str:
    return text if text.isprintable() else "".join(each if each.isprintable() else " " for each in text)
