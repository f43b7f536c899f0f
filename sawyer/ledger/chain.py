"""Reading a book row by row: every entry must be the one that follows. Owns the chain's rules; signatures of entries
are commands.py's, their content is decide.py's. The writer loads with it, replay verifies with it."""

from __future__ import annotations

from typing import Final

from sawyer.errors import BookCorrupt, VerificationError
from sawyer.identity.keys import public_bytes
from sawyer.ledger.checkpoint import Checkpoint, Verifier
from sawyer.ledger.entry import CHECKPOINT_TOPIC, StoredRow, check_columns, decode_entry
from sawyer.ledger.membership import ledger_key
from sawyer.ledger.state import State
from sawyer.projections.fold import Entry
from sawyer.schemas.events import REQUEST_STREAM

_NOTE_LINES: Final = 5
"""Origin, size, root, an empty line, one signature."""


def read_next(row: StoredRow, state: State) -> Entry:
    """The entry in this row, which must be the next one after `state`. Raises BookCorrupt, naming the entry."""
    seq = state.audit.head.seq + 1
    try:
        entry = decode_entry(row.state)
        check_columns(row, entry)
    except VerificationError as error:
        raise BookCorrupt(f"entry {seq}: {error.message}", seq=seq) from error
    _check_link(entry, state)
    return entry


def read_checkpoint(row: StoredRow, state: State, verifier: Verifier, number: int) -> Checkpoint:
    """The checkpoint in this row, which must be number `number` (from 1), signed, and say exactly what `state` holds.
    Raises BookCorrupt."""
    seq = state.audit.head.seq
    if (row.version, row.topic) != (number, CHECKPOINT_TOPIC):
        raise BookCorrupt(f"expected checkpoint {number}, got {row.topic} {row.version}", seq=seq)
    try:
        note = row.state.decode()
        checkpoint = Checkpoint.verify(note, verifier)
    except UnicodeDecodeError as error:
        raise BookCorrupt(f"checkpoint {number} is not text", seq=seq) from error
    except VerificationError as error:
        raise BookCorrupt(f"checkpoint {number}: {error.message}", seq=seq) from error
    if note.count("\n") != _NOTE_LINES:  # witnesses sign copies: what lies in the book is the ledger's word alone
        raise BookCorrupt(f"checkpoint {number} holds more than the ledger's own signature", seq=seq)
    check_covers(checkpoint, state)
    return checkpoint


def check_covers(checkpoint: Checkpoint, state: State) -> None:
    """Raises BookCorrupt unless the checkpoint is of exactly the entries folded into `state`."""
    size = state.tree.size
    if checkpoint.size != size:
        raise BookCorrupt(f"a checkpoint of size {checkpoint.size} stands after entry {size}", seq=size)
    if checkpoint.root != state.tree.root():
        found, signed = state.tree.root().hex(), checkpoint.root.hex()
        raise BookCorrupt(f"the tree over {size} entries has root {found}, its checkpoint says {signed}", seq=size)


def verifier_of(state: State) -> Verifier:
    """Who signs the checkpoint after the next entries: the key that is the ledger's now."""
    return Verifier(state.network, public_bytes(ledger_key(state)))


def verifiers_of(state: State) -> tuple[Verifier, ...]:
    """Every key that has signed checkpoints of this book, or will sign the next."""
    keys = [each.body.key for each in state.registry.successors if each.body.role == "ledger"]
    return (Verifier.parse(state.ledger_vkey), *(Verifier(state.network, public_bytes(key)) for key in keys))


def _check_link(entry: Entry, state: State) -> None:
    head = state.audit.head
    version = state.audit.version(entry.stream) + 1
    problem = ""
    if (entry.seq, entry.log, entry.prev, entry.version) != (head.seq + 1, state.network, head.leaf, version):
        problem = _broken_link(entry, state, version)
    if not problem and entry.ts_ms < head.ts_ms:
        problem = f"time runs backwards from {head.ts_ms} to {entry.ts_ms}"
    if problem:
        raise BookCorrupt(problem, seq=head.seq + 1, signer=f"{entry.signer.by} ({entry.signer.key_id})")


def _broken_link(entry: Entry, state: State, version: int) -> str:
    head = state.audit.head
    if entry.body is None and entry.stream.startswith(REQUEST_STREAM):
        version = entry.version  # of a request that ended: how many entries it had is not remembered
    for what, expected, got in (
        ("seq", head.seq + 1, entry.seq),
        ("log", state.network, entry.log),
        ("prev", head.leaf, entry.prev),
        (f"version of {entry.stream}", version, entry.version),
    ):
        if expected != got:
            return f"expected {what} {expected}, got {got}"
    return ""
