"""`sawyer ledger log` and `show`: reading the book and printing it. Verifies nothing: that is replay's work."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Generator
from contextlib import closing
from typing import Final

import msgspec

from sawyer.cli import output
from sawyer.cli.facts import concerns, summary
from sawyer.clock import iso
from sawyer.errors import BookCorrupt, NotCanonical, UsageError
from sawyer.ledger.commands import claims
from sawyer.ledger.entry import StoredRow, check_columns, decode_entry
from sawyer.ledger.source import Source
from sawyer.projections.fold import Entry

NOT_VERIFIED: Final = "read, not verified: `sawyer ledger replay` proves the book"


def newest(source: Source, count: int, *, account: str = "", kind: str = "") -> list[Entry]:
    """The newest entries, the newest last, of an account and a kind (with or without its version) if these are given.
    Raises BookCorrupt for one that cannot be read."""
    kept: deque[tuple[int, StoredRow]] = deque(maxlen=count)
    with closing(_entries(source)) as rows:
        for seq, row in rows:
            if (not account or concerns(row.stream, account)) and (not kind or f"{row.topic}.".startswith(f"{kind}.")):
                kept.append((seq, row))
    return [_read(seq, row) for seq, row in kept]


def entry_at(source: Source, seq: int) -> tuple[Entry, bytes]:
    """The entry at this position, and its exact bytes. Raises UsageError beyond the end, BookCorrupt."""
    size = 0
    with closing(_entries(source)) as rows:
        for position, row in rows:
            size = position
            if position == seq:
                return _read(seq, row), row.state
    raise UsageError(f"there is no entry {seq}: the book has {size}", hint="`sawyer ledger log` shows the newest.")


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


def show_entry(entry: Entry) -> None:
    """The whole entry, for people."""
    output.line(f"entry {entry.seq}: {entry.kind}")
    output.line(output.printable(summary(entry)))
    output.heading("Where it stands")
    for name, value in (
        ("log", entry.log),
        ("time", f"{iso(entry.ts_ms)} ({entry.ts_ms} ms)"),
        ("stream", f"{entry.stream}, version {entry.version}"),
        ("idem", entry.idem),
        ("leaf", entry.leaf),
        ("prev", entry.prev),
    ):
        output.line(f"{name:<7} {value}")
    output.heading("Signatures")
    for claim in claims(entry.kind, entry.body, entry.statement, entry.attestations):
        output.line(f"{claim.signature.by} over {claim.kind}")
        output.line(f"  key {claim.signature.key_id}")
        output.line(f"  sig {claim.signature.sig}")
    output.heading("Body: what was signed")
    output.line(_pretty(msgspec.json.decode(entry.statement)))
    decided = entry.decided.model_dump(mode="json", exclude_none=True)
    if decided:
        output.heading("Decided: what the ledger added")
        output.line(_pretty(decided))


def print_exact(raw: bytes) -> None:
    """The bytes of an entry as they stand in the book, and a newline."""
    sys.stdout.flush()
    sys.stdout.buffer.write(raw + b"\n")
    sys.stdout.buffer.flush()


def _entries(source: Source) -> Generator[tuple[int, StoredRow], None, None]:
    """(position from 1, row) of every entry; checkpoints are none."""
    with closing(source.rows()) as rows:
        yield from enumerate((row for row in rows if not row.is_checkpoint), start=1)


def _read(seq: int, row: StoredRow) -> Entry:
    try:
        entry = decode_entry(row.state)
        check_columns(row, entry)
    except NotCanonical as error:
        raise BookCorrupt(f"entry {seq} cannot be read: {error.message}", seq=seq) from error
    if entry.seq != seq:
        raise BookCorrupt(f"entry {seq} says that it is entry {entry.seq}", seq=seq)
    return entry


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
