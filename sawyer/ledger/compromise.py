"""Which statements of a book are in question: signed by a key that was revoked, after it may have been in other hands.

They stand: their entries were decided while the key was good. Who reads the book is told, and judges. A book is read a
second time for this, and only if it revokes a key with such a date: what a key will be revoked for is known at the end.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

from sawyer.errors import NotCanonical, SawyerError
from sawyer.ledger.commands import claims
from sawyer.ledger.entry import decode_entry
from sawyer.ledger.merkle import Tree, leaf_hash
from sawyer.ledger.replay_report import MOST_LISTED, Questionable
from sawyer.ledger.source import Source
from sawyer.ledger.state import State
from sawyer.projections.fold import Entry

FEW: Final = 8
"""Keys that are looked for in an entry's bytes before it is read; with more, every entry is read."""


@dataclass
class _Suspect:
    """One revoked key, and what was found of it."""

    key: str
    since_ms: int
    revoked_seq: int
    by: str = ""
    statements: int = 0
    last_seq: int = 0
    entries: list[int] = field(default_factory=list)

    def look_at(self, entry: Entry, by: str) -> None:
        if not (self.since_ms <= entry.ts_ms and entry.seq < self.revoked_seq):
            return
        self.by = self.by or by
        self.statements += 1
        if entry.seq != self.last_seq and len(self.entries) < MOST_LISTED:
            self.entries.append(entry.seq)
        self.last_seq = entry.seq

    def report(self) -> Questionable:
        first = self.entries[0] if self.entries else 0
        return Questionable(
            self.key, self.by, self.since_ms, self.revoked_seq, self.statements, first, self.last_seq,
            tuple(self.entries),
        )  # fmt: skip


def questionable(source: Source, state: State) -> tuple[Questionable, ...]:
    """What is in question in the book that was folded into this state, a row for each key that was revoked with a date.
    Raises SawyerError if the source does not hold the same entries any more."""
    revoked = sorted(state.registry.revoked.items())
    suspects = {key: _Suspect(key, row.since_ms, row.seq) for key, row in revoked if row.since_ms}
    if not suspects:
        return ()
    needles, tree = [key.encode() for key in suspects] if len(suspects) <= FEW else [b""], Tree()
    with closing(source.rows()) as rows:
        for row in rows:
            if row.is_checkpoint:
                continue
            tree.append(leaf_hash(row.state))
            if any(needle in row.state for needle in needles):
                _look_at(row.state, suspects)
            if tree.size == state.tree.size:
                break
    if tree.root() != state.tree.root():
        raise SawyerError("the book was changed while it was read", hint="Replay a copy of it.")
    return tuple(suspect.report() for suspect in suspects.values())


def _look_at(raw: bytes, suspects: dict[str, _Suspect]) -> None:
    try:
        entry = decode_entry(raw)
    except NotCanonical:
        return  # it was read whole before: the tree will say that it is another
    for claim in claims(entry.kind, entry.body, entry.statement, entry.attestations):
        suspect = suspects.get(claim.signature.key_id)
        if suspect is not None:
            suspect.look_at(entry, claim.signature.by)
