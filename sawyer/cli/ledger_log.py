"""`sawyer ledger log` and `show`: reading the book and printing it. Verifies nothing: that is replay's work."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final

import msgspec

from sawyer.cli import output
from sawyer.cli.facts import summary
from sawyer.cli.moments import moment_ms
from sawyer.cli.notes import read_note
from sawyer.clock import iso
from sawyer.errors import UsageError
from sawyer.home import Home
from sawyer.ids import is_slug
from sawyer.ledger import search
from sawyer.ledger.commands import claims
from sawyer.ledger.entry_postings import postings_of
from sawyer.ledger.postings import Posting
from sawyer.ledger.search import account_in, hosts_in, nodes_in, row_of
from sawyer.ledger.source import Source
from sawyer.ledger.statement import Receipt, receipts_of
from sawyer.ledger.wanted import Wanted
from sawyer.projections.fold import Entry
from sawyer.schemas.events import TokensGranted

NOT_VERIFIED: Final = "read, not verified: `sawyer ledger replay` proves the book"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries to list: those about all that is named here, decided in [since_ms, until_ms). `kind` with or
    without its version, or only its first word."""

    account: str = ""
    host: str = ""
    node: str = ""
    kind: str = ""
    since_ms: int = 0
    until_ms: int = search.NO_END_MS

    @classmethod
    def of(cls, *, account: str, host: str, node: str, kind: str, since: str, until: str) -> Filter:
        """From the options of a command; "" where one was not given. Raises UsageError for what is no name or time."""
        for name in (account, host, node):
            if name and not is_slug(name):
                raise UsageError(f"{name!r} is no name", hint="Names are like alice, bob-2 or my_node.")
        since_ms = moment_ms(since) if since else 0
        return cls(account, host, node, kind, since_ms, moment_ms(until) if until else search.NO_END_MS)

    def rows(self) -> Wanted:
        """What a database may look for."""
        if self.account:
            return search.about_account(self.account, self.kind)
        if self.node:
            return search.about_node(self.node, self.kind)
        return search.about_host(self.host, kind=self.kind) if self.host else Wanted(self.kind)

    def has(self, entry: Entry) -> bool:
        """Whether an entry is one of these."""
        return (
            (not self.account or account_in(entry) == self.account)
            and (not self.host or self.host in hosts_in(entry))
            and (not self.node or self.node in nodes_in(entry))
        )


def newest(source: Source, count: int, wanted: Filter) -> list[Entry]:
    """The newest entries that pass, the newest last. Raises BookCorrupt for one that cannot be read."""
    accept = wanted.has if wanted.account or wanted.host or wanted.node else None
    since_ms, until_ms = wanted.since_ms, wanted.until_ms
    return search.newest(source, wanted.rows(), count, accept=accept, since_ms=since_ms, until_ms=until_ms)


def entry_at(source: Source, seq: int) -> tuple[Entry, bytes]:
    """The entry at this position, and its exact bytes. Raises UsageError beyond the end, BookCorrupt."""
    row = row_of(source, seq)
    return search.read(row, source), row.state


def show_log(entries: list[Entry]) -> None:
    """One aligned line an entry; a terminal wraps what is too long for it, and nothing is cut."""
    rows = [(str(each.seq), iso(each.ts_ms), each.kind, each.signer.by, summary(each)) for each in entries]
    seq, _, kind, who, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    for row in rows:
        output.line(f"{row[0]:>{seq}}  {row[1]}  {row[2]:<{kind}}  {row[3]:<{who}}  {output.printable(row[4])}")


def log_document(entries: list[Entry]) -> list[dict[str, object]]:
    """The same, for programs."""
    return [
        {
            "seq": each.seq,
            "ts_ms": each.ts_ms,
            "kind": each.kind,
            "stream": each.stream,
            "by": each.signer.by,
            "leaf": each.leaf,
            "summary": summary(each),
        }
        for each in entries
    ]


def show_entry(entry: Entry, source: Source, home: Home) -> None:
    """The whole entry, for people: what it says, what it moved, who signed it, and where it stands. Sealed notes are
    read where their subject's key is in this home."""
    output.line(f"entry {entry.seq}: {entry.kind}")
    output.line(output.printable(summary(entry)))
    _show_place(entry)
    _show_receipts(entry)
    _show_postings(postings_of(source, entry))
    _show_sealed(entry, home)
    output.heading("Signatures")
    for claim in claims(entry.kind, entry.body, entry.statement, entry.attestations):
        output.line(f"{claim.signature.by} over {claim.kind}")
        output.line(f"  key {claim.signature.key_id}")
        output.line(f"  sig {claim.signature.sig}")
    output.heading("Body: what was signed")
    output.line(_pretty(msgspec.json.decode(entry.statement)))
    decided = entry.decided.plain()
    if decided:
        output.heading("Decided: what the ledger added")
        output.line(_pretty(decided))


def _show_place(entry: Entry) -> None:
    output.heading("Where it stands")
    for name, value in (
        ("log", entry.log),
        ("time", f"{iso(entry.ts_ms)} ({entry.ts_ms} ms)"),
        ("stream", f"{entry.stream}, version {entry.version}"),
        ("idem", entry.idem),
        ("leaf", entry.leaf),
        ("prev", entry.prev),
    ):
        output.line(f"{name:<7} {output.printable(value)}")


def _show_receipts(entry: Entry) -> None:
    receipts = receipts_of(entry)
    if receipts:
        output.heading("Receipts: who computed")
        columns = ("node", "host", "receipt", "rows", "work", "sla")
        output.table(columns, [_cells(receipt) for receipt in receipts], numeric=columns[2:])


def _cells(receipt: Receipt) -> tuple[object, ...]:
    if not receipt.host:
        return receipt.node, "", receipt.counter or "none", f"{receipt.rows:,}", "not credited", ""
    work = f"{receipt.work:,}"
    return receipt.node, receipt.host, receipt.counter, f"{receipt.rows:,}", work, receipt.sla_milli


def _show_postings(moved: tuple[Posting, ...]) -> None:
    if moved:
        output.heading("Postings: what it moves")
        rows = [
            (each.account, *((f"{each.amount:,}", "") if each.amount > 0 else ("", f"{-each.amount:,}")), each.unit)
            for each in moved
        ]
        output.table(("account", "debit", "credit", "unit"), rows, numeric=("debit", "credit"))


def _show_sealed(entry: Entry, home: Home) -> None:
    notes = entry.body.sealed if isinstance(entry.body, TokensGranted) else ()
    if notes:
        output.heading("Sealed: personal, readable with the subject's key alone")
        for note in notes:
            said = read_note(home, note)
            told = ", whose key is not here" if said is None else f": {output.printable(said)}"
            output.line(f"a note about {note.subject}{told}")


def print_exact(raw: bytes) -> None:
    """The bytes of an entry as they stand in the book, and a newline."""
    sys.stdout.flush()
    sys.stdout.buffer.write(raw + b"\n")
    sys.stdout.buffer.flush()


def _pretty(value: object, indent: str = "") -> str:
    """JSON with one field a line; a list of numbers stays on one."""
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        parts = [f"{deeper}{_plain(key)}: {_pretty(each, deeper)}" for key, each in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        return "[\n" + ",\n".join(deeper + _pretty(each, deeper) for each in value) + f"\n{indent}]"
    return _plain(value)


def _plain(value: object) -> str:
    return output.printable(msgspec.json.encode(value).decode())
